"""What a text is held to while it is written: a form of verse, a JSON schema, or a regular expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..config.guided.grammar import KEYS as GRAMMARS
from ..tokenizer.tokenizer import Tokenizer
from .guided_tokens import GuidedConstraint, guided_constraint
from .verse.verse_tokens import VerseConstraint, verse_constraint

if TYPE_CHECKING:
    from ..config.generation import GenerationConfig

RowConstraint = VerseConstraint | GuidedConstraint


def constraint_of(
    tokenizer: Tokenizer, prompt: Sequence[int], config: GenerationConfig, room: int | None = None
) -> RowConstraint | None:
    """What a prompt's continuation must keep to, if anything.

    room: how many tokens there are for it, where the model's positions leave fewer than max_new_tokens.
    ValueError, which begins with the key, where it can't: the prompt isn't the beginning of such verse, the verse takes
    more tokens, or the tokenizer can't write it.
    """
    for key in GRAMMARS:
        if text := getattr(config, key):
            return guided_constraint(tokenizer, key, text)
    if config.form is None:
        return None
    verse = verse_constraint(tokenizer, prompt, config.form, config.tones)
    least, most = verse.least_tokens, config.max_new_tokens if room is None else min(room, config.max_new_tokens)
    if 0 < most < least:  # where nothing is to be written, a prompt is scored
        asked = f"{config.max_new_tokens} may be written: give max_new_tokens={least}"
        given = asked if most == config.max_new_tokens else f"the model has {most} positions left: shorten the prompt"
        raise ValueError(f"form {config.form} takes {least} tokens or more from here to its end, and {given}")
    return verse


def require_constraint(tokenizer: Tokenizer, config: GenerationConfig) -> None:
    """ValueError where a model can hold no text at all to what is asked for, whatever the prompt."""
    answers = tokenizer.prompt_template is not None  # and so each text begins anew
    constraint_of(tokenizer, [], config if answers else replace(config, max_new_tokens=0))


def require_constraints(prompts: Sequence[str], tokenizer: Tokenizer, config: GenerationConfig, key: str = "") -> None:
    """ValueError for the first of some prompts whose continuation can't keep to what is asked for.

    key: the prompts', to stand before what is said of one.
    """
    where = ""
    try:
        require_constraint(tokenizer, config)
        where = f"{key}: " if key else ""
        for prompt in prompts if config.form else ():
            constraint_of(tokenizer, tokenizer.encode_prompt(prompt), config)
    except ValueError as error:
        message = str(error).replace(" max_new_tokens=", " generation.max_new_tokens=")
        raise ValueError(f"{where}generation.{message}") from None
