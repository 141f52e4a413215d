"""Every size of the family on a CPU, with random weights: trained, run or planned, each in a process of its own.

python -m pytest tests/workflow/test_sizes.py -m slow -s

prints the table of docs/sizes.md; needs 24 GiB and 25 GB of disk
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from modules.checkpoint.loading import verify_model
from modules.config.loader import load_config
from modules.model.decoder import parameter_count
from tests.helpers.models import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GIB = 2**30
VOCABULARY = {"base": 21_128, "large": 21_128}
"""The published checkpoints' ids: BERT's, and from 1.3B up jieba and BPE."""
LARGE_VOCABULARY = 51_200
ROWS = [f"data.path={ROOT / 'data' / 'poems-300.jsonl.gz'}", "data.sequence_length=128", "data.over_long=cut"]
QUIET = ["trainer.accelerator=cpu", "trainer.progress_bar=false", "tracking.log_system_metrics=false"]


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    errors: str
    found: dict[str, Any]

    @property
    def peak(self) -> float:
        """GiB resident, files that were mapped and touched included."""
        return self.found["peak"] / GIB

    @property
    def seconds(self) -> float:
        return self.found["seconds"]


@dataclass(frozen=True)
class Workplace:
    """An empty folder with a tracking store, in which commands run."""

    folder: Path

    def run(self, work: str, *arguments: Any) -> Done:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "2",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
        }
        result = self.folder / "result.json"
        command = [sys.executable, str(ROOT / "tests" / "size_worker.py"), str(result), work, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        return Done(done.returncode, done.stdout, done.stderr, found)

    def must_run(self, work: str, *arguments: Any) -> Done:
        done = self.run(work, *arguments)
        assert done.code == 0, f"{work}: {done.code}\n{done.errors[-3000:]}"
        return done


@pytest.fixture
def workplace(store: Path) -> Iterator[Workplace]:
    yield Workplace(store)
    for path in store.iterdir():  # pytest would keep three of them, gigabytes each
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def ids_of(size: str) -> int:
    return VOCABULARY.get(size, LARGE_VOCABULARY)


def gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def tell(size: str, what: str, done: Done, folder: Path | None = None) -> None:
    """A row of docs/sizes.md."""
    model = load_config("pretrain", [f"model={size}", f"model.vocab_size={ids_of(size)}"]).model
    disk = f"{gigabytes(folder):.2f} GB" if folder else "–"
    cells = [size, f"{parameter_count(model):,}", what, disk, f"{done.peak:.2f} GiB", f"{done.seconds:.0f} s"]
    print(f"| {' | '.join(cells)} |", flush=True)


@pytest.mark.parametrize("size", ["base", "large"])
def test_a_fine_tuning_step_and_text_from_what_came_out(size: str, workplace: Workplace) -> None:
    start, out = workplace.folder / "start", workplace.folder / "out"
    written = workplace.must_run("write", start, size, ids_of(size), "float32")
    tell(size, "random weights written, float32", written, start)
    steps = ["train.batch_size=4", "train.max_steps=2", "train.sample_prompts=[]", "data.max_rows=40"]
    steps += ["train.schedule=constant", "train.warmup_steps=1", "train.learning_rate=1e-4"]
    keys = [f"train.init_from={start}", *ROWS, *steps, *QUIET, f"output_dir={out}"]
    trained = workplace.must_run("finetune", *keys)
    (run,) = MlflowClient().search_runs(["1"])
    losses = [metric.value for metric in MlflowClient().get_metric_history(run.info.run_id, "train/loss")]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    assert losses[1] < losses[0]
    tell(size, f"fine-tuned, 2 steps of 4 rows, float32 (planned: {memory_of(trained)})", trained, out / "model")
    assert verify_model(out / "model") <= 1e-3
    generated = workplace.must_run("generate", out / "model", 16, "auto")
    assert len(generated.found["ids"]) == 16
    assert generated.found["dtype"] == "torch.float32"
    tell(size, f"16 tokens, float32 ({account(generated)})", generated, out / "model")


def account(done: Done) -> str:
    """Where the time goes."""
    return ", ".join(f"{what} {seconds:.1f} s" for what, seconds in done.found["account"].items())


def held_once(done: Done, folder: Path) -> str:
    """The weights stay mapped from their file; query_key_value alone, a quarter of a layer, is laid out anew.

    Returns how far the process grew, as a multiple of the weights' size.
    """
    weights = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    growth = done.found["growth"] / weights  # of loading and running: what is mapped comes into memory when it is used
    assert growth < 1.35
    return f"weights × {growth:.2f}"


def test_1_3b_in_bf16_writes_text(workplace: Workplace) -> None:
    folder = workplace.folder / "1.3b"
    written = workplace.must_run("write", folder, "1.3b", LARGE_VOCABULARY, "bfloat16")
    tell("1.3b", "random weights written, bfloat16", written, folder)
    for dtype in ("auto", "bfloat16"):
        done = workplace.must_run("generate", folder, 8, dtype)
        assert len(done.found["ids"]) == 8
        assert done.found["dtype"] == "torch.bfloat16"
        assert done.peak < 24
        tell("1.3b", f"8 tokens, {dtype} ({account(done)}; {held_once(done, folder)})", done, folder)
    lora = ["lora.rank=8", "trainer.precision=bf16-true", "trainer.activation_checkpointing=full"]
    common = [f"train.init_from={folder}", *ROWS, *QUIET, "train.batch_size=4", "train.max_steps=1"]
    common += ["train.sample_prompts=[]", "data.max_rows=40"]
    for name, keys in {"in full": [], "with LoRA": lora}.items():
        plan = workplace.must_run("finetune", *common, *keys, "dry_run=true", "trainer.device_memory=80")
        tell("1.3b", f"fine-tuning {name} planned: {memory_of(plan)}", plan)
    out = workplace.folder / "out"
    trained = workplace.must_run("finetune", *common, *lora, f"output_dir={out}")
    assert verify_model(out / "model") <= 1e-3
    tell("1.3b", "fine-tuned with LoRA, a step of 4 rows, bfloat16", trained, out / "model")


def test_2_7b_in_bf16_runs_forward(workplace: Workplace) -> None:
    folder = workplace.folder / "2.7b"
    written = workplace.must_run("write", folder, "2.7b", LARGE_VOCABULARY, "bfloat16")
    tell("2.7b", "random weights written, bfloat16", written, folder)
    done = workplace.must_run("forward", folder, 32)
    assert done.found["finite"]
    assert (done.found["shape"], done.found["dtype"]) == ([1, 32, LARGE_VOCABULARY], "torch.bfloat16")
    tell("2.7b", f"forward pass of 32 tokens, bfloat16 ({account(done)}; {held_once(done, folder)})", done, folder)


def memory_of(plan: Done) -> str:
    found = re.search(r"memory a device\s+([\d.]+ \w+)", plan.output)
    assert found, plan.output
    return found[1]


@pytest.mark.parametrize(("size", "nodes", "parts"), [("13b", 1, 1), ("30b", 8, 1), ("175b", 8, 8)])
def test_what_fits_no_machine_here_is_planned(size: str, nodes: int, parts: int, workplace: Workplace) -> None:
    layout = ["trainer.devices=8", f"trainer.nodes={nodes}", f"trainer.tensor_parallel={parts}"]
    memory = ["trainer.strategy=fsdp", "trainer.precision=bf16-mixed", "trainer.activation_checkpointing=full"]
    common = [f"model={size}", f"model.vocab_size={LARGE_VOCABULARY}", *ROWS, *QUIET, "dry_run=true"]
    for stage in ("pretrain", "finetune"):
        planned = workplace.run(stage, *common, *layout, *memory, "trainer.device_memory=80")
        assert planned.code == 0, planned.errors
        assert planned.peak < 2
        assert "memory a device" in planned.output
    tell(size, f"planned on {8 * nodes} × 80 GiB: {memory_of(planned)} a device", planned)
    refused = workplace.run("pretrain", *common, "trainer.device_memory=24")
    assert refused.code == 1
    assert "would need" in refused.errors
    assert "This would do" in refused.errors
    assert "trainer.devices=" in refused.errors
    assert refused.peak < 2
    tell(size, f"refused on one of 24 GiB: {refused.errors.strip().split(': ', 1)[1]}", refused)
