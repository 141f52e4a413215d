"""Whether a new version takes the alias from its holder: a paired test on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config.evaluation import RegisterConfig
from ..tracking.models.known_models import log_used_model
from ..tracking.registry import resolve_model, version_with_alias
from ..tracking.tracked_run import TrackedRun
from .likelihood import Likelihoods
from .statistics import Metric, PairedComparison, compare, rows_in_words

FEW_ROWS = 100
"""Below so many independent test rows even a large difference may be chance; the first version's score then says so."""


@dataclass(frozen=True)
class Promotion:
    promoted: bool
    verdict: str
    """first (nobody held the alias), held (by this model), better, worse or undecided."""
    reason: str
    comparison: PairedComparison | None = None
    """None for the first, and for one that is held."""

    def metrics(self) -> dict[str, float]:
        if self.comparison is None:
            return {}
        names = ("difference", "low", "high", "p_value", "power", "detectable")
        return {f"promotion/{name}": getattr(self.comparison, name) for name in names}

    def tags(self) -> dict[str, str]:
        return {"champion": str(self.promoted).lower(), "verdict": self.reason}


def promote(
    new: Metric, run: TrackedRun, config: RegisterConfig, before: str | None, score: Callable[[str, Path], Likelihoods]
) -> Promotion:
    """`decide`, against whoever holds the alias, scored now on the same rows by `score` (name, folder).

    before: number of the version that has the new model already.
    """
    holder = version_with_alias(config.model_name, config.alias)
    if holder is None:
        return decide(new, None, None, config.level)
    if str(holder.version) == before:
        return Promotion(True, "held", f"stays with version {before}, which has these weights")
    uri = f"models:/{config.model_name}@{config.alias}"
    folder = resolve_model(uri)
    held = score(uri, folder).perplexity_per_char
    scores = {f"test/{config.alias}_perplexity_per_char": held.value}
    run.log_metrics(scores, model_id=log_used_model(run, uri, folder), dataset="test")
    return decide(new, held, str(holder.version), config.level)


def decide(new: Metric, held: Metric | None, holder: str | None, level: float = 0.05) -> Promotion:
    """Whether the alias moves: only to a version that is better, so that whoever carries it has shown to be.

    held: the metric of the version that carries the alias, whose number is `holder`; None where none does.
    level: the p-value up to which a difference counts as one.
    """
    if held is None:
        alone = f"; on {rows_in_words(new)} alone, which is few: it may be far off"
        few = alone if len(new.units) < FEW_ROWS else ""
        return Promotion(True, "first", f"given to it, as the first ({new.value:.1f}{few})")
    found = compare(new, held, level)
    moved = found.verdict == "better"
    start = f"moved to it from version {holder}" if moved else f"stays with version {holder}"
    return Promotion(moved, found.verdict, f"{start}: {'; '.join(because(found, rows_in_words(new)))}", found)


def because(found: PairedComparison, rows: str) -> Iterator[str]:
    if not found.difference and not found.low and not found.high:
        yield f"undecided, as it scores the same on every one of the {rows} ({found.new:.1f})"
        return
    around = f"95 % interval {change_in_words(found.low)} to {change_in_words(found.high)}, p = {found.p_value:.2g}"
    yield (
        f"{found.verdict}, {found.new:.1f} against {found.old:.1f} on the same {rows} "
        f"({change_in_words(found.difference)}, {around}, power {found.power:.0%})"
    )
    if found.unread:
        yield (
            f"{found.unread:,} of these rows hold characters that the tokenizer of the one ahead loses, and on the "
            "others it isn't ahead"
        )
    elif found.verdict == "undecided":
        seen = f"{found.detectable:.2g} ({found.detectable / found.old:.1%})"
        yield f"so many rows show a difference of {seen} four times in five"


def change_in_words(value: float) -> str:
    digits = 1 if abs(value) >= 0.95 else 2
    return f"{value:+.{digits}f}".replace("-", "−")
