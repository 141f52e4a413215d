"""From a run's local log to the MLflow store: batch by batch, in order, and each record once.

What was sent but not answered is sent again. That makes no duplicates: the store's primary key drops a metric that it
has (key, step, timestamp, value); a parameter, tag, input or file is the same again; a model is looked for first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModelInput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException

from ...system.redaction import first_line
from .logged_models import keep_checkpoints, metric_of
from .spool import Record, Spool
from .store import is_refusal

METRICS_AT_ONCE = 900
"""MLflow takes 1000 in one call."""

READ_AT_ONCE = 1 << 16
"""Bytes of the log: some batches. They are decoded in the time of the process that trains."""

LogModel = Callable[[Path, Run, str, Mapping[str, Any]], str]
"""(model folder, run, name of the record, its fields) → models:/ URI; called again, it finds the same model by name."""


class Delivery:
    """Sends a local log to its run in the store, one batch a `step`."""

    def __init__(self, spool: Spool, run_id: str, tracking_uri: str, log_model: LogModel) -> None:
        self.log_model = log_model
        self.spool = spool
        self.run_id = run_id
        self.client = MlflowClient(tracking_uri)
        self.results: dict[int, Any] = {}
        """Record number → models:/ URI of a model that was sent, or why it was refused."""
        self.sending_model = False
        """A model is being sent, which may take long: its weights are large."""
        self.models: set[str] = set()
        """Ids of models that are in the store."""
        self.ahead: list[Record] = []
        """Records that were read and not sent yet."""

    def step(self) -> bool:
        """Sends the next batch; False where nothing waits. An error means that the store is away: try again later."""
        self.ahead = self.ahead or self.spool.read(self.spool.sent, self.spool.sent_records, READ_AT_ONCE)
        if not (batch := first_batch(self.ahead)):
            return False
        refused: list[tuple[Record, str]] = []
        self.send(batch, refused)
        self.spool.mark_sent(batch[-1], refused)
        del self.ahead[: len(batch)]
        return True

    def retry_refused(self) -> int:
        """Sends once more what the store refused; returns how many records it took now. Errors as in `step`."""
        waiting = still_wanted(self.spool)
        refused: list[tuple[Record, str]] = []
        rest = waiting
        while batch := first_batch(rest):
            self.send(batch, refused)
            rest = rest[len(batch) :]
        self.spool.keep_refused(refused)
        return len(waiting) - len(refused)

    def send(self, batch: list[Record], refused: list[tuple[Record, str]]) -> None:
        """Sends a batch, in smaller and smaller parts where the store refuses it; adds to `refused` what stays so."""
        try:
            self.to_store(batch)
        except Exception as error:
            if not is_refusal(error) or self.run_was_deleted():
                raise
            parts = halves(batch)
            for part in parts:
                self.send(part, refused)
            if not parts:
                self.results[batch[0].number] = error
                refused.append((batch[0], first_line(error)))

    def run_was_deleted(self) -> bool:
        """Whether the run was deleted: then the store refuses everything, but the run may be restored."""
        return bool(self.client.get_run(self.run_id).info.lifecycle_stage == LifecycleStage.DELETED)

    def to_store(self, batch: list[Record]) -> None:
        """A batch of metrics, or one record of another kind."""
        first, run_id = batch[0], self.run_id
        fields = first.fields
        if first.kind == "metrics":
            self.client.log_batch(run_id, metrics=[metric for record in batch for metric in self.metrics_of(record)])
        elif first.kind == "params":
            self.client.log_batch(run_id, params=[Param(*item) for item in fields["values"].items()])
        elif first.kind == "tags":
            self.client.log_batch(run_id, tags=[RunTag(*item) for item in fields["values"].items()])
        elif first.kind == "file":
            folder, _, _ = fields["path"].rpartition("/")
            self.client.log_artifact(run_id, present(self.spool.folder / fields["file"]), folder or None)
        elif first.kind == "input":
            context = InputTag("mlflow.data.context", fields["context"])
            self.client.log_inputs(run_id, [DatasetInput(Dataset(**fields["dataset"]), [context])])
        elif first.kind == "model input":
            if self.is_there(fields["model"]):
                self.client.log_inputs(run_id, models=[LoggedModelInput(fields["model"])])
        elif first.kind == "model":
            self.send_model(first)
        elif first.kind == "checkpoints":
            if not any(later.kind == "checkpoints" for later in self.ahead[1:]):  # which says it anew
                keep_checkpoints(self.client, run_id, fields)
        elif first.kind == "status" and fields["status"] == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        elif first.kind == "status":
            self.client.set_terminated(run_id, fields["status"], end_time=fields["t"])
        else:
            raise ValueError(f"line {first.number + 1} of {self.spool.folder / 'log.jsonl'} can't be read")

    def metrics_of(self, record: Record) -> Iterator[Metric]:
        fields = record.fields
        model = fields.get("model")
        if model and not self.is_there(model):
            model = None
        for name, value in fields["values"].items():
            yield metric_of(name, value, fields["t"], fields["step"], model, fields.get("dataset"))

    def is_there(self, model_id: str) -> bool:
        """Whether the store has that model still: what belongs to one that `mlflow gc` removed would never go."""
        if model_id not in self.models:
            try:
                self.client.get_logged_model(model_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False
            self.models.add(model_id)
        return True

    def send_model(self, record: Record) -> None:
        if self.went_on_after(record):
            return  # the run makes the model anew
        folder = present(Path(record.fields["folder"]))
        run = self.client.get_run(self.run_id)  # a store that hangs shows here, before the long wait for an upload
        self.sending_model = True
        try:
            self.results[record.number] = self.log_model(
                Path(folder), run, f"{self.run_id}/{record.number}", record.fields
            )
        finally:
            self.sending_model = False

    def went_on_after(self, record: Record) -> bool:
        """Whether the run was continued after this record."""
        later = self.spool.read(record.end, record.number + 1)
        return any(other.kind == "status" and other.fields["status"] == "RUNNING" for other in later)


def first_batch(records: list[Record]) -> list[Record]:
    """One record, or as many of metrics in a row as go in one call."""
    values = 0
    for count, record in enumerate(records):
        values += len(record.fields["values"]) if record.kind == "metrics" else METRICS_AT_ONCE
        if values > METRICS_AT_ONCE:
            return records[: max(1, count)]
    return list(records)


def still_wanted(spool: Spool) -> list[Record]:
    """The refused records that no later record replaces (`replaceable`)."""
    refused = spool.refused_before()
    last: dict[tuple[str, str], int] = {}
    for record in spool.all() if refused else ():
        last |= dict.fromkeys(replaceable(record), record.number)
    return [r for r in refused if all(last.get(name, r.number) <= r.number for name in replaceable(r))]


def replaceable(record: Record) -> list[tuple[str, str]]:
    """(kind, name) of what a later record would overwrite: tags, a file, the status, or which checkpoints there are."""
    if record.kind == "tags":
        return [(record.kind, name) for name in record.fields["values"]]
    kinds = ("file", "status", "checkpoints")
    return [(record.kind, record.fields.get("path", ""))] if record.kind in kinds else []


def halves(batch: list[Record]) -> list[list[Record]]:
    """The two halves of a batch, or of its only record's values; empty where there is nothing to halve."""
    if len(batch) > 1:
        middle = len(batch) // 2
        return [batch[:middle], batch[middle:]]
    values = list(batch[0].fields.get("values", {}).items())
    if len(values) < 2:
        return []
    parts = values[: len(values) // 2], values[len(values) // 2 :]
    return [[replace(batch[0], fields=batch[0].fields | {"values": dict(part)})] for part in parts]


def present(path: Path) -> str:
    """The path as text. Raises ValueError where nothing is there any more."""
    if not path.exists():
        raise ValueError(f"{path} isn't there any more")
    return str(path)


def table_tag(paths: Iterable[str]) -> dict[str, str]:
    """The tag by which mlflow.load_table finds a run's tables."""
    return {"mlflow.loggedArtifacts": json.dumps([{"path": path, "type": "table"} for path in paths])}
