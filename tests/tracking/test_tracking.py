"""One MLflow run a stage: its status, what it tells, and what it must never tell."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import mlflow
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from modules.config.assignments import dotted_items
from modules.config.base import StageConfig, TrackingConfig
from modules.config.effects.key_effects import Effect, effect_of
from modules.config.loader import load_config
from modules.data.arrow import fingerprint
from modules.system.redaction import redact, redact_text
from modules.tracking import provenance as lineage
from modules.tracking.provenance import git_state, provenance
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import connect, log_rows, stage_run
from modules.tracking.tracked_run import PARAMS_AT_ONCE
from tests.helpers.models import ROOT

CANARY = "c4n4ry"


def quiet(**changes: Any) -> StageConfig:
    return StageConfig(tracking=TrackingConfig(log_system_metrics=False), **changes)


def all_runs() -> list[Run]:
    """Oldest first."""
    client = MlflowClient()
    names = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(client.search_runs(names), key=lambda run: (run.info.start_time, run.info.run_name != "main"))


# --- one run a stage ---


def test_a_stage_is_one_finished_run_in_this_folders_store(store: Path) -> None:
    with stage_run("prepare", quiet()) as run:
        assert mlflow.get_tracking_uri() == f"sqlite:///{store / 'mlflow.db'}"
        assert MlflowClient().get_run(run.info.run_id).info.status == "RUNNING"
    (found,) = all_runs()
    assert found.info.run_id == run.info.run_id
    assert (found.info.status, found.info.run_name, found.data.tags["stage"]) == ("FINISHED", "prepare", "prepare")
    assert MlflowClient().get_experiment(found.info.experiment_id).name == "moyun"
    assert mlflow.active_run() is None


def test_the_config_says_where_runs_go(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///ignored.db")
    uri = f"sqlite:///{store / 'mlflow.db'}"
    with stage_run("prepare", StageConfig(tracking=TrackingConfig(uri, "mine", log_system_metrics=False))):
        pass
    assert [experiment.name for experiment in MlflowClient(uri).search_experiments()] == ["mine", "Default"]
    assert not (store / "ignored.db").exists()


def test_the_environment_says_where_runs_go_if_the_config_does_not(
    monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert connect(TrackingConfig()) == "sqlite:///elsewhere.db" == connect()
    assert connect(TrackingConfig("sqlite:///said.db")) == "sqlite:///said.db"


def test_a_stage_inside_a_stage_is_nested(store: Path) -> None:
    with stage_run("main", quiet()) as parent:
        for name in ("prepare", "pretrain"):
            with stage_run(name, quiet()):
                assert mlflow.active_run().info.run_id != parent.info.run_id  # type: ignore[union-attr]
        assert mlflow.active_run().info.run_id == parent.info.run_id  # type: ignore[union-attr]
    main, *nested = all_runs()
    assert main.info.run_id == parent.info.run_id
    assert [run.info.run_name for run in nested] == ["prepare", "pretrain"]
    assert [run.data.tags["mlflow.parentRunId"] for run in nested] == [parent.info.run_id] * 2
    assert "mlflow.parentRunId" not in main.data.tags
    assert {run.info.status for run in (main, *nested)} == {"FINISHED"}


def test_inside_ones_own_run_a_stage_stays_in_that_runs_store_and_experiment(store: Path) -> None:
    shutil.copy(store / "mlflow.db", store / "mine.db")
    uri = f"sqlite:///{store / 'mine.db'}"
    connect(TrackingConfig(uri))
    mlflow.set_experiment("mine")
    other = StageConfig(tracking=TrackingConfig("sqlite:///other.db", "other", log_system_metrics=False))
    with mlflow.start_run(run_name="notebook") as parent:
        mlflow.set_experiment("changed meanwhile")
        with stage_run("pretrain", other) as nested:
            assert nested.info.experiment_id == parent.info.experiment_id
        assert mlflow.get_tracking_uri() == uri
    assert nested.run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert not (store / "other.db").exists()


def test_under_mlflow_run_the_commands_run_is_used_and_no_other(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(connect())
    made = client.create_run(client.create_experiment("theirs"), run_name="command")
    client.log_param(made.info.run_id, "seed", "'42'")  # `mlflow run` logs what it was given, under bare names
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with stage_run("main", quiet()) as run:
        assert run.info.run_id == made.info.run_id
        with stage_run("prepare", quiet(seed=7)) as nested:
            assert nested.info.run_id != made.info.run_id
            assert nested.info.experiment_id == made.info.experiment_id
    runs = {run.info.run_id: run for run in all_runs()}
    assert runs.keys() == {made.info.run_id, nested.info.run_id}
    command, child = runs[made.info.run_id], runs[nested.info.run_id]
    assert (command.info.run_name, command.info.status, command.data.tags["stage"]) == ("command", "FINISHED", "main")
    assert (command.data.params["seed"], command.data.params["cfg.seed"]) == ("'42'", "42")
    assert (child.data.params["cfg.seed"], child.data.tags["mlflow.parentRunId"]) == ("7", made.info.run_id)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no rows"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_a_stage_that_ends_early_says_so_and_the_error_passes(store: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), stage_run("main", quiet()), stage_run("pretrain", quiet()):
        raise error
    assert [(run.info.run_name, run.info.status) for run in all_runs()] == [("main", status), ("pretrain", status)]
    assert mlflow.active_run() is None


def test_a_run_whose_configuration_cannot_be_logged_has_failed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no git")

    monkeypatch.setattr(lineage, "git_state", fail)
    with pytest.raises(OSError, match="no git"), stage_run("prepare", quiet()):
        raise AssertionError("not reached")
    assert [run.info.status for run in all_runs()] == ["FAILED"]


def test_system_metrics_are_logged_where_wanted(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with stage_run("prepare", StageConfig()) as run:
        time.sleep(0.8)
    metrics = MlflowClient().get_run(run.info.run_id).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0


# --- where a result came from ---


def test_a_run_tells_its_whole_configuration_and_code(store: Path) -> None:
    config = load_config("main", ["tracking.log_system_metrics=false", "model.hidden_size=64"])
    with stage_run("main", config) as run:
        pass
    (found,) = all_runs()
    effect = effect_of(type(config))
    told = {key: str(value) for key, value in dotted_items(redact(asdict(config))) if effect(key) is not Effect.NOTHING}
    expected = {f"cfg.{key}": value for key, value in told.items()}
    assert not {"cfg.tracking.run_name", "cfg.finetune.output_dir"} & expected.keys()  # the first that trials differ in
    assert len(expected) > PARAMS_AT_ONCE
    assert found.data.params == expected
    assert found.data.params["cfg.pretrain.model.hidden_size"] == "64"
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/config.yaml")
    assert yaml.safe_load(text) == asdict(config)
    facts = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/environment.json"))
    assert facts["config.sha256"] == sha256(text.encode()).hexdigest()
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert facts["git.commit"] == found.data.tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert facts["git.dirty"] in ("true", "false")
    assert facts["versions"]["mlflow"] == mlflow.__version__
    assert facts["versions"].keys() == {"python", *lineage.PACKAGES}
    assert {name for name in found.data.tags if not name.startswith("mlflow.")} == {"stage", "end"}


def test_any_column_name_and_any_length_of_text_can_be_logged(store: Path) -> None:
    config = load_config("pretrain", ["data.columns.a/../b[0]?=src_txt", f"data.columns.{'长' * 300}=tgt_txt"])
    config.tracking.log_system_metrics = False
    config.train.sample_prompts = ["春" * 7000]
    with stage_run("pretrain", config) as run:
        pass
    params = MlflowClient().get_run(run.info.run_id).data.params
    assert params["cfg.data.columns.a_.._b_0__"] == "src_txt"
    assert params["cfg.data.columns." + "长" * 233] == "tgt_txt"
    assert len(params["cfg.train.sample_prompts"]) == lineage.PARAM_LIMIT
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/config.yaml")
    assert yaml.safe_load(text) == asdict(config)


def test_git_state_says_whether_files_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "__file__", str(tmp_path / "code" / "modules" / "tracking" / "lineage.py"))
    (tmp_path / "code" / "modules" / "tracking").mkdir(parents=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_state() == {}
    git = ["git", "-C", str(tmp_path / "code"), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "first"], check=True)
    assert (len(git_state()["git.commit"]), git_state()["git.dirty"]) == (40, "false")
    (tmp_path / "code" / "new.py").touch()
    assert git_state()["git.dirty"] == "true"


def test_provenance_names_the_run_the_code_and_what_the_stage_adds(store: Path) -> None:
    config = quiet(seed=9)
    assert provenance(config)["run_id"] is None
    with stage_run("pretrain", config) as run:
        facts = provenance(config, parent="https://user:pw@host/model", rows={"train": 3})
    assert (facts["run_id"], facts["config"]["seed"], facts["rows"]) == (run.info.run_id, 9, {"train": 3})
    assert facts["parent"] == "https://(redacted)@host/model"
    assert facts["versions"]["mlflow"] == mlflow.__version__


def test_rows_are_a_tracked_input(store: Path) -> None:
    rows = datasets.Dataset.from_dict({"src_txt": ["春", "秋"]})
    with stage_run("pretrain", quiet()) as run:
        assert log_rows(run, rows, f"https://user:{CANARY}@host/mine.csv", "train") == fingerprint(rows)
    (entry,) = MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("mine.csv-train", fingerprint(rows)[:32])
    assert [tag.value for tag in entry.tags if tag.key == "mlflow.data.context"] == ["train"]
    assert CANARY not in entry.dataset.source + entry.dataset.profile


# --- secrets ---


def test_no_secret_reaches_the_store_or_an_artifact(store: Path) -> None:
    url = f"postgresql://me:{CANARY}/@1@db.example.org/rows?password={CANARY}"
    arguments = [f"data.path={url}", f"data.columns.api_key={CANARY}", f"train.sample_prompts=['see {url}']"]
    arguments += [f"tracking.tracking_uri={url}", f"tokenizer.path=https://{CANARY}@host/tokenizer"]
    config = load_config("pretrain", arguments)
    config.tracking.log_system_metrics = False
    with stage_run("main", quiet()), stage_run("pretrain", config):  # nested: the store is the outer one's
        mlflow.log_dict(provenance(config, parent=url), "run.yaml")
    (_main, nested) = all_runs()
    assert nested.data.params["cfg.data.path"] == "postgresql://(redacted)@db.example.org/rows?password=(redacted)"
    assert nested.data.params["cfg.data.columns.api_key"] == "(redacted)"
    assert nested.data.params["cfg.tokenizer.path"] == "https://(redacted)@host/tokenizer"
    files = [path for path in store.rglob("*") if path.is_file()]
    assert {"mlflow.db", "config.yaml", "run.yaml"} <= {path.name for path in files}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


word = st.text(st.characters(exclude_categories=("Cs", "Z", "Cc")), min_size=1, max_size=8)


@given(word, word, st.sampled_from(["postgresql", "https", "s3+x"]), word)
def test_what_stands_before_the_host_of_a_url_is_never_kept(user: str, password: str, scheme: str, rest: str) -> None:
    secret = f"{password}{CANARY}"
    host = rest.replace("@", "").replace("/", "") or "h"
    found = redact_text(f"a {scheme}://{user.replace('/', '')}:{secret}@{host}/x b")
    assert CANARY not in found
    assert found.startswith(f"a {scheme}://(redacted)@")
    assert found.endswith("/x b")


@pytest.mark.parametrize(
    "text",
    ["models:/moyun@champion", "http://host:80/a", "s3://bucket/a@b", "白日依山尽，", "https://a.b/c, mail me@x.y", ""],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_keys_that_sound_secret_are_redacted_and_others_are_not() -> None:
    secret = ["password", "DB_PASSWD", "hf_token", "token", "api-key", "apikey", "client_secret", "credentials"]
    plain = ["tokenizer", "batch_tokens", "max_new_tokens", "path", "key", "tokens"]
    tree = {"section": dict.fromkeys(secret + plain, "x"), "secrets": {"a": ["x"]}, "token": None, "n_token": 3}
    found = redact(tree)
    assert {name for name, value in found["section"].items() if value == "x"} == set(plain)
    assert (found["secrets"], found["token"], found["n_token"]) == ({"a": ["(redacted)"]}, None, 3)


# --- folders in and out ---


def test_a_path_is_a_path(store: Path) -> None:
    assert resolve_model("outputs/x/model") == Path("outputs/x/model")


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/nobody/1", "models:/m-0123", "runs:/0123/model"])
def test_a_model_that_is_not_there_is_named_with_the_store(store: Path, uri: str) -> None:
    connect()
    with pytest.raises(
        ValueError, match=r"tracking store: sqlite:///.*mlflow\.db\)\. .*folder's path works here too"
    ) as caught:
        resolve_model(uri)
    assert str(caught.value).startswith(f"{uri}: ")


def test_asking_for_a_model_makes_no_store(store: Path) -> None:
    (store / "mlflow.db").unlink()
    connect()
    with pytest.raises(ValueError, match=r"models:/nobody@champion: there is no tracking store sqlite:///.*mlflow\.db"):
        resolve_model("models:/nobody@champion")
    assert not (store / "mlflow.db").exists()


def test_what_is_no_model_of_ours_is_refused(store: Path) -> None:
    with stage_run("x", quiet()) as run:
        mlflow.log_text("a", "other/a.txt")
    with pytest.raises(ValueError, match="holds no moyun model folder"):
        resolve_model(f"runs:/{run.info.run_id}/other")
