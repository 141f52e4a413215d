"""What the check has found so far: a line on the screen, results.json and results.md in $OUT."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.tables import figure

ON_GPU = os.environ.get("DEVICE", "cuda") == "cuda"
DEVICE = "cuda:0" if ON_GPU else "cpu"
OUT = Path(os.environ.get("OUT", "build/gpu-check"))
WORK = Path(os.environ.get("TMPDIR", "/tmp")) / "gpu-check"
POEMS = "models/poems"
SIZES = ["large", "1.3b", "2.7b"] if ON_GPU else ["tiny"]
"""Models by name (conf/model)."""

MARKS = {True: "ok  ", False: "FAIL", None: "    "}


def read(path: Path | None = None) -> list[dict[str, Any]]:
    path = path or OUT / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def record(part: str, what: str, good: bool | None = None, **values: Any) -> None:
    """good: whether it is as it must be; None: a figure that has no right value."""
    rows = [*read(), {"part": part, "what": what, "ok": good, "values": values}]
    for name, text in {"results.json": json.dumps(rows, indent=1, default=str), "results.md": markdown(rows)}.items():
        (OUT / name).write_text(text + "\n", encoding="utf-8")
    said = ", ".join(f"{name} {in_words(value)}" for name, value in values.items())
    print(f"{MARKS[good]} {part}, {what}: {said}", flush=True)


def in_words(value: Any) -> str:
    return figure(value) if isinstance(value, float) else str(value)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for each part; failures are named, figures that failed too."""
    return "\n".join(line for part, found in groupby(rows, lambda row: row["part"]) for line in table(part, [*found]))


def table(part: str, rows: list[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    yield from ("", f"**{part}**", "", f"| | {' | '.join(names)} | |", "|---" * (len(names) + 2) + "|")
    for row in rows:
        cells = [in_words(row["values"].get(name, "")).replace("|", "\\|") for name in names]
        verdict = {True: "as it must be", False: "**not as it must be**", None: ""}[row["ok"]]
        yield f"| {row['what']} | {' | '.join(cells)} | {verdict} |"
