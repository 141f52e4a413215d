"""Metrics reach the run in order, in batches, and none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from test_tracking import all_runs, quiet

from modules import run_logger
from modules.run_logger import RunLogger
from modules.tracking import (
    stage_run,
)


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient().get_metric_history(run_id, name)]


def test_the_logger_sends_everything_in_order_with_steps(store: Path) -> None:
    with stage_run("pretrain", quiet()) as run:
        logger = RunLogger(run.info.run_id)
        losses = [(step, 5.0 - step / 100) for step in range(450)]
        for step, loss in losses:
            logger.log_metrics({"train/loss": loss, "train/tokens": float(step)}, step)
        logger.log_metrics({"val/loss": float("nan")})
        assert len(history(run.info.run_id, "train/loss")) == 400  # whole batches so far
        logger.finalize("success")
        assert history(run.info.run_id, "train/loss") == losses
        assert history(run.info.run_id, "train/tokens") == [(step, float(step)) for step in range(450)]
        assert [step for step, _ in history(run.info.run_id, "val/loss")] == [0]
    assert logger.history["train/loss"] == losses
    assert (logger.version, logger.name) == (run.info.run_id, "mlflow")
    assert len(all_runs()) == 1  # Lightning's own logger would have made a second run


class Recorder:
    """Stands in for the MLflow client."""

    def __init__(self) -> None:
        self.sent: list[list[Metric]] = []
        self.away = False

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        if self.away:
            raise ConnectionError("no server")
        self.sent.append(metrics)


@pytest.fixture
def logger(store: Path, monkeypatch: pytest.MonkeyPatch) -> RunLogger:
    logger = RunLogger("run")
    monkeypatch.setattr(logger, "client", Recorder())
    return logger


def test_metrics_go_in_batches_that_mlflow_takes(logger: RunLogger) -> None:
    for step in range(100):
        logger.log_metrics(dict.fromkeys(map(str, range(7)), 0.0), step)
    sizes = [len(metrics) for metrics in logger.client.sent]  # type: ignore[attr-defined]
    assert sizes == [203, 203, 203]
    logger.save()
    logger.save()
    assert sum(map(len, logger.client.sent)) == 700  # type: ignore[attr-defined]
    assert len(logger.client.sent) == 4  # type: ignore[attr-defined]


def test_no_metric_waits_longer_than_the_interval(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [logger.sent_at]
    monkeypatch.setattr(run_logger.time, "monotonic", lambda: now[0])
    logger.log_metrics({"a": 1.0}, 1)
    assert logger.client.sent == []  # type: ignore[attr-defined]
    now[0] += run_logger.SECONDS + 0.1
    logger.log_metrics({"a": 2.0}, 2)
    assert [metric.value for metric in logger.client.sent[0]] == [1.0, 2.0]  # type: ignore[attr-defined]
    logger.log_metrics({"a": 3.0}, 3)
    assert len(logger.client.sent) == 1  # type: ignore[attr-defined]


def test_what_could_not_be_sent_is_sent_later(logger: RunLogger) -> None:
    logger.log_metrics({"a": 1.0}, 1)
    logger.client.away = True  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError):
        logger.save()
    logger.client.away = False  # type: ignore[attr-defined]
    logger.log_metrics({"a": 2.0}, 2)
    logger.finalize("failed")
    assert [metric.step for metric in logger.client.sent[0]] == [1, 2]  # type: ignore[attr-defined]
