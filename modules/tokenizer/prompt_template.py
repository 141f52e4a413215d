"""What a prompt looks like, and where a row that is too long is cut: said here, and used wherever prompts are made.

A prompt is start ids, the template's part before `{src_txt}`, the source, and the part after it. The parts are encoded
one by one, so that no merge across a seam differs from one row to the next. A prompt that is too long loses the end of
its source; a row with a target loses its source first, then the target's end.
"""

from __future__ import annotations

import numpy as np

from .lookup import Counts

SOURCE_FIELD = "{src_txt}"


def split_template(template: str | None) -> tuple[str, str]:
    """The text before and after the source. Raises ValueError unless the source is there just once."""
    parts = (SOURCE_FIELD if template is None else template).split(SOURCE_FIELD)
    if len(parts) != 2:
        raise ValueError(f"prompt_template {template!r} must hold {SOURCE_FIELD} exactly once")
    return parts[0], parts[1]


def fill_template(template: str | None, source: str) -> str:
    """The text of a prompt; without a template the source alone."""
    before, after = split_template(template)
    return before + source + after


def prompt_limits(limit: int, free: Counts, overhead: int) -> Counts:
    """The most ids that each prompt may have where prompt and answer together have at most `limit`.

    Args:
        limit: Ids of a row, or the model's positions.
        free: Ids to keep free for each answer and its end-of-text. No more than three quarters of the limit are, so
            that a long answer doesn't take away all that it answers to.
        overhead: Ids of start and template; at least one id of the source stays beside them.
    """
    limits: Counts = np.maximum(limit - free, max(-(-limit // 4), overhead + 1))
    return limits


def prompt_limit(limit: int, free: int, overhead: int = 0) -> int:
    """`prompt_limits` of one prompt."""
    return int(prompt_limits(limit, np.array(free), overhead))
