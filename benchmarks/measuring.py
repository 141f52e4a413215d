"""Turns in processes of their own, one after the other, round by round; medians, spreads and ratios within rounds.

Fresh processes make peak memory honest and keep one subject's threads and allocator out of another's way. Turns
are interleaved, so that what the machine does beside them falls on all alike.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from .subjects import Comparison, Subject, tcmalloc
from .work import Work

ROOT = Path(__file__).parents[1]

WATCH_SECONDS = 0.05
"""Between two looks at a turn's memory."""


class BenchmarkError(ValueError):
    """One of moyun's own turns failed, or the machine lacks what was asked for."""


@dataclass(frozen=True)
class Spread:
    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass
class Row:
    """What is known of one subject after all rounds."""

    subject: str
    missing: str | None = None
    """Why there are no turns."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    """Of each round: value, peak_gib, seconds, and what else the function returned."""

    def spread(self, key: str) -> Spread | None:
        values = [turn[key] for turn in self.turns if turn.get(key) is not None]
        return Spread.of(values) if values else None


@dataclass
class Result:
    comparison: Comparison
    rows: list[Row]

    def value(self, row: Row) -> Spread | None:
        return row.spread(self.comparison.value)

    def ratio(self, row: Row) -> Spread | None:
        """How many times as good moyun's first row is: ratios are taken within each round."""
        pairs = zip(self.rows[0].turns, row.turns, strict=False)
        if row is self.rows[0] or not row.turns or not self.rows[0].turns:
            return None
        ratios = [own[self.comparison.value] / other[self.comparison.value] for own, other in pairs]
        return Spread.of(ratios if self.comparison.higher_is_better else [1 / ratio for ratio in ratios])

    def note(self) -> str:
        medians = {row.subject: spread.median for row in self.rows if (spread := self.value(row))}
        return self.comparison.note(medians) if self.comparison.note else ""


def measure(comparison: Comparison, work: Work, rounds: int, report: Callable[[str], None]) -> Result:
    """Raises BenchmarkError where a turn of moyun's fails; a peer that fails is a row that says so."""
    rows = [Row(subject.name, subject.missing()) for subject in comparison.subjects]
    rounds = 1 if comparison.once else rounds
    for number in range(rounds):
        for subject, row in zip(comparison.subjects, rows, strict=True):
            if row.missing:
                continue
            report(f"{comparison.title}: {subject.name} (round {number + 1} of {rounds})")
            try:
                row.turns.append(take_turn(subject, work))
            except BenchmarkError as error:
                if subject.own:
                    raise
                row.missing = f"failed: {str(error).splitlines()[-1][:200]}"
    return Result(comparison, rows)


def take_turn(subject: Subject, work: Work) -> dict[str, Any]:
    """One process: seconds and peak_gib up to the function's ended_at; its value, or else those seconds."""
    with TemporaryDirectory(prefix="turn-", dir=work.folder) as folder:
        options, result, log = (Path(folder, name) for name in ("options.json", "result.json", "log.txt"))
        given = {"work": dataclasses.asdict(work), "options": dict(subject.options)}
        options.write_text(json.dumps(given), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.worker", subject.function, str(options), str(result)]
        started = time.time()
        with log.open("wb") as stream:
            environment = environment_of(subject, work)
            process = subprocess.Popen(  # in a group of its own, so that none of it outlives an interrupted benchmark
                command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            memory = list(watch(process))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode or not result.exists():
            said = log.read_text(encoding="utf-8", errors="replace").strip() or f"exit code {process.returncode}"
            raise BenchmarkError(f"{subject.name} failed ({subject.function}): {said[-4000:]}")
        turn: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    ended = turn.get("ended_at", time.time())
    turn["seconds"] = ended - started
    turn.setdefault("value", turn["seconds"])
    turn.setdefault("peak_gib", max((size for moment, size in memory if moment <= ended), default=0) / 2**30)
    return turn


def watch(process: subprocess.Popen[bytes]) -> Iterator[tuple[float, int]]:
    """(time, bytes) until the process ends: the most that it, or a process it started, has been resident with."""
    largest = 0
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid)]
            family += family[0].children(recursive=True)
        except psutil.Error:
            family = []
        largest = max([largest, *map(peak_bytes, family)])
        yield time.time(), largest
        time.sleep(WATCH_SECONDS)


def peak_bytes(process: psutil.Process) -> int:
    """The kernel's own account of the peak where it keeps one (Linux), else what is resident now."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def environment_of(subject: Subject, work: Work) -> dict[str, str]:
    """This process's, without the run and store that it logs to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    kept |= {"OMP_NUM_THREADS": str(work.threads), "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    kept |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}
    if subject.allocator:
        kept["LD_PRELOAD"] = str(tcmalloc())
    return kept
