"""Forms of Chinese verse: the length of lines, which of them rhyme, and the tone of each character.

A pattern is written as in a 词谱: 平 is a level tone, 仄 an oblique one, 中 either. 韵 follows a character that rhymes
with those before it, 换 one that begins another rhyme; 叠 stands for the character in the same place of the line
before. Marks end the lines. Those of regulated verse (近体诗) are 王力's (《诗词格律》, 1962), those of 词 the ones
that his book and 龙榆生's 《唐宋词格律》 (1978) give first.
"""

from __future__ import annotations

import itertools
import re

FIVE = {"a": "中仄平平仄", "A": "中仄仄平平", "b": "中平平仄仄", "B": "平平中仄平", "c": "平平仄平仄"}
SEVEN = {
    "a": "中平中仄平平仄",
    "A": "中平中仄仄平平",
    "b": "中仄中平平仄仄",
    "B": "中仄平平中仄平",
    "c": "中仄平平仄平仄",
}
"""王力's four lines by his letters; capitals end in a level tone, and rhyme. c may stand for b (特拗)."""

ORDERS = ("aBbA", "ABbA", "bAaB", "BAaB")
"""Of the first four lines. In a regulated poem (律诗) of eight, lines 5 to 8 are as lines 1 to 4 where line 1 doesn't
rhyme."""


def regulated(lines: dict[str, str], count: int) -> tuple[str, ...]:
    """The patterns of a poem of four or eight such lines; in the first one line 1 doesn't rhyme."""
    patterns = []
    for order in ORDERS:
        unrhymed = {"A": "aBbA", "B": "bAaB"}.get(order[0], order)
        letters = (order + unrhymed)[:count]
        marks = "，。" * (count // 2)
        for chosen in itertools.product(*("bc" if letter == "b" else letter for letter in letters)):
            ends = zip(chosen, marks, strict=True)
            patterns.append("".join(lines[letter] + "韵" * letter.isupper() + mark for letter, mark in ends))
    return tuple(patterns)


FORMS: dict[str, tuple[str, ...]] = {
    "五绝": regulated(FIVE, 4),
    "七绝": regulated(SEVEN, 4),
    "五律": regulated(FIVE, 8),
    "七律": regulated(SEVEN, 8),
    "渔歌子": ("中仄平平仄仄平韵，中平中仄仄平平韵。平仄仄，仄平平韵。中平中仄仄平平韵。",),
    "忆江南": ("平中仄，中仄仄平平韵。中仄中平平仄仄，中平中仄仄平平韵。中仄仄平平韵。",),
    "如梦令": ("中仄中平平仄韵，中仄中平平仄韵。中仄仄平平，中仄仄平平仄韵。平仄韵，叠叠，中仄中平平仄韵。",),
    "浣溪沙": (
        "中仄中平中仄平韵，中平中仄仄平平韵。中平中仄仄平平韵。中仄中平平仄仄，中平中仄仄平平韵。中平中仄仄平平韵。",
    ),
    "采桑子": ("中平中仄平平仄，中仄平平韵。中仄平平韵。中仄平平中仄平韵。" * 2,),
    "卜算子": ("中仄仄平平，中仄平平仄韵。中仄平平仄仄平，中仄平平仄韵。" * 2,),
    "菩萨蛮": (
        "中平中仄平平仄韵，中平中仄平平仄韵。中仄仄平平换，中平中仄平韵。"
        "中平平仄仄换，中仄平平仄韵。中仄仄平平换，中平平仄平韵。",
    ),
}
"""Form → its patterns, of which a text keeps one; all have the same lines."""


def patterns_of(form: str, tones: bool) -> tuple[str, ...]:
    """tones: keep the tones of all characters, not only of those that rhyme."""
    patterns = FORMS[form]
    return patterns if tones else (re.sub("[平仄](?![韵换])", "中", patterns[0]),)
