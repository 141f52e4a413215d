"""What an installation would hold is what is in the tree."""

from __future__ import annotations

import tomllib

from setuptools import find_packages

from tests.helpers.models import ROOT


def test_every_package_and_every_file_beside_code_is_installed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    files = [path for top in ("modules", "pipelines") for path in (ROOT / top).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    packages = {".".join(path.relative_to(ROOT).parent.parts) for path in files if path.suffix == ".py"}
    installed = set(find_packages(str(ROOT), include=declared["packages"]["find"]["include"]))
    assert packages <= installed
    assert not installed & {"tests", "tools"}
    data = {
        path
        for package, patterns in declared["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert {path for path in files if path.suffix != ".py"} <= data
