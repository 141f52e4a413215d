"""The code that stands in Markdown: commands, as a shell would see them, and Python."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FENCE = re.compile(r"```(\w*)")
INLINE = re.compile(r"`((?:python|mlflow|make) [^`]+)`")
PROGRAM = re.compile(
    r"(?:export )?\w+=|(?:\S*/)?(?:python|pip|mlflow|make|curl|source|srun|torchrun|llama-server|rm|git|vllm)\s"
)
BREAKS = re.compile(r"\$('[^']*')")
"""Quotes between which a shell takes \\n for a line break."""
ENDS = {"|", ">", ">>", "2>", "&&", ";", "&", "<"}
ELISION = "…"


@dataclass(frozen=True)
class Snippet:
    """A command (inline: one that may leave out what must be given), or a block of Python."""

    file: str
    line: int
    kind: Literal["command", "inline", "python", "other"]
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def snippets(path: Path, root: Path) -> Iterator[Snippet]:
    name = str(path.relative_to(root))
    text = path.read_text(encoding="utf-8")
    for line, language, block in blocks(text):
        yield from of_block(name, line, language, block)
    for number, line_text in enumerate(text.splitlines(), 1):
        for command in INLINE.findall(line_text):
            yield Snippet(name, number, "inline", command)


def blocks(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """(number of the first line, language, lines) of what is fenced, or indented by four spaces."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        start = at
        if fence := FENCE.match(lines[at]):
            at += 1
            while not lines[at].startswith("```"):
                at += 1
            yield start + 2, fence[1], lines[start + 1 : at]
            at += 1
        elif lines[at].startswith("    "):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            yield start + 1, "", [line[4:] for line in lines[start:at]]
        else:
            at += 1


def of_block(file: str, first: int, language: str, block: list[str]) -> Iterator[Snippet]:
    """Commands one by one; what else is Python, as one piece a paragraph."""
    if language not in ("", "python", "bash", "sh", "shell"):
        return
    if language == "python":
        yield Snippet(file, first, "python", "\n".join(block))
        return
    rest: list[str] = []
    numbered = iter(enumerate(block, first))
    for number, line in numbered:
        if PROGRAM.match(line):
            while line.endswith("\\"):
                line = line[:-1] + next(numbered)[1]
            yield Snippet(file, number, "command", line)
        elif line.strip():
            rest.append(line)
    if rest:
        yield Snippet(file, first, "python" if is_python(rest) else "other", "\n".join(rest))


def is_python(lines: list[str]) -> bool:
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Import | ast.ImportFrom) for node in ast.walk(tree))


def words(command: str) -> list[str]:
    """The first of a line's commands, without what it is piped or written to, comments and environment variables."""
    found = shlex.split(BREAKS.sub(lambda quoted: quoted[1].replace("\\n", "\n"), command), comments=True)
    end = next((place for place, word in enumerate(found) if word in ENDS), len(found))
    start = next((place for place, word in enumerate(found) if not re.match(r"[A-Z_]+=", word)), end)
    return found[start:end]
