"""Which run and experiment a stage writes to, and that MLflow's own settings stay those of whoever calls."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from modules.config.base import StageConfig, TrackingConfig
from modules.tracking.run_selection import given_run_id
from modules.tracking.stage_run import connected, stage_run
from tests.helpers.models import ROOT
from tests.tracking.test_tracking import all_runs, quiet


def run_name_of_experiment(**tracking: str) -> str:
    """The experiment that a stage's run went to."""
    with stage_run("prepare", StageConfig(tracking=TrackingConfig(log_system_metrics=False, **tracking))) as run:
        return str(MlflowClient().get_experiment(run.info.experiment_id).name)


def test_the_environment_names_the_experiment_and_the_configuration_wins(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_name_of_experiment() == "moyun"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert run_name_of_experiment() == "theirs"
    assert run_name_of_experiment(experiment_name="mine") == "mine"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    number = MlflowClient().create_experiment("by number")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    assert run_name_of_experiment() == "by number"
    assert run_name_of_experiment(experiment_name="mine") == "mine"


def test_a_notebooks_choice_counts_and_its_next_run_is_its_own(store: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    theirs = mlflow.set_experiment("notebook")
    before = (mlflow.get_tracking_uri(), dict(os.environ))
    assert run_name_of_experiment() == "notebook"
    assert run_name_of_experiment(experiment_name="mine") == "mine"
    assert (mlflow.get_tracking_uri(), dict(os.environ)) == before
    with pytest.MonkeyPatch.context() as patch:  # to MLflow too, what was chosen last in the process comes first
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "of the shell")
        assert run_name_of_experiment() == "notebook"
    with mlflow.start_run() as run:
        assert run.info.experiment_id == theirs.experiment_id


def test_whoever_calls_without_settings_has_none_afterwards(store: Path) -> None:
    before = dict(os.environ)
    assert run_name_of_experiment(tracking_uri="sqlite:///other.db") == "moyun"
    assert dict(os.environ) == before
    assert not mlflow.is_tracking_uri_set()
    with mlflow.start_run() as run:
        assert run.info.experiment_id == "0"
    with connected(TrackingConfig("sqlite:///other.db")) as uri:
        assert (uri, mlflow.get_tracking_uri()) == ("sqlite:///other.db", "sqlite:///other.db")
    assert not mlflow.is_tracking_uri_set()
    with suppress(ValueError), stage_run("prepare", quiet()):
        raise ValueError("broken off")
    assert dict(os.environ) == before


def test_a_number_that_set_experiment_wrote_means_nothing_in_another_store(store: Path) -> None:
    mlflow.set_experiment("notebook")
    other = f"sqlite:///{store / 'other.db'}"
    client = MlflowClient(other)
    assert client.create_experiment("of somebody else") == os.environ["MLFLOW_EXPERIMENT_ID"]
    assert run_name_of_experiment(tracking_uri=other) == "moyun"
    assert os.environ["MLFLOW_EXPERIMENT_ID"] == "1"


def test_empty_variables_are_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RUN_ID",
        "EXPERIMENT_NAME",
        "EXPERIMENT_ID",
        "TRACKING_URI",
        "HTTP_REQUEST_TIMEOUT",
        "TRACKING_TOKEN",
    ):
        monkeypatch.setenv(f"MLFLOW_{name}", " ")
    assert given_run_id() is None
    assert run_name_of_experiment() == "moyun"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow itself takes the blank for a folder
    (run,) = all_runs()
    assert run.info.run_name == "prepare"


def test_a_deleted_experiment_is_said_with_the_command_that_restores_it(store: Path) -> None:
    assert run_name_of_experiment() == "moyun"
    MlflowClient().delete_experiment("1")
    with pytest.raises(ValueError, match=r"experiment moyun was deleted: `MLFLOW_TRACKING_URI=sqlite:\S+ mlflow exper"):
        run_name_of_experiment()
    MlflowClient().restore_experiment("1")
    assert run_name_of_experiment() == "moyun"


def test_a_number_of_no_experiment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(ValueError, match=r"MLFLOW_EXPERIMENT_ID=77 can't be used: .*tracking.experiment_name=…"):
        run_name_of_experiment()


@pytest.mark.parametrize("given", ["../x", "a b", "a" * 300, "-x", "春"])
def test_what_is_no_id_of_a_run(store: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with pytest.raises(ValueError, match="is no id of a run: take it out of the environment"):
        run_name_of_experiment()


def test_a_run_that_this_stage_cannot_write_to(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(
        ValueError, match=r"MLFLOW_RUN_ID=0+ can't be used: .*not found.*set MLFLOW_TRACKING_URI to its"
    ):
        run_name_of_experiment()
    with pytest.raises(ValueError, match=r"isn't in the store that tracking.tracking_uri names.*for `mlflow run`"):
        run_name_of_experiment(tracking_uri="sqlite:///other.db")
    other = MlflowClient().create_run("0", tags={"stage": "evaluate", "end": "finished"})
    monkeypatch.setenv("MLFLOW_RUN_ID", other.info.run_id)
    with pytest.raises(ValueError, match="is the run of another stage, evaluate: take it out"):
        run_name_of_experiment()
    MlflowClient().delete_run(other.info.run_id)
    with pytest.raises(ValueError, match="is a run that was deleted: take it out"):
        run_name_of_experiment()


@pytest.mark.parametrize("kind", ["run", "experiment"])
def test_a_run_that_was_deleted_and_is_to_go_on(store: Path, kind: str) -> None:
    with stage_run("pretrain", quiet()) as run:
        pass
    client = MlflowClient()
    number = run.info.run_id if kind == "run" else run.info.experiment_id
    getattr(client, f"delete_{kind}")(number)
    restore = f"mlflow {kind}s restore --{kind}-id {number}` brings it back"
    for stage in ("pretrain", "prefer"):
        gone = rf"can't be continued: .* was deleted\. .*{restore}.*resume_from=OLD_FOLDER"
        with pytest.raises(ValueError, match=gone):
            stage_run(stage, quiet(), continues=run.info.run_id).__enter__()
    with pytest.raises(ValueError, match="brings it back.$"):  # predict has no checkpoints
        stage_run("predict", quiet(), continues=run.info.run_id).__enter__()
    getattr(client, f"restore_{kind}")(number)
    with stage_run("pretrain", quiet(), continues=run.info.run_id) as again:
        assert again.info.run_id == run.info.run_id


@pytest.mark.parametrize("place", ["file/x", "file", "loop", "long" * 100, "/dev/null/x"])
def test_a_spool_folder_that_cannot_be_one(store: Path, place: str) -> None:
    (store / "file").touch()
    (store / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"tracking.spool_dir=\S+ can't be used \(.+\): name a folder"):
        run_name_of_experiment(spool_dir=place)
    assert all_runs() == []


def test_mlflow_says_nothing_to_anybody_unless_the_user_wants_it(tmp_path: Path) -> None:
    command = "import pipelines.pretrain; from mlflow.telemetry import get_telemetry_client as c; print(c() is None)"
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")}
    for given in ({}, {"MLFLOW_DISABLE_TELEMETRY": ""}):
        environment = kept | given | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
        assert done.stdout == "True\n", done.stderr
    command = "import os, modules; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    environment = kept | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "false"}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout == "false\n"
