"""What `pipeline()` gives: a generator of texts that takes any number of rows, too.

Apart from TextGenerator, whose code goes with a registered model, and needs no readers of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ...config.generation import GenerationConfig
from ...config.prediction import MAX_BATCH_TOKENS
from ..row_constraints import require_constraint
from ..text_generator import TextGenerator
from .answering import answers_in_order


class RowGenerator(TextGenerator):
    """A TextGenerator with `map`."""

    def map(
        self,
        rows: Iterable[Any],
        *,
        return_full_text: bool | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        **parameters: Any,
    ) -> Iterator[dict[str, Any]]:
        """{"text", "stopped", "error"} of each text, conversation, or row with a column messages, src_txt or text, in
        order, while no more than a window of them is in memory.

        A row that can't be answered has an `error` and text None. max_batch_tokens: the most that are computed at once.
        """
        config = GenerationConfig.parse(parameters, self.defaults)
        require_constraint(self.tokenizer, config)
        return answers_in_order(self, rows, config, return_full_text, max_batch_tokens)
