"""Two runs side by side, on the terminal."""

from __future__ import annotations

from modules.tracking.run_comparison import SECTIONS, Parting, RunComparison
from modules.tracking.run_facts import RunFacts

from .printing import show

DIFFERENCES_SHOWN = 8
"""Of a section; the rest is counted."""


def show_differences(found: RunComparison, tolerance: float) -> None:
    """What differs in config, data, code and environment, where the losses part, and the last scores."""
    show("compare", {"one": run_in_words(found.one), "other": run_in_words(found.other)})
    show("made from (one / other)", {section: listed_differences(found, section) for section in SECTIONS})
    show("losses of the training steps", losses(found, tolerance))
    if found.scores:
        show("last scores (one / other)", {name: beside(*pair) for name, pair in found.scores.items()})
    show("in short", {"first difference": in_short(found)})


def run_in_words(run: RunFacts) -> str:
    status = run.status or "which this tracking store doesn't know: what stands in the folder"
    known = [run.name, run.stage, f"run {run.run_id}" if run.run_id not in (None, run.name) else None, status]
    return ", ".join(part for part in known if part)


def listed_differences(found: RunComparison, section: str) -> str:
    differences = found.differences[section]
    if not differences:
        recorded = all(getattr(run, section) for run in (found.one, found.other))
        return "no difference" if recorded else "not recorded for both"
    more = [f"and {len(differences) - DIFFERENCES_SHOWN} more"] if len(differences) > DIFFERENCES_SHOWN else []
    return "\n".join([*map(str, differences[:DIFFERENCES_SHOWN]), *more])


def losses(found: RunComparison, tolerance: float) -> dict[str, str]:
    parting, runs = found.parting, (found.one, found.other)
    if not parting.steps:
        return {"compared": "none: " + " / ".join(f"{len(run.losses):,} steps logged" for run in runs)}
    steps = f"{parting.steps:,} steps"
    if any(len(run.losses) != parting.steps for run in runs):
        steps += f" that both logged, of {len(found.one.losses):,} / {len(found.other.losses):,}"
    if parting.bitwise is None:
        return {"compared": steps, "parted": "never: they agree to the last bit"}
    part = {"compared": steps, "the last bit": f"parts at {at(found, parting.bitwise)}"}
    if parting.beyond is None:
        part["rounding"] = f"explains all of it: {parting.largest:.1e} of the loss at most, tolerance {tolerance:g}"
    else:
        part["more than that"] = f"from {at(found, parting.beyond)} (over {tolerance:g} of the loss)"
    return part


def at(found: RunComparison, step: int) -> str:
    return f"step {step:,}: {found.one.losses[step]!r} / {found.other.losses[step]!r}"


def beside(one: float, other: float) -> str:
    return f"{one:.6g} / {other:.6g}" + (f"   ({other - one:+.3g})" if one != other else "   (equal)")


def in_short(found: RunComparison) -> str:
    parted = parted_at(found.parting)
    if found.first:
        section, difference = found.first
        return f"{section}: {difference}; {parted}"
    unsaid = unrecorded(found)
    return f"no difference{unsaid}; {parted}"


def parted_at(parting: Parting) -> str:
    if not parting.steps:
        return "no step's loss to compare"
    if parting.bitwise is None:
        return "losses agree to the last bit"
    if parting.beyond is None:
        return f"losses agree but for rounding, from step {parting.bitwise:,}"
    return f"losses part at step {parting.beyond:,}"


def unrecorded(found: RunComparison) -> str:
    """What may differ all the same: work that wasn't committed, and what neither side has recorded."""
    dirty = any(run.code.get("git.dirty") == "true" for run in (found.one, found.other))
    return " (but uncommitted changes to the code, which nothing records)" if dirty else ""
