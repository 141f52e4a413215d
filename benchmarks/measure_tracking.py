"""What a failing tracking store costs a training run.

python -m benchmarks.measure_tracking [kills=20] [store=postgresql]

For docs/faults.md; ends with 1 where a metric is lost, doubled or out of order, or a bound below is broken. A real
fine-tuning of tiny, whose real `mlflow server` is killed and started again at random (seed=0), beside an undisturbed
one; then its local log is compared with the store. With kills=0: what logging costs while a store works, hangs, fails,
is dead or is back after an outage.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from modules.config.base import TrackingConfig
from modules.config.commands import SyncConfig
from modules.tracking.outbox.store import be_brief
from modules.tracking.tracked_run import TrackedRun
from pipelines.sync import sync
from tests.helpers.faulty_store import Fault, FaultyStore
from tests.helpers.models import ROOT
from tests.helpers.servers import TrackingServer, postgresql_cluster, tracking_server

FLAWS = ("duplicates", "missing", "never logged", "out of order")
FAULTS: tuple[Fault, ...] = ("hangs", "500", "dead")
TINY_STEP = 0.09
"""Seconds."""
LOGGING, RETURN = 0.01, 0.05
"""Of tiny's step, at most: while the store is in one state, and while it is caught up with."""
OUTAGE = 30_000
"""Steps that the store missed."""
CALM = 60
"""Steps before the first kill."""
SETTINGS = {
    "model": "tiny",
    "data.path": str(ROOT / "data" / "poems-300.jsonl.gz"),
    "train.max_epochs": "null",
    "train.validate_every_n_steps": "200",
    "train.sample_prompts": "[]",
    "trainer.accelerator": "cpu",
    "trainer.progress_bar": "false",
}


