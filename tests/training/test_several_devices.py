"""Several processes on this machine: every layout trains alike, resumes the others' checkpoints, and ends cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import torch

from modules.checkpoint.loading import load_model, open_model, open_tokenizer, verify_model
from modules.config.loader import ConfigError, load_config
from modules.model.parallel import check_tensor_parallel
from modules.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from modules.training.callbacks import SameOnAllRanks
from pipelines.cli.launch import require_processes
from pipelines.pretrain import pretrain
from tests.helpers.layouts import train_layout
from tests.helpers.models import ROOT, make_config, make_decoder, save_model

LAYOUTS = {
    "ddp-2": ["trainer.devices=2"],
    "fsdp-2": ["trainer.devices=2", "trainer.strategy=fsdp"],
    "tp-2": ["trainer.devices=2", "trainer.strategy=fsdp", "trainer.tensor_parallel=2"],
    "fsdp-2 × tp-2": ["trainer.devices=4", "trainer.strategy=fsdp", "trainer.tensor_parallel=2"],
}
MODEL = ["model=tiny", "model.num_hidden_layers=2", "model.hidden_size=32"]
TRAIN = [
    "data.sequence_length=96", "train.batch_size=15", "train.micro_batch_tokens=300", "train.max_steps=10",
    "train.validate_every_n_steps=5", "train.schedule=constant", "train.warmup_steps=2", "generation.max_new_tokens=5",
    "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.progress_bar=false", "tracking.log_system_metrics=false",
]  # fmt: skip
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def poems_file(tmp_path_factory: pytest.TempPathFactory, poems: dict[str, list[str]]) -> Path:
    path = tmp_path_factory.mktemp("rows") / "poems.jsonl"
    lines = (json.dumps({"src_txt": poem}, ensure_ascii=False) for poem in poems["train"])
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, poems_file: Path) -> Train:
    """train(*arguments) → what rank 0 of trainer.devices processes wrote down (helpers/layouts.py)."""

    def run(*arguments: str) -> dict[str, Any]:
        processes = next((a.partition("=")[2] for a in arguments if a.startswith("trainer.devices=")), "1")
        given = [f"data.path={poems_file}", *TRAIN, *arguments]
        return train_layout(tmp_path_factory.mktemp("layout"), int(processes), given)

    return run


@pytest.fixture(scope="module")
def alone(train: Train) -> dict[str, Any]:
    """Ten steps on one process."""
    return train(*MODEL)


@pytest.fixture(scope="module")
def longer(train: Train) -> dict[str, Any]:
    """Thirteen, in one go; the tenth lies in the middle of an epoch."""
    return train(*MODEL, "train.max_steps=13")


def curve(result: dict[str, Any], *names: str) -> np.ndarray:
    """(steps, 1 + names): the step, then the metrics."""
    return np.array([[row["step"], *(row[name] for name in names)] for row in result["rows"] if names[0] in row])


@pytest.fixture
def start_folder(tmp_path: Path) -> Path:
    """A model folder to put adapters on."""
    tokenizer = train_tokenizer(["白日依山尽，黄河入海流。"], min_frequency=1)
    return save_model(tmp_path / "start", make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})


@pytest.fixture(scope="module", params=LAYOUTS)
def together(request: pytest.FixtureRequest, train: Train) -> dict[str, Any]:
    return train(*MODEL, *LAYOUTS[request.param], "train.sample_prompts=[春]")


def test_every_layout_trains_like_one_process(alone: dict[str, Any], together: dict[str, Any]) -> None:
    expected, found = (curve(result, "train/loss", "grad_norm", "lr") for result in (alone, together))
    assert len(expected) == 10
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gauge = ("val/loss", "val/end_of_text_nll", "val/end_of_text_found", "val/end_of_text_early")
    np.testing.assert_allclose(curve(together, *gauge), curve(alone, *gauge), rtol=1e-5)


def test_one_process_goes_on_from_any_layouts_checkpoint(
    together: dict[str, Any], longer: dict[str, Any], train: Train
) -> None:
    rest = train(*MODEL, "train.max_steps=13", f"train.resume_from={together['checkpoint']}")
    np.testing.assert_allclose(curve(rest, "train/loss"), curve(longer, "train/loss")[10:], rtol=1e-5)


def test_several_go_on_from_one_processs_checkpoint(
    alone: dict[str, Any], longer: dict[str, Any], train: Train
) -> None:
    resume = f"train.resume_from={alone['folder']}/checkpoints/last.ckpt"
    rest = train(*MODEL, "train.max_steps=13", resume, *LAYOUTS["fsdp-2 × tp-2"])
    np.testing.assert_allclose(curve(rest, "train/loss"), curve(longer, "train/loss")[10:], rtol=1e-5)


def test_fsdp_in_bf16_trains_like_float32_to_its_precision(alone: dict[str, Any], train: Train) -> None:
    found = train(*MODEL, *LAYOUTS["fsdp-2"], "trainer.precision=bf16-mixed")
    np.testing.assert_allclose(curve(found, "train/loss"), curve(alone, "train/loss"), rtol=2e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-true", 2e-3)])
def test_adapters_train_alike_on_several_devices(
    precision: str, tolerance: float, start_folder: Path, train: Train
) -> None:
    arguments = ["model=null", f"train.init_from={start_folder}", "train.learning_rate=1e-2", "lora.rank=4"]
    one, two = (train(*arguments, f"trainer.precision={precision}", *layout) for layout in ([], LAYOUTS["fsdp-2"]))
    np.testing.assert_allclose(curve(two, "train/loss"), curve(one, "train/loss"), rtol=tolerance)


@pytest.mark.parametrize("layout", ["ddp-2", "fsdp-2", "tp-2"])
def test_muon_trains_alike_on_several_devices(layout: str, train: Train) -> None:
    """To the precision of its orthogonalization, which is bf16's."""
    keys = [*MODEL, "train.optimizer=muon", "train.learning_rate=1e-2", "train.max_steps=6"]
    one, two = train(*keys), train(*keys, *LAYOUTS[layout])
    np.testing.assert_allclose(curve(two, "train/loss"), curve(one, "train/loss"), rtol=1e-4)


