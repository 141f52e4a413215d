"""constraints.txt → locks/*.lock: every version, with the SHA-256 of each file it may come from.

Those are all files of the version on the package index, for any platform and Python. `make lock` runs it; it needs uv.

run.lock        what the demo needs, but for torch
dev.lock        what tests and checks need besides
torch.lock      torch with its GPU libraries, which builds for CPUs don't ask for
torch-cpu.lock  torch built for CPUs, as far as it was found on machines that ran this; not on the index itself
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parents[1] / "locks"
ROOT = LOCKS.parent
TORCH = re.compile(r"(torch|triton|nvidia-(?!ml-py)[\w-]+|cuda-[\w-]+)==")
CPU = LOCKS / "torch-cpu.lock"

Lock = dict[str, list[str]]
"""`name==version ; marker` → hashes."""


def compiled(*extras: str) -> Lock:
    """The whole tree of requirements, for every platform."""
    options = [
        "--generate-hashes",
        "--universal",
        "--python-version",
        "3.11",
        "--no-annotate",
        "--no-header",
        "--quiet",
    ]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--constraint", "constraints.txt"]
    extra = [argument for name in extras for argument in ("--extra", name)]
    return parsed(subprocess.run([*command, *options, *extra], cwd=ROOT, check=True, capture_output=True).stdout)


def parsed(text: bytes) -> Lock:
    lock: Lock = {}
    for line in text.decode().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            lock[requirement] = hashes
    return lock


def cpu_builds(torch: str) -> Lock:
    """What pip takes for `torch` here, where it is built for CPUs, and those of the same version known before."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    found = subprocess.run([*command, "--report", "-", torch], check=True, capture_output=True).stdout
    (item,) = json.loads(found)["install"]
    pin = f"torch=={item['metadata']['version']}"
    known = parsed(CPU.read_bytes()) if CPU.exists() else {}
    lock = {name: hashes for name, hashes in known.items() if name.startswith(f"{torch}+")}
    if "+" in pin:
        lock[pin] = sorted({*lock.get(pin, []), f"sha256:{item['download_info']['archive_info']['hashes']['sha256']}"})
    return lock


def write(path: Path, lock: Lock) -> None:
    lines = [
        " \\\n".join([requirement, *(f"    --hash={digest}" for digest in sorted(hashes))])
        for requirement, hashes in sorted(lock.items())
    ]
    path.write_text("# Written by `make lock`\n" + "\n".join(lines) + "\n", encoding="utf-8")


def name_of(requirement: str) -> str:
    """As the index spells it: without case, extras and version."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


if __name__ == "__main__":
    run, everything = compiled(), compiled("dev")
    torch = next(requirement for requirement in run if requirement.startswith("torch=="))
    write(LOCKS / "torch.lock", {name: hashes for name, hashes in run.items() if TORCH.match(name)})
    write(CPU, cpu_builds(torch))
    write(LOCKS / "run.lock", {name: hashes for name, hashes in run.items() if not TORCH.match(name)})
    write(LOCKS / "dev.lock", {name: hashes for name, hashes in everything.items() if name not in run})
