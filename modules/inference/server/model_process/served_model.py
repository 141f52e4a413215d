"""A model as the endpoints see it: who writes its texts, its tokenizer, and what a prompt may be."""

from __future__ import annotations

from typing import Any

from ....config.generation import LimitsConfig
from ....tokenizer.tokenizer import Tokenizer
from ..requests import characters_of, most_prompt_tokens, overhead_of
from .model_client import ModelClient


class ServedModel:
    """Together they stay: a request is tokenized, written and answered by one and the same."""

    def __init__(
        self, client: ModelClient, tokenizer: Tokenizer, positions: int, limits: LimitsConfig, facts: dict[str, Any]
    ) -> None:
        """Raises ValueError where no prompt could be short enough.

        Args:
            positions: The model's.
            facts: Its card.
        """
        own = overhead_of(tokenizer)
        self.client, self.tokenizer, self.facts = client, tokenizer, facts
        self.prompt_tokens = most_prompt_tokens(limits, positions)
        self.text_tokens = self.prompt_tokens - own
        if self.text_tokens < 1:
            raise ValueError(
                f"limits.prompt_tokens={limits.prompt_tokens} (with the model's {positions} positions) leaves no "
                f"room for text: start and prompt template alone take {own} tokens"
            )
        self.characters = characters_of(self.text_tokens, tokenizer)

    @property
    def origin(self) -> dict[str, str]:
        """Its version in the registry and its run, as far as they are known."""
        found = {"version": self.facts.get("version"), "run_id": self.facts["run"]["run_id"]}
        return {name: value for name, value in found.items() if value}
