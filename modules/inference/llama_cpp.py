"""A GGUF export behind the protocol of generation.generate: llama.cpp computes the logits, moyun does the rest.

Token ids come from moyun's tokenizer and are sampled by moyun's code, so prompts, parameters, seeds and stop texts mean
what they mean with the torch decoder. The logits are llama.cpp's: its GELU is the tanh form in float16, its keys and
values are float16, so a choice between nearly equal tokens may fall otherwise (docs/models.md has numbers).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.weights import CheckpointError
from ..config.generation import GenerationConfig
from ..config.loader import load_model_config
from ..model.sampling import Rows, start, write
from ..tokenizer.tokenizer import Tokenizer, load_tokenizer
from .llama_bindings import LlamaContext, LlamaModel

ROWS_AT_ONCE = 64
"""llama.cpp numbers at most 256 texts of a context; more rows than these wait for the first to end."""

FILE = "model.gguf"


class LlamaCpp:
    """What takes the place of a Decoder in text_generation.TextGenerator."""

    def __init__(self, folder: Path) -> None:
        """folder: what convert wrote with format=gguf. Raises ValueError without xllamacpp, or for a damaged folder."""
        self.config = load_model_config(folder / "model.yaml")
        self.model = LlamaModel(folder / FILE)
        if self.model.vocab_size != self.config.vocab_size:
            raise CheckpointError(
                f"{folder}: {FILE} has {self.model.vocab_size} tokens, model.yaml says {self.config.vocab_size}; "
                "they don't belong together"
            )

    def generate(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, end_of_text_id: int
    ) -> Generator[tuple[int, int | None], int | None]:
        """As generation.generate, `.send(row)` included."""
        rows = start(self, prompts, [config] * len(prompts))  # type: ignore[arg-type]  # of the decoder it asks the positions alone
        for first in range(0, len(prompts), ROWS_AT_ONCE):
            group = list(range(first, min(first + ROWS_AT_ONCE, len(prompts))))
            chosen = rows.select(group)
            with closing(self.context_for(chosen)) as context:
                sequences = list(range(len(group)))
                logits = decode(context, chosen.ids, sequences)
                yield from write(chosen, logits, partial(advance, context, sequences), end_of_text_id)

    def context_for(self, rows: Rows) -> LlamaContext:
        prompts = sum(len(ids) for ids in rows.ids)
        return LlamaContext(self.model, len(rows.ids), rows.capacity, prompts, torch.get_num_threads())


def advance(context: LlamaContext, sequences: list[int], rows: Rows, left: list[int]) -> Tensor:
    """Next-token logits (B, V) of the rows left; sequences: llama.cpp's numbers of the rows before, cut to these."""
    sequences[:] = [sequences[i] for i in left]
    return decode(context, (ids[-1:] for ids in rows.ids), sequences, [len(ids) - 1 for ids in rows.ids])


def decode(
    context: LlamaContext,
    texts: Iterable[Sequence[int]],
    sequences: Sequence[int],
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Reads some tokens of each text, from `positions` (0 without) → the logits behind the last of each, (B, V)."""
    starts = positions or [0] * len(sequences)
    tokens = [
        (token, position, sequence, position == first + len(ids) - 1)
        for ids, sequence, first in zip(texts, sequences, starts, strict=True)
        for position, token in enumerate(ids, first)
    ]
    return torch.from_numpy(context.decode(tokens))


def load_llama_cpp(model: str | Path) -> tuple[LlamaCpp, Tokenizer]:
    """A folder that convert wrote with format=gguf, or the .gguf file in one.

    Raises CheckpointError for anything else, with the command that makes such a folder of it.
    """
    folder = Path(model).parent if str(model).endswith(".gguf") else Path(model)
    if not (folder / FILE).is_file() or not (folder / "model.yaml").is_file():
        raise CheckpointError(
            f"{model} is no GGUF export of moyun's, which backend=llama_cpp needs; make one: "
            f"python -m pipelines.convert source={model} target=NEW_FOLDER format=gguf, then model=NEW_FOLDER"
        )
    return LlamaCpp(folder), load_tokenizer(folder)
