"""The whole way through `mlflow run`, then the registered model behind a real server on 127.0.0.1."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import nbclient
import nbformat
import pytest
from mlflow import MlflowClient

from modules.checkpoint.loading import verify_model
from modules.tracking.registry import resolve_model
from pipelines import pipeline
from tests.helpers.models import ROOT

SMALL = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2"]
STAGES = ["prepare", "pretrain", "finetune", "evaluate", "register"]


@dataclass
class Workplace:
    folder: Path
    """With spaces in its name, as some people's are."""

    @property
    def environment(self) -> dict[str, str]:
        binaries = str(Path(sys.executable).parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        return kept | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.1",
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        }

    def mlflow_run(self, *arguments: str, entry: str = "main") -> subprocess.CompletedProcess[str]:
        kept = f"tracking.spool_dir={self.folder / 'tracking'}"  # `mlflow run` works in the project's own folder
        values = [part for argument in (*arguments, kept) for part in ("-P", argument)]
        command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry, "--env-manager", "local", *values]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=280, check=False
        )

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = f"tracking.spool_dir={self.folder / 'tracking'}"
        command = [sys.executable, "-m", *arguments, kept]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)


def main_arguments(folder: Path, name: str) -> list[str]:
    """Small enough for seconds; everything that is written goes to the test's own folder."""
    return [
        f"source={ROOT / 'data' / 'poems-300.jsonl.gz'}",
        "from_scratch=true",
        "prepare.validation_fraction=0.1",
        "prepare.test_fraction=0.1",
        *(f"model.{value}" for value in SMALL),
        *(f"{stage}.train.max_steps=4" for stage in ("pretrain", "finetune")),
        *(f"{stage}.train.validate_every_n_steps=3" for stage in ("pretrain", "finetune")),
        *(f"{stage}.generation.max_new_tokens=8" for stage in ("pretrain", "finetune", "evaluate")),
        f"prepare.output_dir={folder / 'prepared'}",
        *(f"{stage}.output_dir={folder / name / stage}" for stage in ("pretrain", "finetune")),
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("a work place"))


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> str:
    """What `mlflow run .` printed."""
    done = workplace.mlflow_run(*main_arguments(workplace.folder, "first"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def client(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = workplace.environment["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return MlflowClient()


def ours(client: MlflowClient) -> list[str]:
    """The experiment that all runs are in."""
    found = client.get_experiment_by_name("moyun")
    assert found
    return [str(found.experiment_id)]


def test_stages_are_nested_runs_of_one_run(first: str, client: MlflowClient) -> None:
    (command,) = client.search_runs(["0"])
    runs = client.search_runs(ours(client))
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_stage = {run.data.tags["stage"]: run for run in runs}
    assert len(runs) == len(STAGES) + 1 == len(by_stage)
    main = by_stage.pop("main")
    assert {run.data.tags["mlflow.parentRunId"] for run in by_stage.values()} == {main.info.run_id}
    assert sorted(by_stage) == sorted(STAGES)
    assert command.data.tags["end"] == f"went on in run {main.info.run_id}"
    scores = ("val/loss", "test/perplexity_per_char")
    assert [main.data.metrics[name] for name in scores] == [
        by_stage[stage].data.metrics[name] for stage, name in zip(("finetune", "evaluate"), scores, strict=True)
    ]
    assert main.data.tags["registered_version"] == "moyun 1"


def test_training_runs_tell_where_they_come_from(first: str, client: MlflowClient) -> None:
    (run,) = client.search_runs(ours(client), "tags.stage = 'finetune'")
    assert run.data.params["cfg.train.max_steps"] == "4"
    facts = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/environment.json"))
    assert facts["git.commit"] == run.data.tags["mlflow.source.git.commit"]
    assert {"torch", "mlflow"} <= facts["versions"].keys()
    for name in ("train/loss", "train/tokens_per_second", "lr", "grad_norm"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [metric.step for metric in history] == [1, 2, 3, 4]
    for name in ("val/loss", "val/perplexity_per_char", "val/end_of_text_nll", "val/samples_stopped"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [3, 4]
    assert {entry.dataset.name.rpartition("-")[2] for entry in run.inputs.dataset_inputs} == {"train", "validation"}
    (main,) = client.search_runs(ours(client), "tags.stage = 'main'")
    assert any(name.startswith("system/") for name in main.data.metrics)
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "loss_curve.png", "samples.json"} <= artifacts


def test_the_summary_says_what_matters(first: str) -> None:
    for text in (
        "before fine-tuning", "after fine-tuning", "floor: trigram", "n-grams of its fine-tuning rows", "白日依山尽，",
        "moyun version 1",
    ):  # fmt: skip
        assert text in first
    for command in ("mlflow ui", "python -m pipelines.generate", "mlflow models serve"):
        assert command in first


def champion(client: MlflowClient) -> str:
    return str(client.get_model_version_by_alias("moyun", "champion").version)


def test_champion_moves_only_to_what_is_better(first: str, workplace: Workplace, client: MlflowClient) -> None:
    (run,) = client.search_runs(ours(client), "tags.stage = 'pretrain'")
    worse = resolve_model(f"{workplace.folder}/first/pretrain/model")
    assert worse.is_dir(), run
    done = workplace.python(
        "pipelines.register", f"model={worse}", f"data.path={workplace.folder / 'prepared'}", "model_name=moyun"
    )
    assert done.returncode == 0, done.stderr
    assert champion(client) == "1"
    assert client.get_model_version("moyun", "2").tags["test_perplexity_per_char"]
    again = workplace.python(
        "pipelines.register", "model=models:/moyun@champion", f"data.path={workplace.folder / 'prepared'}"
    )
    assert again.returncode == 0, again.stderr
    assert "stays with version 1, which has these weights" in again.stdout
    assert champion(client) == "1"
    assert {int(version.version) for version in client.search_model_versions("name = 'moyun'")} == {1, 2}


def test_a_failing_stage_fails_the_command_and_its_run(workplace: Workplace, client: MlflowClient) -> None:
    done = workplace.mlflow_run("data.path=nowhere.csv", "model=tiny", entry="finetune")
    assert done.returncode != 0
    assert "nowhere.csv" in done.stderr
    (run,) = client.search_runs(["0"], "attributes.status = 'FAILED'")
    assert run.data.params["data.path"] == "nowhere.csv"
    assert run.data.tags["end"].startswith("refused: ")


def test_a_misspelt_key_stops_everything_at_once(workplace: Workplace) -> None:
    done = workplace.mlflow_run("pretrain.train.max_stepz=4")
    assert done.returncode != 0
    assert "did you mean pretrain.train.max_steps?" in done.stderr


def test_the_registered_model_is_complete_and_sound(first: str, client: MlflowClient) -> None:
    folder = resolve_model("models:/moyun@champion")
    assert verify_model(folder) <= 1e-5
    text = pipeline("text-generation", model="models:/moyun@champion")("春", seed=1, max_new_tokens=4)["text"]
    assert text.startswith("春")


def pictures_of(executed: nbformat.NotebookNode) -> list[Any]:
    return [out for cell in executed.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(first: str, workplace: Workplace, client: MlflowClient, path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without outputs
    executed = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(workplace.folder)}}).execute()
    assert (
        len(pictures_of(executed)) == {"data": 3, "evaluation": 2, "quickstart": 2, "runs": 4, "serving": 1}[path.stem]
    )


def test_runs_are_shown_where_nothing_was_pretrained(first: str, workplace: Workplace, client: MlflowClient) -> None:
    """What `make demo` leaves, the second one too: an evaluation that wasn't done again has no scores."""
    experiment = client.get_experiment_by_name("moyun")
    assert experiment
    tags = {"stage": "evaluate", "moyun.reused_from": "0" * 32}
    reused = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    client.set_terminated(reused)
    notebook = nbformat.read(ROOT / "notebooks" / "runs.ipynb", as_version=4)
    (sweep,) = [at for at, cell in enumerate(notebook.cells) if cell.source.startswith("## A sweep")]
    without = nbformat.v4.new_code_cell('runs = runs[runs["tags.stage"] != "pretrain"]')
    scored = nbformat.v4.new_code_cell("import math\nassert all(map(math.isfinite, scores['model'])), scores")
    notebook.cells = [*notebook.cells[:2], without, *notebook.cells[2:sweep], scored]
    executed = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(workplace.folder)}}).execute()
    assert len(pictures_of(executed)) == 2  # the fine-tuning's loss, and scores
    client.delete_run(reused)


@pytest.fixture(scope="module")
def server(first: str, workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` in a folder that holds no code; stopped by its own pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = ["models", "serve", "-m", "models:/moyun@champion", "--env-manager", "local", "-p", str(port)]
    environment = workplace.environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    log = (elsewhere / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, "-h", "127.0.0.1"],
        cwd=elsewhere, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            assert process.poll() is None, (elsewhere / "log.txt").read_text()
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)
        log.close()


def post(server: str, body: Any) -> tuple[int, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{server}/invocations", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.server
def test_served_text_equals_that_of_the_command(server: str, workplace: Workplace) -> None:
    params = {"temperature": 0.0, "max_new_tokens": 12}
    status, answer = post(server, {"inputs": {"src_txt": ["白日依山尽，", "春"]}, "params": params})
    assert status == 200, answer
    for prompt, served in zip(["白日依山尽，", "春"], answer["predictions"], strict=True):
        arguments = ["generation.temperature=0", "generation.max_new_tokens=12", "generation.top_p=1"]
        done = workplace.python("pipelines.generate", prompt, "model=models:/moyun@champion", *arguments)
        assert done.stdout == served["text"] + "\n", done.stderr


@pytest.mark.server
def test_parameters_reach_the_model(server: str) -> None:
    def text(**params: Any) -> str:
        status, answer = post(server, {"dataframe_records": [{"src_txt": "春"}], "params": params})
        assert status == 200, answer
        result: str = answer["predictions"][0]["text"]
        return result

    assert text(seed=5, max_new_tokens=20) == text(seed=5, max_new_tokens=20) != text(seed=6, max_new_tokens=20)
    whole = text(temperature=0, max_new_tokens=6)
    assert text(temperature=0, max_new_tokens=6, stop=[whole[3]]) == whole[: whole.index(whole[3], 1)]


@pytest.mark.server
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": {"text": ["春"]}}, "src_txt"),
        ({"inputs": {"src_txt": [5]}}, "src_txt"),
        ({"inputs": {"src_txt": [None]}}, "src_txt"),
        ({"dataframe_records": [{"src_txt": None}]}, "src_txt"),
        ({"dataframe_split": {"columns": ["src_txt"], "data": [[1.5], ["春"]]}}, "src_txt"),
        ({"inputs": {"src_txt": ["春"]}, "params": {"temperature": -1.0}}, "temperature"),
        ({"inputs": {"src_txt": ["春"]}, "params": {"top_p": "x"}}, "top_p"),
        ({"inputs": {"src_txt": ["春"]}, "params": {"max_new_tokens": 0}}, "max_new_tokens"),
        ({"inputs": {"src_txt": ["春" * 500]}}, "positions"),
    ],
)
def test_bad_input_is_a_400_that_says_why(server: str, body: Any, message: str) -> None:
    status, answer = post(server, body)
    assert status == 400
    assert message in answer["message"].rpartition("Error:")[2], answer["message"][-500:]
