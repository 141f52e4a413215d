"""A model on the test rows of a task, beside its baseline and what needs no model: scores with intervals, and texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modules.checkpoint.loading import load_verified, open_model
from modules.config.evaluation import EvaluateConfig
from modules.evaluation.choosing.scored_rows import choose_rows, load_task_rows, scored_tokenizer
from modules.evaluation.likelihood import lost_of_rows
from modules.evaluation.logged_results import log_results, made_by
from modules.evaluation.report.build import evaluation_report
from modules.evaluation.report.card import CARD, write_card
from modules.evaluation.report.page import write_page
from modules.evaluation.task_evaluation import Evaluation, Task
from modules.inference.text_generator import require_room
from modules.tracking.models.known_models import log_used_model
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import checking, log_rows

from .cli.bad_rows import log_quarantine, show_quarantine, start_quarantine
from .cli.command_line import run_stage
from .cli.printing import progress_of, show, working_on
from .cli.results import REPORT, evaluation_plan, place_of, show_results


@dataclass(frozen=True)
class EvaluateResult:
    run_id: str  # empty after a dry run
    evaluations: dict[str, Evaluation]  # "model", "baseline", "champion" where there are such; then what needs no model
    samples: list[dict[str, Any]]  # prompt, text, and stopped: whether the model ended it by itself


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    with checking("evaluate", config) as begin_run:
        named = {"model": config.model, "champion": config.champion, "baseline": config.baseline}
        folders = {name: resolve_model(place) for name, place in named.items() if place}
        config, chosen = choose_rows(config, config.model, folders["model"])
        quarantine = start_quarantine(config.data)
        rows = load_task_rows(config, chosen, quarantine)
        show_quarantine(quarantine)
        task = Task(config, *rows)
        windows = {name: open_model(folder).config.max_position_embeddings for name, folder in folders.items()}
        tokenizers = {name: scored_tokenizer(folder, config.data) for name, folder in folders.items()}
        require_room("prompts", config.prompts, tokenizers["model"], windows["model"], config.generation)
        asked = {name: task.prompted(tokenizers[name], windows[name]) for name in folders}
        task.note_copies(folders["model"])
        if config.dry_run:
            lost = {name: lost_of_rows(each.rows, each.tokenizer, windows[name]) for name, each in asked.items()}
            show("evaluate: what will be done", evaluation_plan(task, lost))
            return EvaluateResult("", {}, [])
        run = begin_run()
        log_quarantine(run, quarantine)
        log_rows(run, rows.test, rows.place.name, "test")
        models = {name: log_used_model(run, str(named[name]), folder) for name, folder in folders.items()}
        evaluations: dict[str, Evaluation] = {}
        samples: list[dict[str, Any]] = []
        for name, folder in folders.items():
            decoder, _ = load_verified(folder, config.dtype)
            with progress_of(name) as progress:
                evaluations[name] = task.of_model(decoder, tokenizers[name], progress)
            if name == "model":
                samples = task.samples(evaluations[name], decoder, tokenizers[name])
        with working_on("what needs no model"):
            evaluations |= task.rivals(tokenizers["model"])
        log_results(run, evaluations, samples, task.copies, models)
        show_results(task, evaluations)
        with working_on("report"):
            report = evaluation_report(task, evaluations, samples, folders, made_by(run))
            places = {"verdict": write_page(run, report, REPORT), "page": place_of(run, REPORT)}
            if config.card:
                card = write_card(run, config.model, folders["model"], report, asked["model"].tokenizer)
                places["card"] = str(card or place_of(run, CARD))
        show("report", places)
        return EvaluateResult(run.info.run_id, evaluations, samples)


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
