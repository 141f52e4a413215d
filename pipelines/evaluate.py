"""A model on the test rows of a task, beside its baseline and what needs no model: scores with intervals, and texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from modules.checkpoint.loading import load_verified, open_model, open_tokenizer
from modules.checkpoint.model_folder import read_provenance
from modules.config.evaluation import EvaluateConfig
from modules.data.corpora.manifest import source_of
from modules.data.splits import load_test_rows, load_training_rows
from modules.evaluation.baselines import NEEDS_TRAINING_ROWS
from modules.evaluation.likelihood import score
from modules.evaluation.report.build import evaluation_report
from modules.evaluation.report.card import model_card
from modules.evaluation.report.contents import Report
from modules.evaluation.report.page import html
from modules.evaluation.statistics import Metric, with_clusters
from modules.evaluation.task_evaluation import Evaluation, Task
from modules.evaluation.task_rows import columns_of, groups_of, with_targets
from modules.inference.text_generator import TextGenerator
from modules.model.decoder import parameter_count
from modules.system.atomic import write_text
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import log_rows, stage_run
from modules.tracking.tracked_run import TrackedRun

from .cli.bad_rows import report_quarantine, start_quarantine
from .cli.command_line import console, progress_of, run_stage, show
from .cli.results import REPORT, log_results, made_by, place_of, show_results


@dataclass(frozen=True)
class EvaluateResult:
    run_id: str
    evaluations: dict[str, Evaluation]
    """"model", "baseline" where there is one, then what needs no model: trivial answers by name, "chance", "unigram",
    "bigram", "trigram"."""
    samples: list[dict[str, Any]]
    """Rows with prompt, text, and stopped: whether the model ended it by itself."""


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    with stage_run("evaluate", config) as run:
        test, train = load_evaluation_rows(config, run)
        task = Task(config, test, train)
        if config.dry_run:
            show("evaluate: what will be done", plan(task))
            return EvaluateResult(run.info.run_id, {}, [])
        log_rows(run, test, str(config.data.test_path or config.data.path), "test")
        folders = {"model": resolve_model(config.model)}
        beside = {"champion": config.champion, "baseline": config.baseline}
        folders |= {name: resolve_model(place) for name, place in beside.items() if place}
        evaluations: dict[str, Evaluation] = {}
        samples: list[dict[str, Any]] = []
        for name, folder in folders.items():
            decoder, tokenizer = load_verified(folder, config.dtype)
            with progress_of(name) as progress:
                evaluations[name] = task.of_model(decoder, tokenizer, progress)
            if name == "model" and config.prompts:
                samples = continue_prompts(TextGenerator(decoder, tokenizer, config.generation), config.prompts)
        with console.status("what needs no model"):
            evaluations |= {name: task.of_trivial(name) for name in task.trivial}
            evaluations |= task.floors(open_tokenizer(folders["model"]))
        log_results(run, evaluations, samples)
        show_results(task, evaluations)
        with console.status("report"):
            report = evaluation_report(config, test, evaluations, samples, folders["model"], made_by(run))
            run.log_text(html(report), REPORT)
            if config.card:
                write_card(config.model, folders["model"], report)
        show("report", {"page": place_of(run, REPORT)})
        return EvaluateResult(run.info.run_id, evaluations, samples)


def write_card(name: str, folder: Path, report: Report) -> None:
    origin = read_provenance(folder)
    source = source_of(origin.get("config", {}).get("data", {}).get("path"))
    text = model_card(name, report, origin, parameter_count(open_model(folder).config), source)
    write_text(folder / "README.md", text)


def load_evaluation_rows(config: EvaluateConfig, run: TrackedRun) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """(test rows, training rows where something is made of them and data.path names any)"""
    columns = columns_of(config.task, config.data)
    quarantine = start_quarantine(config.data)
    test = with_targets(load_test_rows(config.data, quarantine, columns))
    task, train = config.task, None
    counted = config.ngram_floor and "perplexity" in task.metrics
    compared = "verse" in task.metrics or bool(set(task.trivial) & set(NEEDS_TRAINING_ROWS))
    if config.data.path and (counted or compared or task.examples):
        train = with_targets(load_training_rows(config.data, config.seed, quarantine, columns))
    report_quarantine(run, quarantine)
    return test, train


def plan(task: Task) -> dict[str, str]:
    config = task.config
    texts = f"{len(task.chosen):,} rows" if task.chosen else "none"
    return {
        "model": config.model,
        "rows": f"{len(task.test):,}",
        "metrics": ", ".join(task.metrics),
        "texts generated": texts,
        "beside it": ", ".join(([config.baseline] if config.baseline else []) + task.trivial) or "nothing",
    }


def score_folder(name: str, folder: Path, rows: datasets.Dataset, max_batch_tokens: int, dtype: str = "auto") -> Metric:
    """Perplexity per character of the model in a folder, row by row. `name`: what the progress bar calls it."""
    decoder, tokenizer = load_verified(folder, dtype)
    with progress_of(name) as progress:
        found = score(decoder, tokenizer, rows, max_batch_tokens, lambda done: progress("likelihood", done))
    return with_clusters(found.perplexity_per_char, groups_of(rows))


def continue_prompts(generator: TextGenerator, prompts: list[str]) -> list[dict[str, Any]]:
    full = generator.tokenizer.prompt_template is None
    return [
        {"prompt": prompt, "text": prompt * full + row.text, "stopped": row.stopped}
        for prompt, row in zip(prompts, generator.write(prompts), strict=True)
    ]


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
