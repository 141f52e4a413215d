"""A model on the test rows of a task, beside its baseline and what needs no model: scores with intervals, and texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modules.checkpoint.loading import load_verified, open_model, open_tokenizer
from modules.config.evaluation import EvaluateConfig
from modules.evaluation.likelihood import lost_of_rows
from modules.evaluation.logged_results import log_results, made_by
from modules.evaluation.report.build import evaluation_report
from modules.evaluation.report.card import CARD, write_card
from modules.evaluation.report.page import html
from modules.evaluation.task_evaluation import Evaluation, Task, load_task_rows
from modules.inference.text_generator import TextGenerator, require_room
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import checking, log_rows

from .cli.bad_rows import log_quarantine, show_quarantine, start_quarantine
from .cli.command_line import run_stage
from .cli.printing import progress_of, show, working_on
from .cli.results import REPORT, evaluation_plan, place_of, show_results


@dataclass(frozen=True)
class EvaluateResult:
    run_id: str  # empty after a dry run
    evaluations: dict[str, Evaluation]
    """"model", "baseline" where there is one, then what needs no model: trivial answers by name, "chance", "unigram",
    "bigram", "trigram"."""
    samples: list[dict[str, Any]]
    """Rows with prompt, text, and stopped: whether the model ended it by itself."""


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    with checking("evaluate", config) as begin_run:
        quarantine = start_quarantine(config.data)
        rows = load_task_rows(config, quarantine)
        show_quarantine(quarantine)
        task = Task(config, *rows)
        named = {"model": config.model, "champion": config.champion, "baseline": config.baseline}
        folders = {name: resolve_model(place) for name, place in named.items() if place}
        windows = {name: open_model(folder).config.max_position_embeddings for name, folder in folders.items()}
        tokenizers = {name: open_tokenizer(folder) for name, folder in folders.items()}
        require_room("prompts", config.prompts, tokenizers["model"], windows["model"])
        asked = {name: task.prompted(tokenizers[name], windows[name]) for name in folders}
        task.note_copies(folders["model"])
        if config.dry_run:
            lost = {name: lost_of_rows(each.rows, each.tokenizer, windows[name]) for name, each in asked.items()}
            show("evaluate: what will be done", evaluation_plan(task, lost))
            return EvaluateResult("", {}, [])
        run = begin_run()
        log_quarantine(run, quarantine)
        log_rows(run, rows.test, rows.place.name, "test")
        evaluations: dict[str, Evaluation] = {}
        samples: list[dict[str, Any]] = []
        for name, folder in folders.items():
            decoder, tokenizer = load_verified(folder, config.dtype)
            with progress_of(name) as progress:
                evaluations[name] = task.of_model(decoder, tokenizer, progress)
            if name == "model" and config.prompts:
                samples = TextGenerator(decoder, tokenizer, config.generation).samples(config.prompts)
        with working_on("what needs no model"):
            evaluations |= {name: task.of_trivial(name) for name in task.trivial}
            evaluations |= task.floors(tokenizers["model"])
        log_results(run, evaluations, samples, task.copies)
        show_results(task, evaluations)
        with working_on("report"):
            report = evaluation_report(task, evaluations, samples, folders["model"], made_by(run))
            run.log_text(html(report), REPORT)
            places = {"page": place_of(run, REPORT)}
            if config.card:
                places["card"] = str(write_card(run, config.model, folders["model"], report) or place_of(run, CARD))
        show("report", places)
        return EvaluateResult(run.info.run_id, evaluations, samples)


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
