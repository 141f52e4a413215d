"""A form of verse character by character: what may come next, and where that leads. Rules of one text, no tokens.

Texts that are written keep a form strictly. What a person began may break rules of rhyme and tone, as people's verse
does: then it goes on with the pattern that is broken least, and rhymes with the person's last rhyme.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...config.base import shown
from ...config.verse.forms import patterns_of
from ...config.verse.han import PUNCTUATION, han_only
from .rhymes import LEVEL, is_level, rhymes_of, tones_of

MARKS = {"，": frozenset("，；：？！"), "。": frozenset("。；？！")}
"""A mark in a pattern → those that may stand for it."""

EITHER, AGAIN = "中", "叠"
Characters = frozenset[str]


class Slot(NamedTuple):
    """A place in a pattern: a character or the mark at a line's end."""

    sign: str
    """平, 仄, 中, 叠 or a mark."""
    rhyme: str = ""
    """韵 or 换 where it rhymes."""


@dataclass(frozen=True)
class Place:
    """How far a text has come in its form; equal places allow the same continuations."""

    index: int = 0
    patterns: tuple[int, ...] = (0,)
    """Those that it keeps so far."""
    rhymes: frozenset[str] = frozenset()
    """Those of 平水韵 that all its rhyming characters share; none: the next one decides."""
    rhymed: str = ""
    """Its rhyming characters, which don't come again."""
    lines: tuple[str, str] = ("", "")
    """The line before and this one, in a form that repeats lines."""


def slots_of(pattern: str) -> list[Slot]:
    slots: list[Slot] = []
    for sign in pattern:
        if sign in "韵换":
            slots[-1] = slots[-1]._replace(rhyme=sign)
        else:
            slots.append(Slot(sign))
    return slots


