"""The command line that every stage shares: --help, key=value arguments, errors as one message, exit codes."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from modules.config import ConfigError, TrainingConfig, help_text, load_config
from modules.tracking import is_main_process

from .launch import WorkerError, is_worker, launch, require_processes

console = Console(highlight=False)

USER_ERRORS = (ValueError, FileExistsError, FileNotFoundError, FloatingPointError)
"""Whose messages say what to do; anything else is our fault and shows its traceback."""


def run_stage(stage: str, function: Callable[[Any], Any], arguments: list[str] | None = None) -> None:
    """Runs a stage from the command line and exits: 0 done, 1 failed, 2 wrongly configured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        print(help_text(stage))
        return
    quieten_libraries()
    try:
        config = load_config(stage, arguments)
    except ConfigError as error:
        print(f"{stage}: the configuration can't be used:\n{error}", file=sys.stderr)
        sys.exit(2)
    try:
        if needs_launch(config):
            launch(stage, arguments, config.trainer)
        else:
            if isinstance(config, TrainingConfig):
                require_processes(config.trainer)
            function(config)
    except USER_ERRORS as error:
        rank = "" if is_main_process() or isinstance(error, WorkerError) else f"rank {os.environ.get('RANK', '?')}: "
        print(f"{stage}: {rank}{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{stage}: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as stop:
        if stop.code:
            raise
        print(f"{stage}: terminated", file=sys.stderr)
        sys.exit(143)  # on SIGTERM Lightning leaves with a code that would say all went well


def needs_launch(config: Any) -> bool:
    if not isinstance(config, TrainingConfig) or config.dry_run or is_worker():
        return False
    return config.trainer.devices * config.trainer.nodes > 1


def quieten_libraries() -> None:
    """Libraries' chatter would bury the few lines that matter; their warnings stay."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings(
        "ignore", message="It is recommended to use `self.log.*"
    )  # ours are summed over ranks already
    warnings.filterwarnings("ignore", message="torch.distributed is disabled.*")  # saving from one process
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")


def show(title: str, lines: Mapping[str, Any]) -> None:
    """A small two-column table; of several processes the first prints it."""
    if not is_main_process():
        return
    console.print(f"\n[bold]{title}[/bold]", soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines.items():
        table.add_row(f"  {label}", Text(str(value)))  # Text: brackets in a value are no markup
    console.print(table)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console
    )
