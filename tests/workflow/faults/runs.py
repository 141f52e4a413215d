"""The real pipeline in processes of their own, each written down step by step, and what two such accounts differ in.

A process that has everything imported forks for each attempt: a start takes a tenth of a second instead of ten.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from modules.checkpoint.training_checkpoint import SafeReader
from modules.checkpoint.weights import weights_hash
from modules.data.packing import StepBatch
from modules.system.checksums import damage
from modules.training.callbacks import checkpoints_in
from modules.training.checkpoints.resume import LOCK
from modules.training.checkpoints.run_manifest import CHECKPOINTS
from modules.training.checkpoints.saving import read_progress
from modules.training.lightning_module import LanguageModel
from pipelines.cli.command_line import run_stage
from pipelines.pretrain import pretrain
from tests.helpers.models import ROOT

from .injection import SIGNALS, Fault, Injector

ACCOUNT = "account-0.jsonl"
TRAINED = [
    "model=tiny", "model.num_hidden_layers=1", "model.hidden_size=16", "model.hidden_dropout_prob=0.1",
    "data.path=rows.jsonl", "data.sequence_length=32", "data.cache_dir=cache", "tokenizer.min_frequency=1",
    "train.batch_size=8", "train.learning_rate=0.01", "train.warmup_steps=2", "train.max_epochs=3",
    "train.validate_every_n_steps=4", "train.sample_prompts=[春]", "generation.max_new_tokens=4",
    "trainer.accelerator=cpu", "trainer.progress_bar=false", "tracking.tracking_uri=sqlite:///mlflow.db",
    "tracking.log_system_metrics=false", "output_dir=out",
]  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A way of training that a fault must not change the outcome of."""

    name: str
    arguments: tuple[str, ...]


