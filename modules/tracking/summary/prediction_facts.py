"""What a run of predict records: the rows as a data set, counts and speed, samples, and where the answers are."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from mlflow.entities import Dataset

from ...config.prediction import PredictConfig
from ...inference.prediction.source_rows import Survey
from ...inference.prediction.work import Written
from ...system.redaction import redact_text
from ...tokenizer.tokenizer import Tokenizer
from ..run_selection import find_run
from ..stage_run import name_of_rows
from ..tracked_run import TrackedRun

CONTEXT = "predict"
"""What the rows are to the run."""

MODE, OUTPUT, OUTPUT_HASH = "mode", "output", "sha256.output"
"""Tags: whether the model answers or continues, the file with the answers, and its SHA-256."""

logger = logging.getLogger("moyun.tracking")


def run_to_continue(run_id: str | None) -> str | None:
    """The run that began the target, where this store has it; else the answers go on without it."""
    if run_id is None:
        return None
    try:
        find_run(run_id)
    except ValueError as error:
        logger.warning("tracking: the answers go on in a new run: %s", str(error).partition(" Give the store")[0])
        return None
    return run_id


def log_source(run: TrackedRun, config: PredictConfig, survey: Survey, tokenizer: Tokenizer) -> None:
    """The rows by their fingerprint, and what is done with them; they themselves stay where they are."""
    run.set_tags({MODE: "continues texts" if tokenizer.prompt_template is None else "answers"})
    place = redact_text(config.source)
    columns = [
        {"name": name, "type": "string" if kinds <= {"text"} else "any"} for name, kinds in survey.columns.items()
    ]
    run.log_input(
        Dataset(
            name=f"{name_of_rows(place)}-{CONTEXT}",
            digest=survey.digest[:32],
            source_type="local",
            source=json.dumps({"uri": place}),
            schema=json.dumps({"mlflow_colspec": columns}, ensure_ascii=False),
            profile=json.dumps({"num_rows": survey.rows}),
        ),
        CONTEXT,
    )


def log_written(run: TrackedRun, config: PredictConfig, written: Written, speed: float | None) -> None:
    """speed: tokens a second, where any were written now."""
    metrics: dict[str, float] = {
        "predict/rows": written.rows,
        "predict/errors": written.errors,
        "predict/stopped": written.stopped,
        "predict/tokens": written.tokens,
    }
    run.log_metrics(metrics | ({"predict/tokens_per_second": speed} if speed else {}))
    run.set_tags({OUTPUT: str(config.place.resolve()), OUTPUT_HASH: written.digest})
    if written.samples:
        run.log_table({key: [sample[key] for sample in written.samples] for key in written.samples[0]}, "samples.json")
    if config.log_file:
        log_copy(run, config.place)


def log_copy(run: TrackedRun, file: Path) -> None:
    with run.artifact(file.name) as copy:
        shutil.copyfile(file, copy)
