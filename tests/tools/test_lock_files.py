"""What is installed is what is locked: every requirement, every version, with hashes and from no particular place."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from tests.helpers.models import ROOT
from tools import audit
from tools.lock import name_of, parsed

LOCKS = {path.name: parsed(path.read_bytes()) for path in sorted((ROOT / "locks").glob("*.lock"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: Any) -> set[str]:
    return {name_of(requirement) for requirement in requirements}


def test_every_requirement_is_locked() -> None:
    """Where this fails after a change of pyproject.toml: pip install uv, then python -m tools.lock."""
    runtime = names(LOCKS["run.lock"]) | names(LOCKS["torch.lock"])
    assert names(PROJECT["dependencies"]) <= runtime
    assert names(PROJECT["optional-dependencies"]["dev"]) <= runtime | names(LOCKS["dev.lock"])


def test_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name_of(line): line.partition("==")[2] for line in lines}
    for lock in LOCKS.values():
        for requirement in lock:
            version = requirement.partition("==")[2].partition(" ")[0].partition("+")[0]
            assert pinned.get(name_of(requirement), version) == version, requirement


def test_everything_has_a_hash_and_no_place_it_must_come_from() -> None:
    assert LOCKS.keys() == {"run.lock", "dev.lock", "torch.lock", "torch-cpu.lock"}
    for name, lock in LOCKS.items():
        assert lock, name
        for requirement, hashes in lock.items():
            assert re.fullmatch(r"[a-z0-9._-]+==[\w.+!]+( ; .+)?", requirement), requirement
            assert hashes, requirement
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement
        assert "://" not in (ROOT / "locks" / name).read_text(encoding="utf-8")
    (cpu,) = LOCKS["torch-cpu.lock"]
    assert cpu.partition("+")[0] in LOCKS["torch.lock"]


def test_the_audit_names_what_is_known_and_what_mends_it() -> None:
    packages = [
        {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2", "3"]}]},
        {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]},
        {"name": "c", "version": "1", "vulns": []},
        {"name": "d", "skip_reason": "unknown"},
    ]
    assert audit.findings(packages) == ["  a 1: PYSEC-1, mended in 2, 3", "  b 1: PYSEC-2, not mended yet"]


@pytest.mark.parametrize(
    "packages", [None, [{"name": "a", "vulns": [{"id": "X", "fix_versions": []}], "version": "1"}]]
)
def test_the_audit_is_skipped_with_a_notice_where_nobody_answers(
    packages: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "audit", lambda text, seconds: packages)
    assert audit.main() == (0 if packages is None else 1)
    said = capsys.readouterr().out
    assert (said == audit.SKIPPED + "\n") is (packages is None)
    assert packages is None or "a 1: X, not mended yet" in said
