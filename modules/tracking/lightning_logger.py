"""A Lightning logger that writes to the stage's own MLflow run, through its local log.

Lightning's MLFlowLogger makes a run of its own, ends it when fit does, and waits for the server at each step.
"""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from ..training.callbacks import Checkpoints, checkpoints_in
from .outbox.logged_models import VALIDATION
from .system_metrics import PREFIX
from .tracked_run import TrackedRun


class RunLogger(Logger):
    """What a Trainer logs goes to the stage's run."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__()
        self.run = run
        self.history: dict[str, list[tuple[int, float]]] = {
            name: list(series) for name, series in run.earlier.items() if not name.startswith(PREFIX)
        }
        """Metric → (step, value), those of the run's earlier processes first; for the loss curve at the end."""

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return str(self.run.info.run_id)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = step or 0
        self.run.log_metrics(metrics, step)
        for name, value in metrics.items():
            if step not in self.run.known.get(name, ()):
                self.history.setdefault(name, []).append((step, float(value)))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The stage logs its resolved configuration itself."""

    @rank_zero_only
    def save(self) -> None:
        """Before a checkpoint takes its name: it may not be newer than the log that tells of its steps."""
        self.run.spool.sync_to_disk()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Checkpoints) -> None:  # type: ignore[override]
        """Checkpoints were written, removed or validated."""
        validated = {step for name, series in self.history.items() if name.startswith(VALIDATION) for step, _ in series}
        steps = [step for step in checkpoints_in(checkpoint_callback.folder) if step in validated]
        self.run.log_checkpoints(checkpoint_callback.folder, steps)
