"""How far a text keeps the form of Chinese verse: pure functions of one text, each a share from 0 to 1.

nan stands where a rule has nothing to say (a text of one line has no rhyme): `statistics.mean` leaves such a row out.
Tones and rhymes are those of 平水韵; characters with readings of both tones, and those that the table lacks (15 % and
0.1 % of the test poems' characters), say nothing. The rules are those of regulated verse (近体诗) as 王力 gives them
in 《诗词格律》 (1962), chapter 诗律: the length of lines, 押韵, 平仄 with 对, 粘 and 拗救, and the couplet (对仗).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from ...config.verse.forms import FIVE
from ...config.verse.han import han_only
from ...data.corpora.verse import clauses
from ...inference.verse.rhymes import LEVEL, OBLIQUE, rhyme, tone_of, tones_of
from ...inference.verse.verse_form import EITHER

LENGTHS = (5, 7)
EXCHANGED = FIVE["c"]
"""How a couplet's first line may end instead of 平平平仄仄 (特拗)."""
OBLIQUE_END, REPAIR = "仄中仄仄", "平平仄平"
"""How it may end instead of 仄平平仄 where the second line ends so (对句相救); 中 is either tone."""


def form_of(text: str) -> dict[str, float]:
    """Every metric of a poem (or quatrain) by name."""
    return {
        "lines of one length": even_lines(text),
        "quatrain or regulated": regular(text),
        "rhyme": rhyming(text),
        "tones alternate": alternation(text),
        "tones oppose in couplets": opposition(text),
        "tones agree between couplets": adhesion(text),
        "repeated characters": repeated_share(text, 1),
        "repeated pairs": repeated_share(text, 2),
        "repeated lines": repeated_lines(text),
    }


def couplet_form(first: str, second: str) -> dict[str, float]:
    """Every metric of the two lines of a couplet by name."""
    return {
        "same length": float(len(han_only(first)) == len(han_only(second))),
        "tones oppose": couplet_opposition(first, second),
        "last tones": last_tones(first, second),
        "characters of the first line again": shared_characters(first, second),
    }


def lines_of(text: str) -> list[str]:
    """The Han characters of each stretch between punctuation marks."""
    return [han_only(line) for line in clauses(text)]


def line_lengths(text: str) -> list[int]:
    """How many Han characters each line has."""
    return [len(line) for line in lines_of(text)]


def even_lines(text: str) -> float:
    """Share of the lines of 5 or of 7 characters, whichever are more; nan for a text without lines."""
    lengths = line_lengths(text)
    return max(map(lengths.count, LENGTHS)) / len(lengths) if lengths else math.nan


def regular(text: str) -> float:
    """1 for four or eight lines (绝句, 律诗), all of 5 or all of 7 characters, else 0."""
    lengths = line_lengths(text)
    return float(len(lengths) in (4, 8) and len(set(lengths)) == 1 and lengths[0] in LENGTHS)


def rhyming(text: str) -> float:
    """Of the even lines each with the one before it: share whose last characters stand in one rhyme of 平水韵.

    The odd lines needn't rhyme (the first may). Strict: old-style verse may take a neighbouring rhyme (通韵), which
    counts as none here. nan with fewer than four lines.
    """
    ends = [line[-1] for line in lines_of(text)[1::2] if line]
    return _share(rhyme(one, other) for one, other in itertools.pairwise(ends))


def alternation(text: str) -> float:
    """Share of the neighbours among the 2nd, 4th and 6th characters of a line that differ in tone (二四六分明).

    Only of lines of 5 or 7 characters. Half of them differ by chance.
    """
    lines = lines_of(text)
    below = itertools.chain.from_iterable((line, "") for line in lines[1::2])  # of a couplet's first line the second
    return _share(
        _unlike(one, other)
        for line, next_line in itertools.zip_longest(lines, below, fillvalue="")
        if len(line) in LENGTHS
        for one, other in itertools.pairwise(even_tones(line, next_line))
    )


def opposition(text: str) -> float:
    """Share of the couplets (lines 1-2, 3-4, …) whose second characters differ in tone (对; else 失对)."""
    return _share(_differ(one[1], other[1]) for one, other in _pairs(lines_of(text)))


def adhesion(text: str) -> float:
    """Share of the pairs of lines 2-3, 4-5, … whose second characters agree in tone (粘; else 失粘)."""
    apart = [_differ(one[1], other[1]) for one, other in _pairs(lines_of(text)[1:])]
    return _share(None if differ is None else not differ for differ in apart)


def repeated_share(text: str, length: int) -> float:
    """Share of the stretches of `length` Han characters that are copies of others in the text; nan for a shorter text.

    This is rep-n of Welleck et al. (2020, "Neural text generation with unlikelihood training").
    """
    text = han_only(text)
    count = len(text) - length + 1
    return 1 - len({text[start : start + length] for start in range(count)}) / count if count > 0 else math.nan


def repeated_lines(text: str) -> float:
    """Share of the lines that are copies of others in the text."""
    lines = clauses(text)
    return 1 - len(set(lines)) / len(lines) if lines else math.nan


def couplet_opposition(first: str, second: str) -> float:
    """Share of the 2nd, 4th and 6th characters, before the last, that differ in tone from those above them."""
    first, second = han_only(first), han_only(second)
    pairs = zip(even_tones(first, second), even_tones(second), strict=False)
    return _share(_unlike(one, other) for one, other in pairs)


def last_tones(first: str, second: str) -> float:
    """Share of the two lines that end as they should: the first oblique, the second level (仄起平收)."""
    ends = [(tone_of(line[-1]), tone) for text, tone in ((first, OBLIQUE), (second, LEVEL)) if (line := han_only(text))]
    return _share(None if found is None else found == wanted for found, wanted in ends)


def shared_characters(first: str, second: str) -> float:
    """Share of the second line's characters that stand in the first one too, which a parallel couplet avoids."""
    second = han_only(second)
    return sum(character in first for character in second) / len(second) if second else math.nan


def even_tones(line: str, below: str = "") -> list[str | None]:
    """The tones of a line's 2nd, 4th and 6th characters, before the last, where the rule can be broken and kept (拗救).

    below: the second line of the couplet that `line` begins. As if it kept the rule counts a first line with two tones
    exchanged (特拗), or with one that the second line repairs (对句相救).
    """
    tones = [tone_of(character) for character in line[1:-1:2]]
    if below and _may_end(line, EXCHANGED):
        tones[-1] = tones[-1] and OBLIQUE
    elif _may_end(line, OBLIQUE_END) and _may_end(below, REPAIR):
        tones[-1] = tones[-1] and LEVEL
    return tones


def _may_end(line: str, pattern: str) -> bool:
    """Whether the last characters of a line of 5 or of 7 can be read in these tones."""
    signs = zip(line[-len(pattern) :], pattern, strict=False)
    return len(line) in LENGTHS and all(sign in (EITHER, *tones_of(character)) for character, sign in signs)


def _pairs(lines: list[str]) -> list[tuple[str, str]]:
    """Lines 1-2, 3-4, … where both are of 5 or of 7 characters."""
    pairs = zip(lines[::2], lines[1::2], strict=False)
    return [(one, other) for one, other in pairs if len(one) == len(other) and len(one) in LENGTHS]


def _differ(one: str, other: str) -> bool | None:
    """Whether the tones differ; None where one of them isn't known."""
    return _unlike(tone_of(one), tone_of(other))


def _unlike(first: str | None, second: str | None) -> bool | None:
    return first != second if first and second else None


def _share(verdicts: Iterable[bool | None]) -> float:
    """Of those that are known; nan without any."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else math.nan
