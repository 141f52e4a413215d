"""The processes in which a sweep's trials run: one that dies takes no other, and not the sweep, with it."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...system.hardware import default_threads
from ...system.process_locks import is_locked

PROGRAM = "pipelines.cli.sweeps.trial_worker"
LOCK = ".worker-{}.lock"
SECONDS_TO_STOP = 120.0
"""For a checkpoint; whoever takes longer is killed, and goes on from the one before."""

ROOT = Path(__file__).parents[3]


class Worker:
    """A process that takes one trial after another as a line of JSON, and answers each with a line."""

    def __init__(self, folder: Path, index: int, environment: Mapping[str, str]) -> None:
        self.index = index
        self.job: dict[str, Any] | None = None
        self.began = 0.0
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(folder / LOCK.format(index))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": search, **environment},
        )

    def start(self, job: dict[str, Any]) -> None:
        self.job, self.began = job, time.monotonic()
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """None where the process has died."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def how_it_died(self) -> str:
        code = self.process.wait()
        if code == -9:
            return "its process was killed (signal 9), as systems do with one that takes too much memory"
        return f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


class Workers:
    """As many as there are trials at a time; ended, with a checkpoint of what they do, when the block ends."""

    def __init__(self, folder: Path, environments: list[dict[str, str]]) -> None:
        self.folder, self.environments = folder, environments
        self.all: dict[int, Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self.all.values() if worker.job]

    def start(self, job: dict[str, Any]) -> None:
        """On a process that has nothing to do; there must be one."""
        index = next(i for i in range(len(self.environments)) if i not in self.all or not self.all[i].job)
        if index not in self.all:
            self.all[index] = Worker(self.folder, index, self.environments[index])
        self.all[index].start(job)

    def wait(self) -> tuple[dict[str, Any], dict[str, Any] | None, float, str]:
        """(a job that has ended, its answer or None where its process died, seconds that it took, how that died)."""
        with selectors.DefaultSelector() as selector:
            for worker in self.busy:
                assert worker.process.stdout
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            worker = selector.select()[0][0].data
        job, answer = worker.job, worker.answer()
        worker.job = None
        died = ""
        if answer is None:
            died = worker.how_it_died()
            del self.all[worker.index]
        return job, answer, time.monotonic() - worker.began, died

    def stop(self) -> None:
        for worker in self.all.values():
            worker.process.terminate()
        deadline = time.monotonic() + SECONDS_TO_STOP
        for worker in self.all.values():
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            for stream in (worker.process.stdin, worker.process.stdout):
                if stream:
                    stream.close()
        self.all.clear()


def environments(workers: int) -> list[dict[str, str]]:
    """What each worker's process is started with: a GPU of its own, or a share of the cores. ValueError if too many."""
    gpus, cores = visible_gpus(), default_threads()
    if gpus and workers > len(gpus):
        raise ValueError(f"workers={workers}: each has a GPU of its own, and there are {len(gpus)}; give fewer")
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:workers]]
    if workers > cores:
        raise ValueError(f"workers={workers}: each needs a core of its own, and there are {cores}; give fewer")
    return [{"OMP_NUM_THREADS": str(cores // workers)} if workers > 1 else {} for _ in range(workers)]


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(index) for index in range(count)])[:count]


def wait_for_earlier(folder: Path, seconds: float = SECONDS_TO_STOP) -> None:
    """Until the processes of a sweep that was killed have written their checkpoints and ended. ValueError if not."""
    deadline = time.monotonic() + seconds
    while held := [path for path in folder.glob(LOCK.format("*")) if is_locked(path)]:
        if time.monotonic() > deadline:
            owner = held[0].read_text(encoding="utf-8").strip()
            raise ValueError(f"output_dir={folder}: a trial of an earlier call still runs ({owner}); end that process")
        time.sleep(0.2)
