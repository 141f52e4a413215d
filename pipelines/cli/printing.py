"""What stages print: small tables, progress bars, lines, and text as it is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from modules.system.redaction import redact_text
from modules.system.signals import is_main_process

console = Console(
    highlight=False, width=None if sys.stdout and sys.stdout.isatty() else 240
)  # paths in a log stay whole


def say(line: str) -> None:
    """A plain line, at once."""
    print(line, flush=True)


def say_if_older(stage: str, folder: Path, made_by: str | None, now: str) -> None:
    """made_by, now: the digests of code and libraries that made what the stage takes as it is, and of those today."""
    if made_by not in (None, now):
        say(f"{stage}: other code or libraries than today's made {folder}; remove it, and the stage makes it anew")


def stream_text(before: list[str], pieces: Iterable[str]) -> str:
    """Prints pieces of text as they come, and returns the whole."""
    written = list(before)
    print("".join(written), end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
        written.append(piece)
    print()
    return "".join(written)


def working_on(what: str) -> AbstractContextManager[Any]:
    """Says what is being done while the block runs."""
    return console.status(what)


def show(title: str, lines: Mapping[str, Any]) -> None:
    """A small two-column table; of several processes the first prints it."""
    if not is_main_process():
        return
    console.print(f"\n[bold]{title}[/bold]", soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines.items():
        table.add_row(f"  {label}", Text(redact_text(str(value))))  # Text: brackets in a value are no markup
    console.print(table)


@contextmanager
def progress_of(name: str) -> Iterator[Callable[..., None]]:
    """A bar for each thing that is done: report(what, the share of it that is done, and perhaps a note beside it)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: float, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(f"{name}: {what}", total=1, note="")
            bars.update(tasks[what], completed=done, note=note)

        yield report
