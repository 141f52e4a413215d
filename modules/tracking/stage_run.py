"""The MLflow run of a stage: opened when all has been checked, handed to it as a TrackedRun, ended however it ends.

    with checking("evaluate", config) as begin_run:
        ...  # what is refused here is no run, nor is a dry run
        run = begin_run()

How it begins and ends in the store is in run_lifecycle.py, and what it records of its origin in provenance.py.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.tracking import fluent

from ..config.base import StageConfig, TrackingConfig
from ..config.schema import missing_models
from ..data.reading.column_names import SCORED_COLUMNS
from ..data.reading.split_names import SPLIT_NAMES
from ..system.atomic import draft_of
from ..system.paths import expanded
from ..system.redaction import redact_text
from .outbox.store import BRIEF, is_there
from .outbox.store_check import require_store
from .provenance import RESUMED, REUSED_FROM, log_provenance
from .run_lifecycle import activate, end_of, mark_killed_runs, newer_in_store, reopen_run
from .run_selection import (
    EXPERIMENT_ID,
    experiment_for,
    find_run,
    give_way,
    given_run_id,
    open_run,
    remove_retired_runs,
    require_usable,
)
from .summary.run_names import run_name
from .summary.run_notes import log_description
from .system_metrics import SystemMetrics
from .tracked_run import TrackedRun

if TYPE_CHECKING:
    import datasets


URI, SILENT = "MLFLOW_TRACKING_URI", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"


def connect(config: TrackingConfig | None = None, folder: str | Path = ".") -> str:
    """Points MLflow at the tracking store and returns its URI; by default mlflow.db in the folder."""
    for name in [name for name, value in os.environ.items() if name.startswith("MLFLOW_") and not value.strip()]:
        del os.environ[name]  # MLflow takes some empty ones for a name or a number
    given = ((config and config.tracking_uri) or "").strip() or os.environ.get(URI, "").strip()
    uri = expanded(given or f"sqlite:///{Path(folder).resolve() / 'mlflow.db'}")
    if redact_text(uri) != uri:  # MLflow would print it with the address of the run
        os.environ[SILENT] = "true"
    mlflow.set_tracking_uri(uri)
    return uri


@contextmanager
def connected(config: TrackingConfig | None = None) -> Iterator[str]:
    """MLflow points at the tracking store within the block, and afterwards at what it did before, a notebook's own.

    Inside a run, or a command that has stages in it, that is its store already.
    """
    if mlflow.active_run() or enclosing:
        yield mlflow.get_tracking_uri()
        return
    before = {name: os.environ.get(name) for name in (URI, SILENT, EXPERIMENT_ID, *BRIEF)}
    store = mlflow.get_tracking_uri()
    try:
        uri = connect(config)
        if uri != store and os.environ.get(EXPERIMENT_ID) == fluent._active_experiment_id:
            os.environ.pop(EXPERIMENT_ID, None)  # mlflow.set_experiment has written it there, and meant another store
        yield uri
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # it has written what it was into the environment
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


open_runs: list[TrackedRun] = []
"""The runs of the stages that are at work, the innermost last."""


class RunAround:
    """The run of a command that has stages in it, as main has."""

    def __init__(self, begin_run: Callable[[], TrackedRun]) -> None:
        self.begin_run = begin_run

    @property
    def run(self) -> TrackedRun:
        """Opened now if it isn't yet."""
        if self in enclosing:
            enclosing.remove(self)
            self.opened = self.begin_run()
        return self.opened


enclosing: list[RunAround] = []
"""Commands around the stage at work whose run isn't opened yet."""

commands: list[str] = []
"""The names of the commands that the stage at work is a part of, as main."""


def spelled(stage: str, key: str) -> str:
    """A key as the command line has it: in main it stands under the stage's name."""
    return f"{stage}.{key}" if commands else key


@contextmanager
def checking(stage: str, config: StageConfig, continues: str | None = None) -> Iterator[Callable[..., TrackedRun]]:
    """The block in which a stage first finds out whether it can do what it is asked to, and then does it.

    Yields what opens its run, or goes on with the one it is given, until the block's end; MLflow points at its store.

    Raises:
        ValueError: The store doesn't answer or hasn't got the run that is to go on, or a model folder that a key names
            isn't there.
    """
    with connected(config.tracking) as uri, ExitStack() as stack:
        if not (mlflow.active_run() or enclosing):
            require_ready(stage, config, uri, continues)
        yield lambda run=continues: stack.enter_context(stage_run(stage, config, run))


def require_ready(stage: str, config: StageConfig, uri: str, continues: str | None) -> None:
    if missing := list(missing_models(config)):
        raise ValueError("; ".join(missing))
    if config.dry_run and not is_there(uri):
        return  # a dry run makes no store
    require_store(uri)
    if continues:
        find_run(continues, stage)
    elif given := given_run_id():
        require_usable(stage, given, config.tracking)
    else:
        experiment_for(config.tracking, make=False)
    if not config.dry_run:
        folder_of_logs(config.tracking)


