"""Log-probabilities of a row's tokens in the form of OpenAI's completions: tokens, values, alternatives, offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from ..tokenizer.spelling import TokenSpeller, spelling
from ..tokenizer.tokenizer import Tokenizer

Score: TypeAlias = tuple[int, float | None, list[tuple[int, float]]]
"""A model.decoding.token_scores.TokenScore, without torch: a token, its log-probability, the likeliest in its place."""

Entry = tuple[str, int, Score]
"""A token's spelling, the character of the text that it begins in, and its log-probabilities."""


class LogprobsWriter:
    """Turns a row's scored tokens into OpenAI's `logprobs`, in step with its text."""

    def __init__(
        self, tokenizer: Tokenizer, top: int, prompt: str | Sequence[int], ids: Sequence[int], echoed: str | None
    ) -> None:
        """What is asked with `logprobs` and `echo`.

        Args:
            top: How many of the likeliest tokens beside each.
            prompt: As it was given.
            ids: What it became, with start and template around a text; these aren't told.
            echoed: The prompt's text, where the row's text begins with it.
        """
        given = isinstance(prompt, str)
        before, after = map(len, tokenizer.prompt_parts) if given else (0, 0)
        self.tokenizer = tokenizer
        self.top = top
        self.scored = range(0) if echoed is None else range(before, len(ids) - after)
        """Positions of the prompt's tokens that are told."""
        self.positions = tokenizer.positions(echoed) if echoed and given else None
        self.prompt_speller, self.speller = TokenSpeller(tokenizer), TokenSpeller(tokenizer, len(echoed or ""))
        self.characters = self.tokens = 0
        self.waiting: list[Entry] = []
        """Tokens that begin after the text so far."""

    def push(self, text: str, scores: Sequence[Score], final: bool) -> dict[str, Any]:
        """The `logprobs` that belong to the next piece of text.

        A token comes with the piece that it begins in.
        final: the text is complete and no stop text has cut it, so that nothing more is waited for.
        """
        self.characters += len(text)
        self.waiting += map(self.entry, scores)
        count = sum(final or at < self.characters for _, at, _ in self.waiting)
        ready, self.waiting = self.waiting[:count], self.waiting[count:]
        return {
            "tokens": [token for token, _, _ in ready],
            "token_logprobs": [logprob for _, _, (_, logprob, _) in ready],
            "top_logprobs": [self.alternatives(token, score) for token, _, score in ready],
            "text_offset": [at for _, at, _ in ready],
        }

    def entry(self, score: Score) -> Entry:
        number, self.tokens = self.tokens, self.tokens + 1
        if number >= len(self.scored):
            return *self.speller.push(score[0]), score
        token, at = self.prompt_speller.push(score[0])
        return token, at if self.positions is None else self.positions[number], score

    def alternatives(self, token: str, score: Score) -> dict[str, float] | None:
        """The likeliest tokens and the one that is there, the likeliest first; None where nothing comes before it."""
        own, own_logprob, top = score
        if own_logprob is None:
            return None
        found: dict[str, float] = {}
        for other, logprob in top:
            name = token if other == own else spelling(self.tokenizer, other)
            # Two tokens may be spelt alike, as WordPiece's at the beginning of a word and within.
            found[self.tokenizer.token(other) if name in found else name] = logprob
        if own not in dict(top):
            found[self.tokenizer.token(own) if token in found else token] = own_logprob
        return found
