"""constraints.txt → the .lock files beside this one: every version, with the SHA-256 of each file it may come from.

Those are all files of the version on the package index, for any platform and Python, and what pip takes on the machine
where this runs (a CPU build of torch, say, from an index of its own). `make lock` runs it; it needs uv.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parent
ROOT = LOCKS.parent
CUDA = ("nvidia-", "cuda-", "triton")
"""Packages that torch needs for GPUs alone: its builds for CPUs don't ask for them."""
NAME = re.compile(r"[\w.-]+")

Lock = dict[str, list[str]]
"""`name==version ; marker` → hashes."""


def compiled(*extras: str) -> Lock:
    """The whole tree of requirements, for every platform."""
    options = ["--generate-hashes", "--universal", "--python-version", "3.11", "--no-annotate", "--no-header", "--quiet"]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--constraint", "constraints.txt"]
    extra = [argument for name in extras for argument in ("--extra", name)]
    text = subprocess.run([*command, *options, *extra], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lock: Lock = {}
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        lock[requirement] = hashes
    return lock


def taken_here(lock: Lock) -> dict[str, str]:
    """Name → hash of what pip takes of the lock on this machine."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    pins = [requirement for requirement in lock if not requirement.startswith(CUDA)]
    report = subprocess.run([*command, "--report", "-", *pins], check=True, capture_output=True, text=True).stdout
    return {
        name_of(item["metadata"]["name"]): f"sha256:{item['download_info']['archive_info']['hashes']['sha256']}"
        for item in json.loads(report)["install"]
    }


def name_of(requirement: str) -> str:
    name = NAME.match(requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def write(file: str, lock: Lock) -> None:
    lines = [
        " \\\n".join([requirement, *(f"    --hash={digest}" for digest in sorted(hashes))])
        for requirement, hashes in sorted(lock.items())
    ]
    (LOCKS / file).write_text("# Written by `make lock`\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run, everything = compiled(), compiled("dev")
    here = taken_here(everything)
    for lock in (run, everything):
        for requirement, hashes in lock.items():
            found = here.get(name_of(requirement))
            if found and found not in hashes:
                hashes.append(found)
    write("run.lock", {name: hashes for name, hashes in run.items() if not name.startswith(CUDA)})
    write("cuda.lock", {name: hashes for name, hashes in run.items() if name.startswith(CUDA)})
    names = {name_of(requirement) for requirement in run}
    write("dev.lock", {name: hashes for name, hashes in everything.items() if name_of(name) not in names})
