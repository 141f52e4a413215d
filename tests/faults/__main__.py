"""Breaks runs at random places, lets the same command go on, and compares what comes out with a run that wasn't broken.

    python -m tests.faults count=100 seed=0        (from the repository's root; `make faults`)

A run counts as survived where each step's rows, loss and learning rate, MLflow's metrics, the weights and the
optimizer are bit for bit those of the unbroken run, nothing half-written is left, and at every moment there was a sound
checkpoint.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from modules.checkpoint_callback import checkpoints_in
from modules.resume import CHECKPOINTS

from .injection import FILLER, PLACES, Fault
from .runs import VARIANTS, Outcome, Variant, attempt, checkpoint_lost, lost, outcome, small_disk

TEXTS = ["白日依山尽，黄河入海流。", "床前明月光，疑是地上霜。", "春眠不觉晓，处处闻啼鸟。", "红豆生南国，春来发几枝。"]
ATTEMPTS = 30
"""After so many tries of the same command a run is given up as lost."""


def options(arguments: list[str]) -> tuple[int, int, str | None]:
    given = {"count": "100", "seed": "0", "folder": ""} | dict(argument.split("=", 1) for argument in arguments)
    return int(given["count"]), int(given["seed"]), given["folder"] or None


def draw(chance: random.Random) -> Fault:
    kind = chance.choice(["kill", "kill", "terminate", "interrupt", "disk full"])
    if kind == "disk full":
        return Fault(kind, "in a save", chance.randint(1, 60))
    place = chance.choice(["any time", *PLACES])
    number = chance.randint(0, 1500) if place == "any time" else chance.randint(1, 40)
    return Fault(kind, place, number)


def make_template(folder: Path) -> None:
    """Rows, and a store with its tables made, so that each run needn't."""
    rows = [text[:length] for text in TEXTS for length in (5, 6, 8, 9, 10, 11, 12)] + TEXTS * 4
    folder.mkdir()
    lines = (json.dumps({"src_txt": f"{text}{number}"}, ensure_ascii=False) for number, text in enumerate(rows))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def broken_run(folder: Path, variant: Variant, chance: random.Random) -> tuple[list[Fault], list[str]]:
    """A run that is broken up to three times; the faults that struck, and what was lost."""
    faults: list[Fault] = []
    for number in range(ATTEMPTS):
        fault = draw(chance) if number < 3 else None
        newest = max(checkpoints_in(folder / "out" / CHECKPOINTS), default=0)
        code = attempt(folder, variant, fault)
        (folder / "out" / FILLER).unlink(missing_ok=True)
        if code == 0:
            return faults, []
        if fault is None:
            break
        faults.append(fault)
        if complaint := checkpoint_lost(folder, newest):
            return faults, [complaint]
        expected = {"kill": -9, "terminate": 143, "interrupt": 130, "disk full": 1}[fault.kind]
        if code != expected:
            return faults, [f"exit code {code}, not {expected}"]
    return faults, [f"the command fails: {(folder / 'output.txt').read_text()[-500:]}"]


def main(arguments: list[str]) -> int:
    count, seed, place = options(arguments)
    chance = random.Random(seed)
    injected: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    base = Path(tempfile.mkdtemp(prefix="moyun-faults-", dir=place))
    make_template(base / "template")
    straight = {variant: unbroken(base, variant) for variant in VARIANTS}
    number = 0
    while injected.total() < count:
        number += 1
        variant = chance.choice(VARIANTS)
        folder = base / f"run-{number}"
        shutil.copytree(base / "unbroken" / "ready", folder)
        with small_disk(folder):
            faults, complaints = broken_run(folder, variant, chance)
            complaints = complaints or lost(straight[variant], outcome(folder))
        injected.update(map(str, faults))
        if complaints:
            broken.update({str(fault) for fault in faults} or {"nothing"})
            print(f"{folder} ({variant.name}): {', '.join(map(repr, faults))}: {'; '.join(complaints)}", flush=True)
        else:
            shutil.rmtree(folder)
    report(injected, broken)
    if not broken:
        shutil.rmtree(base)
    return 1 if broken else 0


def unbroken(base: Path, variant: Variant) -> Outcome:
    """Also leaves a folder in which the rows are cached and the store's tables are made."""
    ready, folder = base / "unbroken" / "ready", base / "unbroken" / variant.name
    shutil.copytree(ready if ready.exists() else base / "template", folder)
    if code := attempt(folder, variant):
        raise SystemExit(f"{variant.name}: exit code {code}\n{(folder / 'output.txt').read_text()[-3000:]}")
    if not ready.exists():
        shutil.copytree(base / "template", ready)
        attempt(ready, Variant("", ("dry_run=true",)))
        (ready / "account.jsonl").unlink()
    return outcome(folder)


def report(injected: Counter[str], broken: Counter[str]) -> None:
    print(f"\n{'fault':<34}{'injected':>9}{'survived':>9}{'lost':>6}")
    for name in sorted(injected):
        print(f"{name:<34}{injected[name]:>9}{injected[name] - broken[name]:>9}{broken[name]:>6}")
    print(f"{'all':<34}{injected.total():>9}{injected.total() - broken.total():>9}{broken.total():>6}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
