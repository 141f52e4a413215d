"""Whether a new version takes the alias from its holder: a paired test on the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .statistics import Metric, PairedComparison, compare, rows_in_words

FEW_ROWS = 100
"""Below so many independent test rows even a large difference may be chance; the first version's score then says so."""


class Guard(NamedTuple):
    """A score by which a new version must not be much worse than the holder."""

    share: float
    """Of the holder's value."""
    new: Metric
    held: Metric


@dataclass(frozen=True)
class Promotion:
    promoted: bool
    verdict: str
    """first (nobody held the alias), held (by this model), better, worse, undecided, or guarded (better, but for a
    guard)."""
    reason: str
    measure: str
    """Name of the score that decided."""
    comparison: PairedComparison | None = None
    """None for the first, and for one that is held."""

    def metrics(self) -> dict[str, float]:
        if self.comparison is None:
            return {}
        names = ("difference", "low", "high", "p_value", "power", "detectable")
        return {f"promotion/{name}": getattr(self.comparison, name) for name in names}

    def tags(self) -> dict[str, str]:
        return {"champion": str(self.promoted).lower(), "promotion": self.reason, "measure": self.measure}


def decide(
    new: Metric, held: Metric | None, holder: str | None, level: float = 0.05, guards: Sequence[Guard] = ()
) -> Promotion:
    """Whether the alias moves: only to a version that is better, so that whoever carries it has shown to be.

    held: the metric of the version that carries the alias, whose number is `holder`; None where none does.
    level: the p-value up to which a difference counts as one.
    guards: all of which must hold where there is a holder.
    """
    if held is None and math.isnan(new.value):
        return Promotion(False, "undecided", f"given to none: {named(new)} has no value on these rows", new.name)
    if held is None:
        alone = f"; on {rows_in_words(new)} alone, which is few: it may be far off"
        few = alone if len(new.units) < FEW_ROWS else ""
        reason = f"given to it, as the first ({named(new)} {in_figures(new.value)}{few})"
        return Promotion(True, "first", reason, new.name)
    found = compare(new, held, level)
    broken = [words for guard in guards if (words := why_broken(guard))] if found.verdict == "better" else []
    moved = found.verdict == "better" and not broken
    start = f"moved to it from version {holder}" if moved else f"stays with version {holder}"
    reason = f"{start}: {'; '.join([*because(found, rows_in_words(new)), *broken])}"
    return Promotion(moved, "guarded" if broken else found.verdict, reason, new.name, found)


def why_broken(guard: Guard) -> str | None:
    """What to say of a guard that isn't shown to hold: the far end of the 95 % interval counts, not the middle."""
    found = compare(guard.new, guard.held)
    worse = -1 if guard.new.higher_is_better else 1
    furthest = max(worse * found.low, worse * found.high) if math.isfinite(found.low) else math.nan
    if furthest <= guard.share * abs(found.old):
        return None
    far = f"up to {furthest / abs(found.old):.1%} worse" if found.old and math.isfinite(furthest) else "perhaps worse"
    return (
        f"but {named(guard.new)} is {far} ({in_figures(found.new)} against {in_figures(found.old)}; the far end of the "
        f"95 % interval counts), and guard.{guard.new.name} allows {guard.share:.1%}"
    )


def because(found: PairedComparison, rows: str) -> Iterator[str]:
    name = found.name.replace("_", " ")
    if not found.difference and not found.low and not found.high:
        yield f"undecided, as it scores the same on every one of the {rows} ({name} {in_figures(found.new)})"
        return
    around = f"95 % interval {change_in_words(found.low)} to {change_in_words(found.high)}, "
    yield (
        f"{found.verdict}, {name} {in_figures(found.new)} against {in_figures(found.old)} on the same {rows} "
        f"({change_in_words(found.difference)}, {around if math.isfinite(found.low) else ''}p = {found.p_value:.2g}, "
        f"power {found.power:.0%})"
    )
    if found.unread:
        yield (
            f"{found.unread:,} of these rows hold characters that the tokenizer of the one ahead loses, and on the "
            "others it isn't ahead"
        )
    elif found.verdict == "undecided" and found.detectable > 0:
        share = f" ({found.detectable / abs(found.old):.1%})" if found.old else ""
        yield f"so many rows show a difference of {found.detectable:.2g}{share} four times in five"


def named(metric: Metric) -> str:
    return metric.name.replace("_", " ")


def in_figures(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def change_in_words(value: float) -> str:
    digits = 1 if abs(value) >= 0.95 else 2
    text = f"{value:+.{digits}f}" if abs(value) >= 0.095 or not value else f"{value:+.2g}"
    return text.replace("-", "−")
