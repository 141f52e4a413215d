"""The command line that every stage shares: --help, key=value arguments, errors as one message, exit codes."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from modules.config.loader import ConfigError, load_config
from modules.config.training import TrainingConfig
from modules.system.redaction import redact_text
from modules.system.signals import Stopped, WorkerError, end_with_parent, is_main_process, is_worker, stopping_at_once

from .help import help_text
from .launch import launch, require_processes
from .redacted_output import redact_output

KEY_VALUE = re.compile(r"(--)?[a-z_][a-z_.0-9]*=|--")

USER_ERRORS = (ValueError, FileExistsError, FileNotFoundError, FloatingPointError)
"""Whose messages say what to do; anything else is our fault and shows its traceback."""

OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""Python's own 700 pay in programs that import less."""

OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


def run_stage(stage: str, function: Callable[[Any], Any], arguments: list[str] | None = None) -> None:
    """Runs a stage from the command line and exits: 0 done, 1 failed, 2 wrongly configured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    redact_output()
    if {"--help", "-h"} & set(arguments):
        print(help_text(stage))
        return
    # The half million objects that importing makes stay. To look through them for garbage as often as Python does takes
    # a quarter of the time to a first training step, and once more on the way out longer than a second.
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)
    with stopping_at_once():
        code, message = attempt(stage, function, arguments)
    if code:
        if code == 1 or is_main_process():
            print(f"{stage}: {redact_text(message)}", file=sys.stderr, flush=True)
        leave(code)


def attempt(stage: str, function: Callable[[Any], Any], arguments: list[str]) -> tuple[int, str]:
    """Runs a stage; its exit code, and what to say where that isn't 0."""
    quieten_libraries()
    config: Any = None
    try:
        end_with_parent()
        config = load_config(stage, arguments)
        if needs_launch(config):
            launch(stage, arguments, config.trainer)
        else:
            if isinstance(config, TrainingConfig):
                require_processes(config.trainer)
            function(config)
    except USER_ERRORS as error:
        if isinstance(error, ConfigError) and config is None:
            return 2, f"the configuration can't be used:\n{error}"
        rank = "" if is_main_process() or isinstance(error, WorkerError) else f"rank {os.environ.get('RANK', '?')}: "
        return 1, f"{rank}{error}"
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else "output folder, cache, tracking store or temporary files: "
        return 1, f"{where}{error.strerror}; give it room or rights, then start the same command again"
    except KeyboardInterrupt:
        return 130, "interrupted"
    except store_errors() as error:
        from modules.tracking.outbox.store import why

        return 1, f"the tracking store: {why(error)}. When that is mended, start the same command again"
    except Stopped as stop:
        return int(stop.code or 1), stop.message
    except SystemExit as stop:
        if stop.code:
            raise
        return 143, "terminated"  # Lightning's, on SIGTERM, with a code that would say all went well
    return 0, ""


def store_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises where its store can't be used, or refuses something; nothing where MLflow isn't imported."""
    names = {"mlflow.exceptions": "MlflowException", "sqlalchemy.exc": "SQLAlchemyError"}
    return tuple(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules)


def with_positions(arguments: list[str], *names: str) -> list[str]:
    """Arguments that are neither key=value nor an option's value are those of `names`, in order; more are refused."""
    if {"--help", "-h"} & set(arguments):
        return arguments
    result: list[str] = []
    rest = list(names)
    for position, argument in enumerate(arguments):
        before = arguments[position - 1] if position else ""
        is_value = before.startswith("--") and "=" not in before
        is_key = is_value or KEY_VALUE.match(argument) or not rest
        result.append(argument if is_key else f"{rest.pop(0)}={argument}")
    return result


def leave(code: int) -> None:
    """Exits. A process of a job does so at once: on the way out it would wait for the others' part in a collective."""
    if is_worker():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def needs_launch(config: Any) -> bool:
    if not isinstance(config, TrainingConfig) or config.dry_run or is_worker():
        return False
    return config.trainer.devices * config.trainer.nodes > 1


def quieten_libraries() -> None:
    """Libraries' chatter would bury the few lines that matter; their warnings stay."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    said_by = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero")
    for name in (*said_by, "mlflow", "alembic"):  # Lightning sets its own level when it is imported, which is later
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        "It is recommended to use `self.log.*",  # for sums over ranks, which ours are
        "torch.distributed is disabled.*",  # a checkpoint from one process
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
