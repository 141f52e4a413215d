"""Which model a trace is linked to, where the store can say so, and that it is sent where the store can't."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

from modules.tracking.traces import model_links
from modules.tracking.traces.model_links import ModelLinks


class Registry:
    """What it says to each question is an error."""

    def __init__(self, code: int) -> None:
        self.code, self.asked = code, 0

    def __call__(self) -> Registry:
        return self

    def get_model_version(self, name: str, number: str) -> None:
        self.asked += 1
        raise MlflowException(f"{name} {number}", self.code)


def test_a_version_that_was_deleted_since_costs_the_link_and_no_trace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_links, "MlflowClient", registry := Registry(RESOURCE_DOES_NOT_EXIST))
    links = ModelLinks("models:/poet@champion")
    with caplog.at_level(logging.WARNING, logger="moyun.tracking"):
        assert [links.of({"version": "3"}) for _ in range(2)] == [(None, "3")] * 2
    assert registry.asked == 1
    assert caplog.messages == ["traces: the model models:/poet@champion isn't linked to them: poet 3"]


def test_so_does_a_folder_that_is_gone(store: Path) -> None:
    assert ModelLinks(str(store / "gone")).of({"version": None}) == (None, None)


def test_a_registry_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_links, "MlflowClient", registry := Registry(TEMPORARILY_UNAVAILABLE))
    links = ModelLinks("models:/poet/3")
    for _ in range(2):
        with pytest.raises(MlflowException):
            links.of({"version": "3"})
    assert registry.asked == 2