VARIANTS = [
    Variant("plain", ()),
    Variant("several passes a step and a validation", ("train.micro_batch_tokens=40", "data.validation_fraction=0.3")),
    Variant("a checkpoint every step", ("train.save_every_n_steps=1", "train.save_top_k=2")),
    Variant("rows in quarantine", ("data.path=some-bad.jsonl", "data.bad_rows=quarantine", "data.max_bad_rows=0.1")),
    Variant("early stopping", ("train.early_stopping_patience=1", "train.learning_rate=0.3", "train.max_epochs=5")),
    Variant("chosen by texts", ("train.select_by=repetition", "generation.max_new_tokens=8", "task.rows=3")),
]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Puts a file system of 8 MB where the run writes to, where that is allowed."""
    out = folder / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(out)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0 if shutil.which("mount") else False
    try:
        yield
    finally:
        if mounted:
            shutil.copytree(out, folder / "kept", symlinks=True)
            subprocess.run(["umount", str(out)], check=True)


ON_TWO = Variant("2 processes", ("trainer.devices=2", "train.save_every_n_steps=2", "train.max_epochs=40"))


def attempt(folder: Path, variant: Variant, fault: Fault | None = None) -> int:
    """Runs pretrain in `folder`, in a process of its own; its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(folder)
            output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            torch.set_num_threads(1)
            take_notes(folder / ACCOUNT)
            if fault:
                Injector(fault).install()
            run_stage("pretrain", pretrain, [*TRAINED, *variant.arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt_on_two(folder: Path, variant: Variant, fault: Fault | None = None) -> int:
    """The same on two processes, with the real launcher; a signal goes to it or to one of them, so many ms after."""
    command = [sys.executable, "-m", "pipelines.pretrain", *TRAINED, *variant.arguments]
    site = Path(__file__).parent / "site"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    with (folder / "output.txt").open("ab") as output:
        launcher = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        if fault:
            wait_until(lambda: launcher.poll() is not None or (folder / "out" / CHECKPOINTS / "last.ckpt").exists())
            time.sleep(fault.number / 1000)
            hit(launcher, fault)
        return launcher.wait()
    finally:
        launcher.kill()
        launcher.wait()
        wait_until(lambda: not in_use(folder / "out"))  # what a killed launcher left ends with it, after a checkpoint


def hit(launcher: subprocess.Popen[bytes], fault: Fault) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        target = psutil.Process(launcher.pid)
        if fault.place != "the launcher":
            ranks = [p for p in target.children() if p.environ().get("RANK") == fault.place.removeprefix("rank ")]
            target = ranks[0] if ranks else target
        target.send_signal(SIGNALS[fault.kind])


def in_use(out: Path) -> bool:
    try:
        with (out / LOCK).open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("nothing happened in two minutes")
        time.sleep(0.01)


def send_the_rest(folder: Path) -> None:
    """What a run that was killed when all was done couldn't send any more."""
    command = [sys.executable, "-m", "pipelines.sync"]
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True)


def take_notes(path: Path) -> None:
    """A line for each step that was taken: its rows, loss and learning rate, each as it was to the last bit."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    training_step, log_step = LanguageModel.training_step, LanguageModel.log_step
    rows: list[int] = []

    def noted_step(self: LanguageModel, step: StepBatch, batch_idx: int) -> None:
        rows[:] = [int(document) for batch in step.micro_batches for document in batch.documents]
        training_step(self, step, batch_idx)

    def noted_log(self: LanguageModel, loss: float, taken: StepBatch, norm: float, rate: float) -> None:
        line = {"step": self.global_step, "rows": rows, "loss": loss.hex(), "norm": norm.hex(), "rate": rate.hex()}
        os.write(notes, json.dumps(line).encode() + b"\n")
        log_step(self, loss, taken, norm, rate)

    LanguageModel.training_step, LanguageModel.log_step = noted_step, noted_log  # type: ignore[method-assign]


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves."""

    steps: dict[tuple[str, int], dict[str, Any]]
    """By file (one a rank) and number."""
    repeated_otherwise: list[tuple[str, int]]
    """Steps that came again after a resume, and not as before."""
    metrics: list[tuple[str, int, float]]
    """MLflow's: name, step, value."""
    tensors: dict[str, bytes]
    """Weights and optimizer in the last checkpoint."""
    validations: str
    """As JSON: a measure of texts may be NaN, which isn't equal to itself."""
    status: list[str]
    """Of the run; one that was broken off before it had a folder is another."""
    weights: str
    left_over: list[str]
    """Names of what should have gone."""


def outcome(folder: Path) -> Outcome:
    steps: dict[tuple[str, int], dict[str, Any]] = {}
    otherwise = []
    notes = [(path.name, json.loads(line)) for path in folder.glob("account-*") for line in path.open()]
    for name, note in notes:
        if steps.setdefault((name, note["step"]), note) != note:
            otherwise.append((name, note["step"]))
    assert steps, "nobody took notes"
    out = folder / "out"
    last = list(checkpoints_in(out / CHECKPOINTS).values())[-1]
    return Outcome(
        steps,
        otherwise,
        metrics_in(folder / "mlflow.db"),
        dict(tensors_of(last)),
        json.dumps(read_progress(last)["validations"]),
        values(folder / "mlflow.db", "select status from runs order by start_time desc limit 1"),
        weights_hash(out / "model"),
        sorted(str(path.relative_to(folder)) for path in out.rglob(".*") if path.name not in (".lock", ".metadata")),
    )


MEASURED = ("cost/seconds", "cost/peak_memory_gib", "cost/cpu_energy_wh", "cost/gpu_energy_wh")


def metrics_in(store: Path) -> list[tuple[str, int, float]]:
    """The last run's (one that was broken off before it had a folder is another), but for what is measured."""
    last = "select run_uuid from runs order by start_time desc limit 1"
    kept = f"run_uuid = ({last}) and key not like '%per_second' and key not in {MEASURED}"
    return values(store, f"select key, step, value from metrics where {kept} order by 1, 2, 3")


def values(store: Path, query: str) -> list[Any]:
    with sqlite3.connect(store) as connection:
        return connection.execute(query).fetchall()


def tensors_of(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from modules.checkpoint.training_checkpoint import stored_tensor

    for name, tensor in SafeReader(checkpoint).read_metadata().state_dict_metadata.items():
        if isinstance(tensor, TensorStorageMetadata):
            yield name, stored_tensor(checkpoint, name, tensor).read().numpy().tobytes()


def lost(expected: Outcome, found: Outcome) -> list[str]:
    """In words, what is missing or different."""
    names = ("steps", "metrics", "tensors", "validations", "status", "weights")
    complaints = [f"{name} differ" for name in names if getattr(expected, name) != getattr(found, name)]
    if found.repeated_otherwise:
        complaints.append(f"steps {found.repeated_otherwise} came again otherwise")
    return complaints + [f"{name} was left" for name in found.left_over]


def checkpoint_lost(folder: Path, newest_before: int) -> str | None:
    """After a fault: whether there is a sound checkpoint at least as new as one that was there before it."""
    checkpoints = checkpoints_in(folder / "out" / CHECKPOINTS)
    damaged = [path.name for path in checkpoints.values() if damage(path)]
    if damaged:
        return f"{', '.join(damaged)} damaged"
    if newest_before and max(checkpoints, default=0) < newest_before:
        return f"step {newest_before} gone"
    return None