@contextmanager
def training(uri: str, folder: Path, steps: int) -> Iterator[subprocess.Popen[bytes]]:
    settings = SETTINGS | {"train.max_steps": str(steps), "tracking.tracking_uri": uri}
    command = [sys.executable, "-m", "pipelines.finetune", *(f"{key}={value}" for key, value in settings.items())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # the server's start needs a core too
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def metric_records(folder: Path) -> list[dict[str, Any]]:
    logs = list((folder / "outputs" / "tracking").glob("*/log.jsonl"))
    lines = [line for log in logs for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [record for record in map(json.loads, lines) if record["kind"] == "metrics"]


def step_records(folder: Path) -> list[dict[str, Any]]:
    return [record for record in metric_records(folder) if "train/loss" in record["values"]]


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    while len(step_records(folder)) < step:
        if process.poll() is not None:
            sys.exit((folder / "log.txt").read_text())
        time.sleep(0.2)


def measure_kills(kills: int, store: str, seed: int) -> bool:
    """Whether all that was logged is stored, once and in order."""
    noise = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        place, folder = Path(name), Path(name) / "run"
        database = f"sqlite:///{place / 'mlflow.db'}"
        if store == "postgresql":
            database = stack.enter_context(postgresql_cluster())
        server = stack.enter_context(tracking_server(database, place))
        with training(server.url, folder, 10**6) as process:
            wait_for_step(process, folder, CALM)
            began = time.time_ns() // 1_000_000
            for _ in range(kills):
                server.kill()
                time.sleep(noise.uniform(0, 0.5))
                server.start()
                time.sleep(noise.uniform(0.1, 0.8))
            ended = time.time_ns() // 1_000_000
            process.terminate()
            process.wait()
        sound = compare(server, folder, kills, store)
        calm = [record for record in step_records(folder) if record["t"] < began]
        disturbed = [record for record in step_records(folder) if began < record["t"] < ended]
        before, meanwhile = (1000 * middle(seconds_between(steps)) for steps in (calm, disturbed))
        print(f"  a step takes {before:.0f} ms before, {meanwhile:.0f} ms meanwhile, beside servers that start")
        return sound


def compare(server: TrackingServer, folder: Path, kills: int, store: str) -> bool:
    os.chdir(folder)
    sync(SyncConfig(TrackingConfig(server.url)))
    (run_folder,) = (folder / "outputs" / "tracking").iterdir()
    local: dict[str, list[tuple[int, int, float]]] = {}
    for record in metric_records(folder):
        for name, value in record["values"].items():
            local.setdefault(name, []).append((record["step"], record["t"], value))
    client = MlflowClient(server.url)
    run = client.get_run(run_folder.name)
    counts = dict.fromkeys(("logged", "stored", *FLAWS), 0)
    for name in local.keys() | run.data.metrics.keys():
        stored = [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run_folder.name, name)]
        counts["logged"] += len(local.get(name, []))
        counts["stored"] += len(stored)
        counts["duplicates"] += len(stored) - len(set(stored))
        counts["missing"] += len(set(local.get(name, [])) - set(stored))
        counts["never logged"] += len(set(stored) - set(local.get(name, [])))
        counts["out of order"] += stored != sorted(stored)
    print(f"{store}: {kills} kills, run {run.info.status}, {run.data.tags['end']}")
    print("  metric values: " + ", ".join(f"{number:,} {name}" for name, number in counts.items()))
    return counts["logged"] > 0 and not any(counts[flaw] for flaw in FLAWS)


def seconds_between(records: list[dict[str, Any]]) -> list[float]:
    return [(after["t"] - before["t"]) / 1000 for before, after in pairwise(records)]


def measure_faults() -> bool:
    """What 100 steps a second with 4 metrics each cost beside a store in each state; whether all bounds hold."""
    sound = True
    be_brief()  # as every stage is
    server = FaultyStore()
    mlflow.set_tracking_uri(server.uri)
    for fault in ("none", *FAULTS):
        server.fault = "none"
        run = MlflowClient().create_run("0")
        server.fault = fault
        sound &= measure_logging(tracked(run), f"a server, fault: {fault}", LOGGING)
        server.release()
    server.fault = "none"
    run = tracked(MlflowClient().create_run("0"))
    server.fault = "dead"
    for step in range(OUTAGE):
        run.log_metrics(metrics_of(step), step)
    server.fault = "none"
    run.sender.wake.set()
    sound &= measure_logging(run, f"a server that is back after {OUTAGE:,} steps", RETURN, OUTAGE)
    server.stop()
    mlflow.set_tracking_uri(f"sqlite:///{tempfile.mkdtemp()}/mlflow.db")
    return measure_logging(tracked(MlflowClient().create_run("0")), "an SQLite file", LOGGING) and sound


def tracked(started: Run) -> TrackedRun:
    return TrackedRun(started, Path(tempfile.mkdtemp()), 1)


def metrics_of(step: int) -> dict[str, float]:
    return {"train/loss": 1 / (step + 1), "train/tokens_per_second": 1e4 / 3, "grad_norm": 0.1, "lr": 1e-4}


def middle(values: list[float]) -> float:
    """The mean of the middle half: times are in whole milliseconds."""
    kept = sorted(values)[len(values) // 4 : -(len(values) // 4)]
    return statistics.mean(kept)


def measure_logging(run: TrackedRun, store: str, bound: float, step: int = 0) -> bool:
    """The training thread's time, and what the sending thread computes, in which it may hold Python's lock."""
    waited: list[float] = []
    sent, began, before = run.spool.sent_records, time.perf_counter(), cpu_seconds(run)
    while time.perf_counter() - began < 12:  # two of the sender's rounds
        values = metrics_of(step + len(waited))
        start = time.perf_counter()
        run.log_metrics(values, step + len(waited))
        waited.append(time.perf_counter() - start)
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    share = (cpu_seconds(run) - before) / seconds
    rate = (run.spool.sent_records - sent) / seconds
    run.abandon()
    mean, slow = 1e6 * statistics.mean(waited), 1e6 * statistics.quantiles(waited, n=100)[98]
    print(f"{store}: {mean:.0f} µs a step in the training thread (p99 {slow:.0f}), sending thread busy {share:.2%}")
    # While it catches up it computes for a share of the time, otherwise for so much a step.
    cost = 1e-6 * mean / TINY_STEP + (share if step else share * seconds / len(waited) / TINY_STEP)
    print(f"  {rate:,.0f} steps a second sent; at most {cost:.2%} of tiny's step (bound: {bound:.0%})")
    return cost <= bound


def cpu_seconds(run: TrackedRun) -> float:
    thread = run.sender.thread.native_id
    return next(used.user_time + used.system_time for used in psutil.Process().threads() if used.id == thread)


def main(*arguments: str) -> None:
    given = {"kills": "20", "store": "sqlite", "seed": "0"} | dict(argument.split("=", 1) for argument in arguments)
    kills = int(given["kills"])
    sound = measure_kills(kills, given["store"], int(given["seed"])) if kills else measure_faults()
    if not sound:
        sys.exit("measure_tracking: what is said above must not be")


if __name__ == "__main__":
    main(*sys.argv[1:])
