"""An MLflow run as a stage writes to it: into the run's local log, from which a thread sends it to the store.

Only log_model, flush and end wait for the store, and nothing raises because it is away.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Dataset as LoggedDataset
from mlflow.entities import Run, RunInfo

from ..system.atomic import naming
from ..system.redaction import first_line, hide_values, redact_text
from .models.exported_model import log_model_once
from .outbox.delivery import Delivery, table_tag
from .outbox.sender import Sender
from .outbox.spool import PRIVATE, Spool
from .run_lifecycle import END, deactivate

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.data.dataset import Dataset


logger = logging.getLogger("moyun.tracking")

PARAMS_AT_ONCE = 100
"""MLflow's limit for one call."""

SECONDS_WHEN_STOPPED = 10.0
"""What a run may still spend on sending after SIGTERM or Ctrl-C: whoever stops it may not wait longer."""


class TrackedRun:
    """The run of a stage, to log metrics, parameters, tags, files and models to."""

    def __init__(self, run: Run, root: Path, flush_timeout: float, goes_on: bool = False) -> None:
        """Opens the run's local log (SpoolInUseError where another process has) and starts the thread that sends it.

        Args:
            root: Folder of the local logs of all runs.
            flush_timeout: Seconds to wait for a store that takes nothing.
            goes_on: The thread starts with `go_on` only.
        """
        uri = mlflow.get_tracking_uri()
        self.run = run
        self.root = root.resolve()
        self.flush_timeout = flush_timeout
        with naming(self.root / run.info.run_id):
            self.spool = Spool(self.root / run.info.run_id)
        about = self.spool.read_json("run.json", {}) | {"run_id": run.info.run_id, "store": redact_text(uri)}
        self.spool.write_json("run.json", about)
        self.earlier = self.spool.metrics() if self.spool.records else {}
        """What earlier processes of the run logged: metric → (step, value)."""
        self.known = {name: {step for step, _ in series} for name, series in self.earlier.items()}
        self.tables: dict[str, None] = {}
        self.datasets: dict[str, tuple[str, str]] = {}
        """What rows are to the run (train, validation, test) → their name and digest in MLflow."""
        self.checkpoints = self.spool.last("checkpoints") if self.spool.records else None
        """What the log says last of which checkpoints there are; None of a run that keeps none."""
        self.resumed = 0
        """How often the run went on."""
        self.sender = Sender(Delivery(self.spool, run.info.run_id, uri, log_model_once))
        if not goes_on:
            self.sender.thread.start()

    @property
    def info(self) -> RunInfo:
        return self.run.info

    def go_on(self, newer: Mapping[str, Sequence[tuple[int, float]]], resumed: int) -> None:
        """Marks the run as running again; `newer` and `resumed` (how often it went on) are what the store knows."""
        for name, series in newer.items():
            self.earlier[name] = list(series)
            self.known[name] = {step for step, _ in series}
        about = self.spool.read_json("run.json", {"resumed": 0})
        self.resumed = max(resumed, about["resumed"]) + 1
        self.spool.write_json("run.json", about | {"resumed": self.resumed})
        self.spool.append("status", status="RUNNING")
        self.sender.thread.start()  # not before: a model that the earlier process made isn't sent once it says RUNNING

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, *, model_id: str | None = None, dataset: str | None = None
    ) -> None:
        """Metric → value at a step. A step that an earlier process of the run has logged isn't logged again.

        Args:
            model_id: The LoggedModel whose scores these are.
            dataset: On which of the run's rows, as log_input has them: train, validation or test.
        """
        link = {"model": model_id, "dataset": self.datasets.get(dataset or "")} if model_id else {}
        self.write_metrics(metrics, step, **link)

    def write_metrics(self, metrics: Mapping[str, float], step: int, **link: Any) -> None:
        """The same for metrics that are no results of the stage, as the machine's."""
        values = {name: float(value) for name, value in metrics.items()}
        if self.known:
            values = {name: value for name, value in values.items() if step not in self.known.get(name, ())}
        if values:
            self.spool.append("metrics", step=step, values=values, **link)

    def log_params(self, params: Mapping[str, str]) -> None:
        names = sorted(params)
        for start in range(0, len(names), PARAMS_AT_ONCE):
            self.append_values("params", {name: params[name] for name in names[start : start + PARAMS_AT_ONCE]})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.append_values("tags", tags)

    def append_values(self, kind: str, values: Mapping[str, str]) -> None:
        self.spool.append(kind, values={name: hide_values(value) for name, value in values.items()})

    @contextmanager
    def artifact(self, path: str) -> Iterator[Path]:
        """A new file to write to, logged as `path` when the block ends: a crash within it logs no half of a file."""
        file = self.spool.new_file(PurePosixPath(path).name)
        with naming(file):
            yield file
        file.chmod(PRIVATE)
        self.spool.append("file", path=path, file=str(file.relative_to(self.spool.folder)))

    def log_text(self, text: str, path: str) -> None:
        with self.artifact(path) as file:
            file.write_text(hide_values(text), encoding="utf-8")

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """As JSON."""
        self.log_text(json.dumps(content, ensure_ascii=False, indent=2, default=str), path)

    def log_figure(self, figure: Figure, path: str) -> None:
        with self.artifact(path) as file:
            figure.savefig(file)

    def log_table(self, columns: Mapping[str, Sequence[Any]], path: str) -> None:
        """The whole of a table (a later one of that path replaces it), for mlflow.load_table."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.log_text(json.dumps({"columns": list(columns), "data": rows}, ensure_ascii=False), path)
        self.tables[path] = None
        self.set_tags(table_tag(self.tables))

    def log_input(self, dataset: Dataset | LoggedDataset, context: str) -> None:
        """dataset: new, or one that the store has of another run."""
        self.datasets[context] = (dataset.name, dataset.digest)
        fields = dict(dataset) if isinstance(dataset, LoggedDataset) else dataset.to_dict()
        self.spool.append("input", context=context, dataset=fields)

    def log_model_input(self, model_id: str) -> None:
        self.spool.append("model input", model=model_id)

    def log_checkpoints(self, folder: Path, steps: Sequence[int]) -> None:
        """Says which validated checkpoints a folder holds now: each is a model, and those that are gone are none."""
        before, place = self.checkpoints, str(folder.resolve())
        dataset = self.datasets.get("validation")
        self.checkpoints = {"folder": place, "steps": list(steps), "dataset": dataset, "ended": False}
        if before != self.checkpoints:
            self.spool.append("checkpoints", **self.checkpoints)

    def log_saved(self, step: int) -> None:
        """Says which checkpoint the run's model is made of: its metrics are listed as the run's."""
        assert self.checkpoints, "it follows log_checkpoints"
        self.checkpoints |= {"saved": [step, int(time.time() * 1000)]}
        self.spool.append("checkpoints", **self.checkpoints)

    def log_model(self, folder: Path, step: int = 0) -> str | None:
        """Logs a model folder, once all before it has been sent; returns its models:/ URI.

        The model gets the run's validation metrics of a step, that of its weights.

        None where the store is away: the folder must then stay until pipelines.sync has sent it. Raises whatever MLflow
        has against the model, and ValueError where the local log can't be written.
        """
        dataset = self.datasets.get("validation")
        number = self.spool.append("model", folder=str(folder.resolve()), step=step, dataset=dataset)
        self.spool.sync_to_disk()
        self.flush()
        result = self.sender.delivery.results.get(number)
        if isinstance(result, Exception):
            raise result
        return result

    def flush(self) -> bool:
        """Waits until the store has everything, or for flush_timeout seconds in which it took nothing."""
        return self.sender.flush(self.flush_timeout)

    def end(self, status: str, reason: str) -> None:
        """Ends the run: its status (FINISHED, FAILED or KILLED), and in words how it ended.

        Raises ValueError where a run would be FINISHED, but its local log can't be written.
        """
        longest = SECONDS_WHEN_STOPPED if status == "KILLED" else float("inf")
        try:
            self.set_tags({END: reason})
            if self.checkpoints:
                self.spool.append("checkpoints", **self.checkpoints | {"ended": True})
            self.spool.append("status", status=status)
            try:
                self.spool.sync_to_disk()
            except ValueError as error:
                self.sender.flush(min(self.flush_timeout, SECONDS_WHEN_STOPPED))  # a torn line never goes
                if status != "FINISHED":  # what has ended it is said already
                    self.tell_store(status, reason)
                else:
                    self.tell_store("FAILED", f"failed: {first_line(error)}")
                    raise
            self.sender.flush(min(self.flush_timeout, longest), longest)
        finally:
            deactivate(self.info.run_id)
            self.abandon()
            self.say_what_is_left()

    def tell_store(self, status: str, reason: str) -> None:
        """Ends the run past its local log, which can't be written, where the store can be reached."""
        client, run_id = self.sender.delivery.client, self.info.run_id
        with suppress(Exception):
            client.set_tag(run_id, END, reason)
            client.set_terminated(run_id, status)

    def abandon(self) -> None:
        """Stops sending, and closes the local log."""
        self.sender.stop()
        self.spool.close()

    def say_what_is_left(self) -> None:
        command = "python -m pipelines.sync"
        if self.root != Path("outputs/tracking").resolve():
            command += f" tracking.spool_dir={self.root}"
        if self.spool.pending:
            logger.warning(
                "tracking: %d of %d records of run %s are still to be sent (%s): `%s` sends them",
                self.spool.pending, self.spool.records, self.info.run_id, self.sender.reason or "no time", command,
            )  # fmt: skip
        if self.spool.refused:
            logger.warning(
                "tracking: the store refused %d records of run %s; %s says why",
                self.spool.refused, self.info.run_id, self.spool.folder / "refused.jsonl",
            )  # fmt: skip