@contextmanager
def run_around(stage: str, config: StageConfig) -> Iterator[RunAround]:
    """For a command that has stages in it: its run begins with the first of theirs, so that a refusal leaves none."""
    with checking(stage, copy.deepcopy(config)) as begin_run:  # as it is given: main fills in what its stages make
        around = RunAround(begin_run)
        enclosing.append(around)
        commands.append(stage)
        try:
            yield around
        finally:
            commands.remove(stage)
            if around in enclosing:
                enclosing.remove(around)


@contextmanager
def stage_run(
    stage: str, config: StageConfig, continues: str | None = None, reuses: str | None = None
) -> Iterator[TrackedRun]:
    """The MLflow run of a stage: FINISHED at the end, FAILED if it raises, KILLED if it is interrupted.

    Inside another stage's run it is nested, in that run's store and experiment. Under `mlflow run` it is the run that
    the command made, but one in Default is replaced.

    Args:
        continues: Id of a run to go on with instead of a new one, to which the one that `mlflow run` made gives way.
        reuses: Id of an earlier run that has done the stage already: this one only says so.

    Raises:
        ValueError: The store doesn't answer, or hasn't got the run that is to go on.
        SpoolInUseError: Another process writes to that run.
    """
    for around in list(enclosing):
        _ = around.run
    with connected(config.tracking) as uri:
        yield from run_of_stage(stage, config, uri, continues, reuses)


def run_of_stage(
    stage: str, config: StageConfig, uri: str, continues: str | None, reuses: str | None
) -> Iterator[TrackedRun]:
    parent = mlflow.active_run()
    around = open_runs[-1] if parent and open_runs else None
    if not parent:
        require_store(uri)
    root = around.root if around else folder_of_logs(config.tracking)
    run = start_or_continue(stage, config, root, parent, continues, reuses)
    open_runs.append(run)
    system_metrics = None
    status, reason = "FINISHED", "finished"
    try:
        if config.tracking.log_system_metrics:
            system_metrics = SystemMetrics(run)
        log_provenance(run, stage, config)
        if reuses:
            run.set_tags({REUSED_FROM: reuses})
        log_description(run, stage, config)
        run.spool.sync_to_disk()  # a disk that is full already is known before there is any work
        yield run
    except BaseException as error:
        status, reason = end_of(error)
        raise
    finally:
        open_runs.remove(run)
        if system_metrics:
            system_metrics.stop()
        log_description(run, stage, config, reason)
        run.end(status, reason)


def folder_of_logs(config: TrackingConfig) -> Path:
    """The folder of the runs' local logs, made where it isn't there yet. ValueError where nothing can be written."""
    try:
        root = Path(config.spool_dir).resolve()
        root.mkdir(parents=True, exist_ok=True)
        draft_of(root / "log").touch()
        draft_of(root / "log").unlink()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"tracking.spool_dir={config.spool_dir} can't be used ({reason}): name a folder that can be written to"
        ) from None
    return root


def start_or_continue(
    stage: str,
    config: StageConfig,
    root: Path,
    parent: mlflow.ActiveRun | None,
    continues: str | None,
    reuses: str | None = None,
) -> TrackedRun:
    """A new run, or the one that goes on; from here on this process alone writes to its local log."""
    seconds = config.tracking.flush_timeout
    if continues:
        found = find_run(continues, stage)
        # Before it is touched: another process may still be writing to it.
        run = TrackedRun(found, root, seconds, goes_on=True)
        try:
            run.go_on(newer_in_store(found, run.earlier), int(found.data.tags.get(RESUMED, 0)))
            reopen_run(found)
            give_way(stage, continues)
        except BaseException:
            run.abandon()
            raise
        activate(found)
    else:
        around = (parent.data.tags.get("stage"), parent.info.run_name) if parent else (None, None)
        name = run_name(stage, config, *around) + (" (reused)" if reuses else "")
        active = open_run(stage, config, parent, name)
        try:
            run = TrackedRun(active, root, seconds)
        except BaseException as error:
            mlflow.end_run(end_of(error)[0])
            raise
    mark_killed_runs(run.run, root)
    if not parent:
        remove_retired_runs(run.info.experiment_id)
    return run


def log_rows(run: TrackedRun, rows: datasets.Dataset, source: str, context: str, digest: str | None = None) -> str:
    """Logs rows from a path or URL (`source`) as an MLflow dataset; returns their SHA-256 fingerprint, hexadecimal.

    Args:
        context: What they are to the run, e.g. train or test.
        digest: Their fingerprint, where it is known; else that of their texts and what metrics read beside them.
    """
    from mlflow.data.huggingface_dataset import from_huggingface

    from ..data.arrow import fingerprint

    digest = digest or fingerprint(rows, SCORED_COLUMNS)
    source = redact_text(source)
    tracked = from_huggingface(rows, path=source, name=f"{name_of_rows(source)}-{context}", digest=digest[:32])
    run.log_input(tracked, context)
    return digest


def name_of_rows(source: str) -> str:
    """mine.csv of data/mine.csv, but quatrains of prepared/sample/quatrains/test.jsonl.gz: any folder has a test."""
    path = Path(source)
    a_split = any(path.name.partition(".")[0].lower() in names for names in SPLIT_NAMES.values())
    return path.parent.name or path.name if a_split else path.name
