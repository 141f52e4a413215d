"""Breaks runs at random places, lets the same command go on, and compares what comes out with a run that wasn't broken.

    python -m tests.workflow.faults count=100 seed=0                        (from the repository's root; `make faults`)
    python -m tests.workflow.faults count=200 kind=kill place='in a save' folder=/dev/shm

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

from modules.training.callbacks import checkpoints_in
from modules.training.checkpoints.run_manifest import CHECKPOINTS
from pipelines.cli.command_line import quieten_libraries

from .injection import FILLER, PLACES, STRUCK, Fault
from .runs import (
    ON_TWO,
    VARIANTS,
    Outcome,
    Variant,
    attempt,
    attempt_on_two,
    checkpoint_lost,
    lost,
    outcome,
    send_the_rest,
    small_disk,
)

TEXTS = ["白日依山尽，黄河入海流。", "床前明月光，疑是地上霜。", "春眠不觉晓，处处闻啼鸟。", "红豆生南国，春来发几枝。"]
EVERY = 12
"""Each so manieth run is on two processes: a start takes a hundred times as long there."""
ATTEMPTS = 30
"""After so many tries of the same command a run is given up as lost."""


DEFAULTS = {"count": "100", "seed": "0", "kind": "", "place": "", "folder": ""}
"""kind and place: these faults alone; folder: where the runs lie."""


def draw_on_two(chance: random.Random) -> Fault:
    place = chance.choice(["the launcher", "rank 0", "rank 1"])
    return Fault(chance.choice(["kill", "terminate"]), place, chance.randint(0, 1500))


def draw(chance: random.Random, options: dict[str, str]) -> Fault:
    kind = options["kind"] or chance.choice(["kill", "kill", "terminate", "interrupt", "disk full"])
    if kind == "disk full":
        return Fault(kind, "in a save", chance.randint(1, 60))
    place = options["place"] or chance.choice(["any time", *PLACES])
    number = chance.randint(0, 1500) if place == "any time" else chance.randint(1, 40)
    return Fault(kind, place, number)


def make_template(folder: Path) -> None:
    """Rows, and a store with its tables made, so that each run needn't."""
    rows = [text[:length] for text in TEXTS for length in (5, 6, 8, 9, 10, 11, 12)] + TEXTS * 4
    folder.mkdir()
    lines = (json.dumps({"src_txt": f"{text}{number}"}, ensure_ascii=False) for number, text in enumerate(rows))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "some-bad.jsonl").write_text((folder / "rows.jsonl").read_text() + '{"src_txt": 1}\n')


def broken_run(
    folder: Path, variant: Variant, chance: random.Random, options: dict[str, str]
) -> tuple[list[Fault], list[str]]:
    """A run that is broken up to three times; the faults that struck, and what was lost."""
    faults: list[Fault] = []
    for number in range(ATTEMPTS):
        two = variant is ON_TWO
        fault = None if number >= 3 - two else draw_on_two(chance) if two else draw(chance, options)
        newest = max(checkpoints_in(folder / "out" / CHECKPOINTS), default=0)
        code = (attempt_on_two if two else attempt)(folder, variant, fault)
        (folder / "out" / FILLER).unlink(missing_ok=True)
        struck = two or (folder / STRUCK).exists()
        (folder / STRUCK).unlink(missing_ok=True)
        if "was done before" in (folder / "output.txt").read_text():  # it was killed when all was done
            send_the_rest(folder)
            return faults, []
        if code == 0 and not (struck and fault and fault.kind != "disk full" and not two):
            return faults, []
        if fault is None:
            break
        faults.append(fault)
        if complaint := checkpoint_lost(folder, newest):
            return faults, [complaint]
        if code not in expected_codes(fault):
            return faults, [f"exit code {code}, not {' or '.join(map(str, expected_codes(fault)))}"]
    return faults, [f"the command fails: {(folder / 'output.txt').read_text()[-500:]}"]


def expected_codes(fault: Fault) -> tuple[int, ...]:
    if fault.kind == "kill":
        return (1, -9) if fault.place.startswith("rank") else (-9,)  # or the launcher, where no rank was up
    if fault.kind == "terminate":
        return 143, -15  # the latter when all is done, and the process on its way out
    return (130,) if fault.kind == "interrupt" else (1,)


def main(arguments: list[str]) -> int:
    quieten_libraries()
    options = DEFAULTS | dict(argument.split("=", 1) for argument in arguments)
    chance = random.Random(int(options["seed"]))
    injected: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    base = Path(tempfile.mkdtemp(prefix="moyun-faults-", dir=options["folder"] or None))
    make_template(base / "template")
    straight = {variant: unbroken(base, variant) for variant in VARIANTS}
    number = 0
    while injected.total() < int(options["count"]):
        number += 1
        variant = ON_TWO if number % EVERY == 0 and not options["kind"] else chance.choice(VARIANTS)
        if variant not in straight:
            straight[variant] = unbroken(base, variant)
        folder = base / f"run-{number}"
        shutil.copytree(base / "unbroken" / "ready", folder)
        with small_disk(folder):
            faults, complaints = broken_run(folder, variant, chance, options)
            complaints = complaints or lost(straight[variant], outcome(folder))
        struck = [str(fault) for fault in faults] or ["nothing"]
        if faults or complaints:
            injected.update(struck)
        if complaints:
            broken.update(struck)
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
    if not ready.exists():
        shutil.copytree(base / "template", ready)
        attempt(ready, Variant("", ("dry_run=true",)))
    shutil.copytree(ready, folder)
    if code := (attempt_on_two if variant is ON_TWO else attempt)(folder, variant):
        raise SystemExit(f"{variant.name}: exit code {code}\n{(folder / 'output.txt').read_text()[-3000:]}")
    return outcome(folder)


def report(injected: Counter[str], broken: Counter[str]) -> None:
    print(f"\n{'fault':<34}{'injected':>9}{'survived':>9}{'lost':>6}")
    for name in sorted(injected):
        print(f"{name:<34}{injected[name]:>9}{injected[name] - broken[name]:>9}{broken[name]:>6}")
    print(f"{'all':<34}{injected.total():>9}{injected.total() - broken.total():>9}{broken.total():>6}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