# --- the command ---


def command(poems_file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.pretrain", f"data.path={poems_file}", *MODEL, *TRAIN, *arguments]


def test_the_command_starts_its_processes_and_tells_once(store: Path, poems_file: Path) -> None:
    arguments = [*LAYOUTS["fsdp-2"], "output_dir=out", "train.sample_prompts=[春]"]
    done = subprocess.run(command(poems_file, *arguments), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model folder") == 1
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["cfg.trainer.devices"] == "2"
    assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")) == 10
    assert verify_model(store / "out" / "model") <= 1e-5
    # A checkpoint of both processes is a model too: what the folder was put together from.
    checkpoint = store / "out" / "checkpoints" / "last.ckpt"
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    assert open_tokenizer(checkpoint).fingerprint == load_tokenizer(store / "out" / "model").fingerprint
    folder = load_model(store / "out" / "model").state_dict()
    for name, tensor in open_model(checkpoint).weights.items():
        torch.testing.assert_close(tensor.read(), folder[name], rtol=0, atol=0)


@pytest.fixture
def job(
    request: pytest.FixtureRequest, store: Path, poems_file: Path
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A long job of two processes that is past its first checkpoint, and its rank 1."""
    arguments = [
        *LAYOUTS[getattr(request, "param", "ddp-2")],
        "train.max_steps=100000",
        "output_dir=out",
        "trainer.process_group_timeout=5",
    ]
    agent = subprocess.Popen(
        command(poems_file, *arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(lambda: (store / "out" / "checkpoints" / "last.ckpt").exists() or agent.poll() is not None)
        assert agent.poll() is None, agent.communicate()[0][-3000:]
        workers = [p for p in psutil.Process(agent.pid).children() if "pipelines.pretrain" in p.cmdline()]
        yield agent, next(worker for worker in workers if worker.environ()["RANK"] == "1")
    finally:
        for process in [*psutil.Process(agent.pid).children(recursive=True), agent] if agent.poll() is None else []:
            process.kill()
        agent.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("sent", "said"),
    [(signal.SIGKILL, "rank 1 of 2 ended first (SIGKILL)"), (signal.SIGSTOP, "rank 0 of 2 ended first (exit code 1)")],
)
def test_a_rank_that_dies_or_hangs_ends_the_job(
    job: tuple[subprocess.Popen[str], psutil.Process], sent: signal.Signals, said: str
) -> None:
    agent, rank_1 = job
    rank_1.send_signal(sent)
    output, _ = agent.communicate(timeout=120)
    assert agent.returncode == 1
    assert said in output
    assert "Traceback" not in output
    if sent == signal.SIGSTOP:
        assert "rank 0: another rank has died, or hasn't answered for 5 s (trainer.process_group_timeout)" in output
        (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert run.info.status == "FAILED"
    assert not rank_1.is_running() or rank_1.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("job", ["fsdp-2"], indirect=True)
def test_sigterm_ends_all_processes_after_a_checkpoint(job: tuple[subprocess.Popen[str], psutil.Process]) -> None:
    """Of a step that all of them have finished."""
    agent, rank_1 = job
    agent.terminate()
    output, _ = agent.communicate(timeout=20)  # not the 30 s after which they would be killed
    assert agent.returncode == 143
    assert output.count("stopped at step ") == 1
    assert "has died" not in output
    assert not rank_1.is_running() or rank_1.status() == psutil.STATUS_ZOMBIE
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "KILLED"


def test_other_ranks_than_the_first_only_train(store: Path, monkeypatch: pytest.MonkeyPatch, poems_file: Path) -> None:
    """No run of their own, nothing written, and nothing done where nothing is to be done."""
    monkeypatch.setenv("RANK", "1")
    result = pretrain(load_config("pretrain", [f"data.path={poems_file}", *MODEL, *TRAIN, "dry_run=true"]))
    assert (result.run_id, result.model) == ("", None)
    assert not mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [path.name for path in store.iterdir()] == ["mlflow.db"]


def test_as_many_processes_as_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("pretrain", ["trainer.devices=2"]).trainer
    require_processes(config)  # not started by torchrun: the command does it itself
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    require_processes(config)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        ValueError, match=r"4 processes were started, but trainer\.devices=2 × trainer\.nodes=1 makes 2"
    ):
        require_processes(config)


def test_ranks_that_read_other_data_are_refused() -> None:
    class Strategy:
        def broadcast(self, facts: tuple[str, int]) -> tuple[str, int]:
            return ("abc", 10)

    trainer: Any = SimpleNamespace(strategy=Strategy())
    SameOnAllRanks(("abc", 10)).on_fit_start(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give all machines the same files"):
        SameOnAllRanks(("abd", 10)).on_fit_start(trainer, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heads", "vocabulary", "parts", "complaint"),
    [(3, 300, 2, "=2 doesn't divide the model's 3 heads"), (4, 9, 4, "=4 leaves devices without any of 9 token ids")],
)
def test_models_that_cannot_be_cut_are_refused(heads: int, vocabulary: int, parts: int, complaint: str) -> None:
    check_tensor_parallel(make_config(4021), 4)
    with pytest.raises(ValueError, match=complaint):
        check_tensor_parallel(make_config(vocabulary, num_attention_heads=heads), parts)


@pytest.mark.parametrize(
    ("stage", "arguments", "complaint"),
    [
        (
            "pretrain",
            ["trainer.devices=3", "trainer.strategy=fsdp", "trainer.tensor_parallel=2"],
            "must divide devices",
        ),
        ("pretrain", ["trainer.devices=2", "trainer.tensor_parallel=2"], "tensor_parallel=2 needs strategy=fsdp"),
        (
            "pretrain",
            ["trainer.devices=8", "trainer.strategy=fsdp", "trainer.tensor_parallel=8"],
            r"tensor_parallel \(8\) must divide model.num_attention_heads \(4\)",
        ),
        ("main", ["pretrain.trainer.devices=2"], "main runs its stages in one process"),
        (
            "pretrain",
            ["trainer.devices=2", "trainer.strategy=fsdp", "train.optimizer=adafactor", "train.learning_rate=1e-2"],
            "train.optimizer=adafactor and trainer.strategy=fsdp exclude each other",
        ),
    ],
)
def test_layouts_that_cannot_be_are_refused(stage: str, arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(stage, ["model=tiny", *arguments])