class VerseForm:
    """A form with the characters that may be written."""

    def __init__(self, name: str, tones: bool, characters: Iterable[str]) -> None:
        """characters: all that can be written, Han and marks. ValueError where they don't suffice for the form."""
        self.name = name
        self.patterns = [slots_of(pattern) for pattern in patterns_of(name, tones)]
        self.slots = len(self.patterns[0])
        self.repeats = any(slot.sign == AGAIN for slot in self.patterns[0])
        self.writable = frozenset(characters)
        self.by_tone: dict[str, Characters] = {EITHER: frozenset(filter(han_only, self.writable))}
        by_tone, self.by_rhyme = defaultdict(set), defaultdict(set)
        for character in self.by_tone[EITHER]:
            for tone in tones_of(character):
                by_tone[tone].add(character)
            for rhyme in rhymes_of(character):
                self.by_rhyme[rhyme].add(character)
        self.by_tone |= {tone: frozenset(found) for tone, found in by_tone.items()}
        most = max(sum(bool(slot.rhyme) for slot in pattern) for pattern in self.patterns)
        self.enough = frozenset(rhyme for rhyme, found in self.by_rhyme.items() if len(found) > most)
        """The rhymes that never run out."""
        self.choices = functools.lru_cache(1024)(self._choices)
        for slot in itertools.chain(*self.patterns):
            if slot.sign != AGAIN and not self.choices(slot, frozenset(), ""):
                raise ValueError(f"form {name} can't be written: this model's vocabulary lacks what it takes")

    def _choices(self, slot: Slot, rhymes: frozenset[str], rhymed: str) -> Characters:
        """What may stand in a slot but for 叠."""
        if slot.sign in MARKS:
            return MARKS[slot.sign] & self.writable
        if not slot.rhyme:
            return self.by_tone.get(slot.sign, frozenset())
        open_rhymes = self.begun(slot) if slot.rhyme == "换" or not rhymes else rhymes
        return frozenset(c for rhyme in open_rhymes for c in self.by_rhyme[rhyme] if c not in rhymed)

    def begun(self, slot: Slot) -> frozenset[str]:
        """The rhymes that a text may take up in a slot."""
        return frozenset(rhyme for rhyme in self.enough if is_level(rhyme) == (slot.sign == LEVEL))

    def allowed(self, place: Place) -> Characters:
        """The characters that may come next; none where the form is complete."""
        if place.index == self.slots:
            return frozenset()
        found = [self.of_pattern(place, number) for number in place.patterns]
        return found[0].union(*found[1:])

    def of_pattern(self, place: Place, number: int) -> Characters:
        slot = self.patterns[number][place.index]
        if slot.sign == AGAIN:
            before, line = place.lines
            return frozenset(before[len(line) : len(line) + 1]) & self.writable or self.by_tone[EITHER]
        return self.choices(slot, place.rhymes, place.rhymed)

    def after(self, place: Place, character: str) -> Place | None:
        """The place after a character; None where the form doesn't allow it."""
        if place.index == self.slots:
            return None
        kept = tuple(number for number in place.patterns if character in self.of_pattern(place, number))
        return self.step(place, kept, character) if kept else None

    def step(self, place: Place, kept: tuple[int, ...], character: str) -> Place:
        """The place after a character that stands next in a text, by the patterns that remain."""
        slots = [self.patterns[number][place.index] for number in kept]
        slot = min(slots, key=lambda slot: bool(slot.rhyme))  # of a character of both tones: it needn't rhyme
        kept = tuple(number for number, other in zip(kept, slots, strict=True) if other.rhyme == slot.rhyme)
        place = replace(place, index=place.index + 1, patterns=kept, lines=self.with_character(place, character))
        if not slot.rhyme:
            return place
        found = rhymes_of(character)
        goes_on = slot.rhyme == "韵" and found & place.rhymes
        # A person's poem may rhyme in the other tone, with another rhyme than before, or with none that is known.
        begun = found & self.begun(slot) or found & self.enough
        rhymed = place.rhymed + character if goes_on else character
        return replace(place, rhymes=found & place.rhymes if goes_on else begun, rhymed=rhymed)

    def with_character(self, place: Place, character: str) -> tuple[str, str]:
        """Place.lines after it."""
        if not self.repeats:
            return place.lines
        before, line = place.lines
        return (line, "") if character in PUNCTUATION else (before, line + character)

    def read(self, text: str) -> Place:
        """The place after what a person began. ValueError where it has other lines than the form.

        What is neither Han nor a mark doesn't count.
        """
        signs = [sign for sign in text if han_only(sign) or sign in PUNCTUATION]
        place, breaches = Place(), [0] * len(self.patterns)
        for number, sign in enumerate(signs):
            if sign in PUNCTUATION and place.index and signs[number - 1] in PUNCTUATION:
                continue  # as in …？！
            self.check_line(signs[: number + 1], place.index)
            for which, pattern in enumerate(self.patterns):
                slot = pattern[place.index]
                if slot.sign in (*"平仄",) and (found := tones_of(sign)):
                    breaches[which] += slot.sign not in found
            place = replace(place, index=place.index + 1)
        best = tuple(which for which, count in enumerate(breaches) if count == min(breaches))
        place = Place(patterns=best)
        for number, sign in enumerate(signs):
            if sign not in PUNCTUATION or not number or signs[number - 1] not in PUNCTUATION:
                place = self.step(place, place.patterns, sign)
        return place

    def check_line(self, signs: list[str], index: int) -> None:
        """ValueError where the last of these signs isn't what belongs in this slot: a character or a mark."""
        pattern = self.patterns[0]
        wanted = "nothing more" if index == self.slots else "a mark" if pattern[index].sign in MARKS else "a character"
        if wanted == ("a mark" if signs[-1] in PUNCTUATION else "a character"):
            return
        lines = "".join(slot.sign if slot.sign in MARKS else "□" for slot in pattern)
        raise ValueError(
            f"form {self.name} ({lines}) doesn't go with the beginning {shown(''.join(signs))}: {wanted} belongs where "
            f"{signs[-1]!r} stands"
        )
