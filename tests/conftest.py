"""What several tests share: a small random decoder, a tokenizer, real poems, a tracking store of one's own."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import mlflow
import pytest
from hypothesis import settings
from mlflow import MlflowClient

from modules.data.corpora.verse import split_of
from modules.model.decoder import Decoder
from modules.system.jsonl import read_jsonl
from modules.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.helpers.models import ROOT, make_config, make_decoder

# The same examples in every run of the tests; HYPOTHESIS_PROFILE=long looks for new ones.
settings.register_profile("suite", max_examples=60, derandomize=True, deadline=None)
settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all tests: never the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder / "moyun"


@pytest.fixture(scope="session", autouse=True)
def float32_by_itself() -> Iterator[None]:
    """trainer.precision=auto is float32 on any machine, as tests compare to within float32's rounding."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("modules.training.precision.bf16_speedup", lambda on_gpu: 0.5)
        yield


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are answered three at a time."""
    monkeypatch.setattr("modules.inference.prediction.answering.WINDOW_ROWS", 3)


SEARCH_PATH = list(sys.path)


@pytest.fixture(autouse=True)
def search_path() -> None:
    """MLflow puts the code that a model carries before the project's, for as long as the process lives."""
    sys.path[:] = SEARCH_PATH


@pytest.fixture(scope="session")
def poems() -> dict[str, list[str]]:
    """The 300 bundled test poems by split."""
    texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for row in read_jsonl(ROOT / "data" / "poems-300.jsonl.gz"):
        texts[split_of(row["src_txt"])].append(row["src_txt"])
    return texts


@pytest.fixture(scope="session")
def tokenizer(poems: dict[str, list[str]]) -> Tokenizer:
    return train_tokenizer(poems["train"])


@pytest.fixture(scope="session")
def rows(poems: dict[str, list[str]]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"src_txt": poems["train"]})


@pytest.fixture
def decoder(tokenizer: Tokenizer) -> Decoder:
    return make_decoder(make_config(tokenizer.vocab_size))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copied for each test: laying out a store's tables takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[Path]:
    """The current folder, with a tracking store that nothing names: what a first run finds."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")  # so that monkeypatch puts back what MLflow itself writes there
        monkeypatch.delenv(name)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()
