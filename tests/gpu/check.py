"""What only a GPU can show, most important first; see check.sh.

Each part is a process of its own, which ends at its deadline: one that hangs, or breaks the GPU's state, costs the
others nothing. It is forked from this one, which has imported everything and not touched the GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.tables import require_marks, write_tables
from pipelines.cli.command_line import quieten_libraries

from . import inference_parts, results, resuming_part, training_parts
from .results import ON_GPU, OUT, POEMS, SIZES, WORK, record

COMMAND = "bash tests/gpu/check.sh"

PATIENCE = 1 if ON_GPU else 4
"""Deadlines are for a GPU's machine; the tests run on few cores, which others may use too."""


@dataclass(frozen=True)
class Part:
    name: str
    function: Callable[[], None]
    least: float
    """It isn't begun with fewer seconds left."""
    most: float
    """Then it is ended."""


def parts() -> list[Part]:
    first, *others = SIZES
    found = [
        Part("facts", training_parts.facts, 10, 40),
        Part("parity", training_parts.parity, 20, 60),
        Part("pipeline", resuming_part.pipeline, 30, 130),
        Part(f"training {first}", partial(training_parts.utilization, first), 30, 120),
        Part("compiled", training_parts.compiled, 40, 90),
        *(Part(f"training {size}", partial(training_parts.utilization, size), 45, 120) for size in others[:1]),
        Part(f"decoding {first}", partial(inference_parts.decoding, first), 20, 60),
        Part("server", partial(inference_parts.server, POEMS), 20, 60),
        *(Part(f"decoding {size}", partial(inference_parts.decoding, size), 40, 80) for size in others[:1]),
    ]
    return found + [Part(f"training {size}", partial(training_parts.utilization, size), 50, 120) for size in others[1:]]


def run(part: Part) -> None:
    """In a process of its own."""
    try:
        part.function()
    except BaseException as error:
        traceback.print_exc()
        said = str(error).strip().splitlines() or [""]
        record(part.name, "failed", False, error=f"{type(error).__name__}: {said[0][:200]}")
    sys.stdout.flush()
    os._exit(0)  # threads and the GPU's context end with it


def main() -> int:
    quieten_libraries()
    limit = time.monotonic() + float(os.environ.get("LIMIT", 470)) - 10
    OUT.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "results.md", "profiles.txt", "pipeline.log"):
        (OUT / name).unlink(missing_ok=True)
    fork = multiprocessing.get_context("fork")
    for part in parts():
        begun, left = time.monotonic(), limit - time.monotonic()
        if left < part.least:
            record(part.name, "not begun", None, seconds_left=left)
            continue
        process = fork.Process(target=run, args=(part,))
        process.start()
        process.join(min(part.most * PATIENCE, left))
        if process.is_alive():
            process.kill()
            process.join()
            record(part.name, "ended at its deadline", False, seconds=time.monotonic() - begun)
        elif process.exitcode:
            record(part.name, "died", False, exit_code=process.exitcode)
        print(f"     {part.name}: {time.monotonic() - begun:.0f} s", flush=True)
    return int(any(row["ok"] is False for row in results.read()))


def take_over(table: Path, found: Path) -> None:
    """The figures of a results.json into a document, between the marks of benchmark part gpu."""
    require_marks(table, ["gpu"])
    if not found.is_file():
        raise SystemExit(f"results={found}: no such file; {COMMAND} writes it into $OUT")
    rows = results.read(found)
    facts = next(row["values"] for row in rows if row["part"] == "facts")
    made = f"Made by `{COMMAND}` on {facts['card']}, torch {facts['torch']}, {facts['date']}."
    write_tables(table, {"gpu": f"{made}\n{results.markdown(rows)}"})


if __name__ == "__main__":
    if given := dict(argument.split("=", 1) for argument in sys.argv[1:]):
        take_over(Path(given["table"]), Path(given.get("results", OUT / "results.json")))
    else:
        sys.exit(main())
