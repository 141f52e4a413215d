"""Metrics reach the run in order, in batches, and none is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

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
        self.answers = threading.Event()
        self.answers.set()

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        assert self.answers.wait(60)
        if self.away:
            raise ConnectionError("no server")
        self.sent.append(metrics)

    def steps(self) -> list[int]:
        return [metric.step for metrics in self.sent for metric in metrics]


@pytest.fixture
def logger(store: Path, monkeypatch: pytest.MonkeyPatch) -> RunLogger:
    logger = RunLogger("run")
    monkeypatch.setattr(logger, "client", Recorder())
    return logger


def test_a_slow_server_holds_nothing_up(logger: RunLogger) -> None:
    """What has gathered meanwhile goes in batches that MLflow takes."""
    client: Any = logger.client
    client.answers.clear()
    for step in range(3000):
        logger.log_metrics({"a": 0.0}, step)
    assert client.sent == []
    client.answers.set()
    logger.save()
    logger.save()
    assert client.steps() == list(range(3000))
    assert [len(metrics) for metrics in client.sent] == [200, 1000, 1000, 800]


def test_no_metric_waits_longer_than_the_interval(logger: RunLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = logger.client
    now = [logger.sent_at]
    monkeypatch.setattr(run_logger.time, "monotonic", lambda: now[0])
    logger.log_metrics({"a": 1.0}, 1)
    now[0] += run_logger.SECONDS + 0.1
    logger.log_metrics({"a": 2.0}, 2)
    logger.settle()
    assert client.steps() == [1, 2]
    logger.log_metrics({"a": 3.0}, 3)
    logger.settle()
    assert client.steps() == [1, 2]


def test_what_could_not_be_sent_is_sent_later(logger: RunLogger) -> None:
    client: Any = logger.client
    logger.log_metrics({"a": 1.0}, 1)
    client.away = True
    with pytest.raises(ConnectionError):
        logger.save()
    client.away = False
    logger.log_metrics({"a": 2.0}, 2)
    logger.finalize("failed")
    assert client.steps() == [1, 2]
