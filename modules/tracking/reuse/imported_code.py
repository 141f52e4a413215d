"""The files of moyun that a script runs, found by its import statements."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

MODULES = Path(__file__).parents[2]


def code_behind(file: Path) -> set[Path]:
    """The files of moyun that a file's import statements reach, itself and its packages' __init__.py included."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported_files(file)
            waiting += [folder / "__init__.py" for folder in file.parents if folder.is_relative_to(MODULES)]
    return found


@cache
def imported_files(file: Path) -> tuple[Path, ...]:
    """The files of moyun named by `from … import …` in a file; imports for type checkers alone count too."""
    return tuple(named_files(file))


def named_files(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith("modules.")):
            base = file.parents[node.level - 1] if node.level else MODULES.parent
            place = base.joinpath(*(node.module or "").split("."))
            for path in (place, *(place / alias.name for alias in node.names)):
                yield from (each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file())


def imported_packages(files: Iterable[Path]) -> set[str]:
    """The names of other people's packages that files import anywhere, in functions too."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {MODULES.name}


def code_digest(script: Path) -> str:
    """SHA-256 over the files behind a script, what they import by name, and the pages and styles beside them."""
    files = code_behind(script)
    for folder in {file.parent for file in files if file.is_relative_to(MODULES)}:
        by_name = "import_module" in (folder / "__init__.py").read_text(encoding="utf-8")
        beside = (path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc")
        files |= {path for path in beside if by_name or path.suffix != ".py"}
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(MODULES.parent)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
