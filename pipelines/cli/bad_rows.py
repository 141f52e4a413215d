"""What every stage that reads rows does with bad ones: leave them out if so asked, and say which they were."""

from __future__ import annotations

from pathlib import Path

from modules.config.data import DataConfig, PrepareConfig
from modules.data.quarantine import QUARANTINE, Quarantine
from modules.tracking.tracked_run import TrackedRun

from .printing import show


def start_quarantine(config: DataConfig | PrepareConfig) -> Quarantine | None:
    """None where bad rows are to be refused."""
    return Quarantine(config.max_bad_rows) if config.bad_rows == "quarantine" else None


def show_quarantine(quarantine: Quarantine | None) -> None:
    """To the terminal, by reason."""
    if quarantine and quarantine.rows:
        counts = quarantine.counts()
        show(f"rows left out ({QUARANTINE} has them)", {reason: f"{count:,}" for reason, count in counts.items()})


def log_quarantine(run: TrackedRun, quarantine: Quarantine | None) -> None:
    """To the MLflow run as quarantine.jsonl, a metric and a tag."""
    if quarantine is None:
        return
    run.write_metrics({"rows/quarantined": len(quarantine.rows)}, 0)
    if quarantine.rows:
        counts = quarantine.counts()
        run.set_tags({"quarantined": "; ".join(f"{count} × {reason}" for reason, count in counts.items())[:5000]})
        run.log_text(quarantine.text(), QUARANTINE)


def keep_quarantine(quarantine: Quarantine | None, folder: Path) -> None:
    """The same list in a stage's output folder."""
    if quarantine and quarantine.rows:
        quarantine.write(folder / QUARANTINE)
