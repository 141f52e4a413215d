"""A model on test rows: perplexity per character beside its baseline and the n-gram floor, and sample texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets

from modules.checkpoint import load_for_inference
from modules.config import EvaluateConfig
from modules.evaluation import Likelihoods, ngram_floor, score
from modules.measures import Measure
from modules.pictures import perplexity_bars
from modules.registry import resolve_model
from modules.splits import load_splits, load_test_rows
from modules.text_generation import TextGenerator
from modules.tokenizer import Tokenizer, load_tokenizer
from modules.tracking import log_rows, stage_run
from modules.tracking.tracked_run import TrackedRun

from .command_line import console, progress_bar, run_stage, show
from .quarantine import report_quarantine, start_quarantine


@dataclass(frozen=True)
class EvaluateResult:
    run_id: str
    scores: dict[str, Likelihoods]
    """"model", and "baseline" where there is one."""
    floor: dict[str, Measure]
    """Perplexity per character of unigram, bigram and trigram; empty where none was asked for."""
    samples: list[dict[str, str]]
    """Rows with prompt and text."""


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    with stage_run("evaluate", config) as run:
        quarantine = start_quarantine(config.data)
        test = load_test_rows(config.data, quarantine)
        report_quarantine(run, quarantine)
        if config.dry_run:
            show("evaluate: what will be done", {"rows": f"{len(test):,}", "model": config.model})
            return EvaluateResult(run.info.run_id, {}, {}, [])
        train = (
            load_splits(config.data, config.seed, quarantine=start_quarantine(config.data))["train"]
            if config.ngram_floor
            else None
        )
        log_rows(run, test, str(config.data.test_path or config.data.path), "test")
        folders = {"model": resolve_model(config.model)}
        if config.baseline:
            folders["baseline"] = resolve_model(config.baseline)
        scores = {
            name: likelihoods(name, folder, test, config.max_batch_tokens, config.dtype)
            for name, folder in folders.items()
        }
        tokenizer = load_tokenizer(folders["model"])
        floor = floor_of(train, test, tokenizer) if train is not None else {}
        samples = continue_prompts(folders["model"], tokenizer, config)
        log_results(run, scores, floor, samples)
        show("perplexity per character on the test rows (lower is better)", ranking(scores, floor))
        return EvaluateResult(run.info.run_id, scores, floor, samples)


def score_folder(
    name: str, folder: Path, rows: datasets.Dataset, max_batch_tokens: int, dtype: str = "auto"
) -> Measure:
    """Perplexity per character of the model in a folder, row by row. `name`: what the progress bar calls it."""
    return likelihoods(name, folder, rows, max_batch_tokens, dtype).perplexity_per_char


def likelihoods(
    name: str, folder: Path, rows: datasets.Dataset, max_batch_tokens: int, dtype: str = "auto"
) -> Likelihoods:
    decoder, tokenizer = load_for_inference(folder, dtype), load_tokenizer(folder)
    with progress_bar() as progress:
        task = progress.add_task(f"scoring {name}", total=1)
        return score(decoder, tokenizer, rows, max_batch_tokens, lambda done: progress.update(task, completed=done))


def floor_of(train: datasets.Dataset, test: datasets.Dataset, tokenizer: Tokenizer) -> dict[str, Measure]:
    with console.status("fitting n-grams"):
        return ngram_floor(train, test, tokenizer)


def continue_prompts(folder: Path, tokenizer: Tokenizer, config: EvaluateConfig) -> list[dict[str, str]]:
    if not config.prompts:
        return []
    generator = TextGenerator(load_for_inference(folder, config.dtype), tokenizer, config.generation)
    results = generator(config.prompts)
    return [{"prompt": prompt, "text": result["text"]} for prompt, result in zip(config.prompts, results, strict=True)]


def ranking(scores: dict[str, Likelihoods], floor: dict[str, Measure]) -> dict[str, str]:
    """Name → perplexity per character, best first."""
    values = perplexities(scores, floor)
    return {name: f"{value:.1f}" for name, value in sorted(values.items(), key=lambda item: item[1])}


def perplexities(scores: dict[str, Likelihoods], floor: dict[str, Measure]) -> dict[str, float]:
    measures = {name: found.perplexity_per_char for name, found in scores.items()} | floor
    return {name: measure.value for name, measure in measures.items()}


def log_results(
    run: TrackedRun, scores: dict[str, Likelihoods], floor: dict[str, Measure], samples: list[dict[str, str]]
) -> None:
    model, values = scores["model"], perplexities(scores, floor)
    metrics = {
        "test/rows": len(model.nll),
        "test/rows_cut": model.rows_cut,
        "test/tokens": model.tokens.sum(),
        "test/perplexity": model.perplexity.value,
        "test/perplexity_per_char": values["model"],
    }
    if "baseline" in scores:
        metrics["test/baseline_perplexity_per_char"] = values["baseline"]
    metrics |= {f"test/floor_{name}": measure.value for name, measure in floor.items()}
    run.log_metrics(metrics)
    run.log_figure(perplexity_bars(values, "test rows"), "perplexity_per_char.png")
    if samples:
        run.log_table({key: [sample[key] for sample in samples] for key in samples[0]}, "samples.json")


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
