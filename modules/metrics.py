"""Measures of a language model that more than one module must compute alike."""

from __future__ import annotations

import math


def perplexity_per_character(total_nll: float, characters: int, rows: int) -> float:
    """Perplexity per character: exp(total_nll / (characters + rows)).

    total_nll is the negative log-likelihood in nats of every scored character, punctuation included, and of
    the end of text of every row; so the number of predictions is one a character plus one a row. Counted in
    characters and not in tokens, it compares models whatever their tokenizers.

    Raises ValueError when nothing was scored.
    """
    if characters + rows <= 0:
        raise ValueError("perplexity of no text is undefined: score at least one row")
    return math.exp(min(total_nll / (characters + rows), 700.0))  # a float ends at e^709
