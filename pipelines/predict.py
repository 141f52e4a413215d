"""A file of rows → the same rows with a model's answers (docs/predict.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from modules.checkpoint.loading import load_verified, model_hash, open_tokenizer
from modules.config.prediction import PredictConfig
from modules.inference.asked_task import asking
from modules.inference.prediction.journal import Journal
from modules.inference.prediction.source_rows import Source
from modules.inference.prediction.work import Prediction, Written, made_of, require_another_place, require_usable
from modules.inference.text_generator import TextGenerator
from modules.system.signals import Stopped
from modules.tracking.models.known_models import log_used_model
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import checking
from modules.tracking.summary.prediction_facts import log_source, log_written, run_to_continue

from .cli.command_line import run_stage
from .cli.predictions import Speed, prediction_plan, progress_of_rows, show_written
from .cli.printing import show


@dataclass(frozen=True)
class PredictResult:
    run_id: str
    """Empty after a dry run."""
    target: Path
    written: Written  # how many rows, errors and tokens; samples


def predict(config: PredictConfig) -> PredictResult:
    """Raises ValueError for rows, a model or a target that can't be used, or a target that was begun otherwise."""
    journal, source = Journal(config.place), Source(config)
    require_another_place(config, source.files)
    journal.require_free(config.force)
    with ExitStack() as outside, checking("predict", config) as begin_run:
        folder = resolve_model(config.model)
        tokenizer = asking(open_tokenizer(folder), config.task)
        survey = source.survey()
        require_usable(config, survey, tokenizer)
        facts = made_of(config, survey, model_hash(folder), tokenizer)
        goes_on = journal.require_same(facts, config.force)
        show("predict: what will be done", prediction_plan(config, source, survey, tokenizer, goes_on))
        if config.dry_run:
            return PredictResult("", config.place, Written())
        outside.enter_context(journal.claimed())
        goes_on = journal.require_same(facts, config.force)  # another process may have had it until now
        run = begin_run(run_to_continue(journal.about["run_id"]) if goes_on else None)
        journal.begin(facts, run.info.run_id)
        log_source(run, config, survey, tokenizer)
        log_used_model(run, config.model, folder)
        with telling_how_to_go_on(config):
            generator = TextGenerator(load_verified(folder, config.dtype)[0], tokenizer, config.generation)
            task, speed = Prediction(config, source, survey, journal, source.answered_in_full(tokenizer)), Speed()
            with progress_of_rows(survey.rows, speed) as progress:
                task.answer(generator, progress)
            written = task.write()
        log_written(run, config, written, speed.tokens_per_second)
        show_written(config, survey, written, run.info.run_id, speed.tokens_per_second)
        journal.finished = True
        return PredictResult(run.info.run_id, config.place, written)


@contextmanager
def telling_how_to_go_on(config: PredictConfig) -> Iterator[None]:
    """A signal ends the process where it stands; what is answered stays."""
    try:
        yield
    except Stopped as stop:
        said = f"stopped; what is answered stays, and the same command goes on with {config.place}"
        raise Stopped(int(stop.code or 128) - 128, said) from None


if __name__ == "__main__":
    run_stage("predict", predict)
