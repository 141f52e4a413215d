"""The command line that every stage shares: --help, key=value arguments, errors as one message, exit codes."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from modules.config.loader import ConfigError, load_config
from modules.config.schema import key_of_path, names_key
from modules.config.sweeps.command import SweepConfig
from modules.config.sweeps.space import check_space, sweep_instead
from modules.config.training import TrainingConfig
from modules.data.reading.headers import check_headers
from modules.system.atomic import OF_THE_MACHINE, error_of_the_machine
from modules.system.paths import NO_PATH
from modules.system.redaction import redact_text
from modules.system.signals import (
    Stopped,
    WorkerError,
    end_with_parent,
    forget_empty_ranks,
    is_main_process,
    is_worker,
    stopping_at_once,
)

from .help import help_text
from .launch import launch, require_processes
from .output import lasting_output
from .project_run import retire_project_run, settle_project_run
from .redacted_output import redact_output

KEY_VALUE = re.compile(r"(--)?[a-z_][a-z_.0-9]*=|--")

USER_ERRORS = (ValueError, FileExistsError, FileNotFoundError, FloatingPointError)
"""Whose messages say what to do; anything else is our fault and shows its traceback."""

READ_ROWS = ("main", "prepare", "pretrain", "finetune", "prefer", "evaluate", "register", "predict", "compare", "sweep")
"""Stages that import what takes seconds."""

RUNS = ("one", "other")
"""The keys of compare that may be left out."""

OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""Python's own 700 pay in programs that import less."""

OF_THE_PATH = (errno.EISDIR, errno.ENXIO, errno.ENOTEMPTY)


def check_before_imports() -> None:
    """Refuses what `python -m pipelines.STAGE` is given wrongly, before Python imports the stage: MLflow takes seconds.

    To be called while Python looks for the stage's module, when sys.argv[0] is "-m".
    """
    arguments = sys.argv[1:]
    stage = sys.orig_argv[-len(sys.argv)].removeprefix("-m").removeprefix("pipelines.")
    if stage == "compare":
        arguments = with_positions(arguments, *RUNS, stage=stage)
    if stage in READ_ROWS:
        run_stage(stage, None, arguments)
        if {"--help", "-h"} & set(arguments):
            sys.exit()


def run_stage(stage: str, function: Callable[[Any], Any] | None, arguments: list[str] | None = None) -> None:
    """Runs a stage from the command line and exits: 0 done, 1 failed, 2 wrongly configured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    redact_output()
    forget_empty_ranks()
    # The half million objects that importing makes stay. To look through them for garbage as often as Python does takes
    # a quarter of the time to a first training step, and once more on the way out longer than a second.
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)
    with stopping_at_once(), lasting_output():
        code, message = attempt(stage, function, arguments)
        if code == 1 or (code and is_main_process()):
            print(f"{stage}: {redact_text(message)}", file=sys.stderr, flush=True)
        if code or function:
            retire_project_run(stage, code, message)
    if code:
        leave(code)


def attempt(stage: str, function: Callable[[Any], Any] | None, arguments: list[str]) -> tuple[int, str]:
    """Runs a stage; its exit code, and what to say where that isn't 0. None: only looks at what is given."""
    quieten_libraries()
    config: Any = None
    try:
        if {"--help", "-h"} & set(arguments):
            print(help_text(stage), flush=True)
            return 0, ""
        end_with_parent()
        with warnings_of_keys(function is not None and is_main_process()):
            given = load_config(stage, arguments)
            if isinstance(given, SweepConfig):
                check_space(given)
        config = given
        check_headers(config)
        if function is None:
            return 0, ""
        settle_project_run(stage, config)
        if needs_launch(config):
            launch(stage, arguments, config.trainer)
        else:
            if isinstance(config, TrainingConfig):
                require_processes(config.trainer)
            function(config)
    except USER_ERRORS as error:
        if isinstance(error, ConfigError) and config is None:
            return 2, f"the configuration can't be used:\n{error}{of_a_sweep(stage, arguments, error)}"
        rank = "" if is_main_process() or isinstance(error, WorkerError) else f"rank {os.environ.get('RANK', '?')}: "
        return 1, f"{rank}{error}"
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
    except Exception as error:
        found = error_of_the_machine(error)
        if found is None and isinstance(error, OSError) and error.errno in (*NO_PATH, *OF_THE_PATH):
            found = error
        if found is None:
            raise
        return 1, of_the_machine(found, config)
    return 0, ""


def of_a_sweep(stage: str, arguments: list[str], error: ConfigError) -> str:
    """The command that tries several values, where a key was given more than one."""
    command = sweep_instead(stage, arguments, error.complaints)
    return f"\n    To try several values (docs/sweeps.md): {command}" if command else ""


@contextlib.contextmanager
def warnings_of_keys(said: bool) -> Iterator[None]:
    """Arguments are read twice, before the imports and after: what is warned of is said once."""
    log = logging.getLogger("moyun.config")
    log.disabled = not said
    try:
        yield
    finally:
        log.disabled = False


def of_the_machine(error: OSError, config: Any) -> str:
    """What the system says of a file or folder, the key that it was given by, and what to do."""
    key = key_of_path(config, str(error.filename)) if config and error.filename else None
    where = error.filename or "output folder, cache, tracking store or temporary files"
    remedy = "give it room or rights" if error.errno in OF_THE_MACHINE else "give another path"
    says = error.strerror if error.errno in OF_THE_MACHINE else NO_PATH.get(error.errno or 0, error.strerror)
    return f"{f'{key}: ' if key else ''}{where}: {says}; {remedy}, then start the same command again"


def store_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises where its store can't be used, or refuses something; nothing where MLflow isn't imported."""
    names = {"mlflow.exceptions": "MlflowException", "sqlalchemy.exc": "SQLAlchemyError"}
    return tuple(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules)


def with_positions(arguments: list[str], *names: str, stage: str | None = None) -> list[str]:
    """Arguments that are neither key=value nor an option's value are those of `names`, in order; more are refused.

    stage: its keys alone, and what may be one misspelt, are taken for keys; a prompt may be "e=mc2，".
    """
    if {"--help", "-h"} & set(arguments):
        return arguments
    result: list[str] = []
    rest = list(names)
    for position, argument in enumerate(arguments):
        before = arguments[position - 1] if position else ""
        is_value = before.startswith("--") and "=" not in before
        like_key = KEY_VALUE.match(argument) and (
            stage is None or argument.startswith("--") or names_key(stage, argument)
        )
        is_key = is_value or like_key or not rest
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
    logging.getLogger("mlflow.utils.databricks_utils").setLevel(
        logging.ERROR
    )  # our own line says that it wants a login
    for message in (
        ".*does not have many workers.*",
        "It is recommended to use `self.log.*",  # for sums over ranks, which ours are
        "torch.distributed is disabled.*",  # a checkpoint from one process
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
