"""A Lightning logger that writes to the stage's own MLflow run, a batch at a time, beside the training steps.

Lightning's MLFlowLogger makes a run of its own, ends it when fit does, and costs about 12 ms a step.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

BATCH = 200
"""Metrics that are worth sending."""
LARGEST_BATCH = 1000
"""What MLflow takes at once."""
SECONDS = 5.0
"""The longest that a metric waits, so that the UI stays alive."""


class RunLogger(Logger):
    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id
        self.client = MlflowClient()
        self.waiting: list[Metric] = []
        self.batch: list[Metric] = []
        """What the thread sends, or sent last."""
        self.thread = ThreadPoolExecutor(1, "metrics")
        self.sending: Future[Any] | None = None
        self.history: dict[str, list[tuple[int, float]]] = {}
        """Every metric's (step, value), for the pictures at the end."""
        self.sent_at = time.monotonic()

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return self.run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            self.waiting.append(Metric(name, float(value), now, step or 0))
            self.history.setdefault(name, []).append((step or 0, float(value)))
        due = len(self.waiting) >= BATCH or time.monotonic() - self.sent_at > SECONDS
        if due and (self.sending is None or self.sending.done()):
            self.send()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The stage logs its resolved configuration itself."""

    def send(self) -> None:
        """Gives what waits to the thread. An error of the batch before is raised here, and nothing of it lost."""
        self.settle()
        self.batch, self.waiting = self.waiting[:LARGEST_BATCH], self.waiting[LARGEST_BATCH:]
        self.sending = self.thread.submit(self.client.log_batch, self.run_id, metrics=self.batch)
        self.sent_at = time.monotonic()

    def settle(self) -> None:
        """Waits for the thread."""
        if self.sending is None:
            return
        sending, self.sending = self.sending, None
        try:
            sending.result()
        except BaseException:
            self.waiting = self.batch + self.waiting
            raise

    @rank_zero_only
    def save(self) -> None:
        """Returns when everything is sent."""
        self.settle()
        while self.waiting:
            self.send()
            self.settle()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
