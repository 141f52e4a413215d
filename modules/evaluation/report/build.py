"""The report of an evaluation, from its results and the run that trained the model."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from mlflow.exceptions import MlflowException

from ...checkpoint.model_folder import describe_provenance, read_provenance
from ...config.evaluation import EvaluateConfig
from ...config.generation import GenerationConfig
from ...tracking.run_lifecycle import metric_history
from ..statistics import Metric, PairedComparison, rows_in_words
from ..task_evaluation import Evaluation, ScoredRow, Task
from ..verse.form import line_lengths
from .contents import Column, Example, Report, Sample, Series, label
from .naming import model_name
from .verdict import compared, compared_by, measure_of

PER_TOKEN = "perplexity"
"""The metric that a report leaves out, since models with different tokenizers can't be compared by it."""

RANKED_BY = ("rougeL", "slot_error_rate", "exact_match", "bleu", "chrf", "perplexity_per_char")
"""What the worst and best rows are chosen by: the first of these that there is."""

MOST = 12
"""Lines of a poem, or characters of a line, that are counted one by one."""


def evaluation_report(
    task: Task,
    evaluations: Mapping[str, Evaluation],
    samples: Sequence[Mapping[str, Any]],
    folders: Mapping[str, Path],
    facts: Mapping[str, str] | None = None,
) -> Report:
    """All that the page and the card say.

    evaluations: who was scored → its evaluation; "model" first. folders: the models'; the tracking store is asked for
    the curves of the run that made the first. facts: what the end of the page says beside that, e.g. the evaluation's
    run.
    """
    config, test, model = task.config, task.test, evaluations["model"]
    measure = measure_of(task.metrics, model)
    tests = {who: [test] for who, test in compared_by(measure, evaluations).items()}
    for name in folders.keys() & evaluations.keys() - {"model"}:
        tests[name] = list(comparisons(model, evaluations[name]))
    ranked_by = next((name for name in RANKED_BY if name in model), model.metrics[0].name)
    origin = read_provenance(folders["model"])
    names = {who: model_name(getattr(config, who), folder) for who, folder in folders.items()}
    cpu = str((origin.get("machine") or {}).get("CPU") or "")
    return Report(
        title=f"{label(config.task.name or 'evaluation')}: {names['model']}",
        facts=facts_of(task, model, names),
        model=names["model"],
        measure=measure.name,
        columns=[Column(name, metrics_of(found)) for name, found in evaluations.items()],
        comparisons=tests,
        curves=training_curves(origin.get("run_id")),
        lengths=lengths(model.rows),
        form=verse_form(config, test, model.rows),
        examples=list(examples(test, model, ranked_by)),
        score_name=ranked_by,
        higher_is_better=model[ranked_by].higher_is_better,
        best=model[ranked_by].best,
        samples=[continuation(sample) for sample in samples],
        made_by={**(facts or {}), **describe_provenance(origin, "trained")} | ({"trained on": cpu} if cpu else {}),
    )


def facts_of(task: Task, model: Evaluation, names: Mapping[str, str]) -> dict[str, str]:
    config, generation = task.config, task.config.generation
    facts = {
        "model": config.model,
        **{who: f"{name} ({getattr(config, who)})" for who, name in names.items() if who != "model"},
        "scored on": f"{rows_in_words(model.metrics[0])} of {task.place}",
        "n-grams, nearest rows and examples of": (
            f"{len(task.train):,} training rows of {task.train_place}" if task.train is not None else ""
        ),
        "of these among the training rows too": f"{task.copies:,}" if task.copies else "",
        "lost by the model's tokenizer": str(model.lost) if model.lost and model.lost.counts else "",
        "texts generated": f"for {len(model.rows):,} rows" if model.rows else "",
        "generation": drawn(generation) if model.rows else "",
        "solved examples in each prompt": str(config.task.examples or ""),
        "too long for the model": ", ".join(f"{label(name)}: {n:,}" for name, n in model.counts.items() if n),
    }
    return {name: value for name, value in facts.items() if value}


def drawn(generation: GenerationConfig) -> str:
    """How texts were written: what is always told of sampling, and every other key that isn't as it is anyway."""
    told = ("temperature", "top_p", "seed", "max_new_tokens")
    sampled = f"temperature {generation.temperature:g}, top-p {generation.top_p:g}, seed {generation.seed}"
    usual = asdict(GenerationConfig())
    others = {key: value for key, value in asdict(generation).items() if value != usual[key]}
    parts = ["greedy" if generation.temperature == 0 else sampled]
    parts += [f"{key} {value}" for key, value in others.items() if key not in told]
    return f"{', '.join(parts)}; at most {generation.max_new_tokens} tokens"


def metrics_of(found: Evaluation) -> list[Metric]:
    return [metric for metric in found.metrics if metric.name != PER_TOKEN]


def comparisons(model: Evaluation, other: Evaluation) -> Iterator[PairedComparison]:
    """Paired tests, one for each metric that both have on the same rows."""
    return filter(None, (compared(metric, other) for metric in metrics_of(model)))


def lengths(rows: Sequence[ScoredRow]) -> dict[str, list[int]]:
    written = [len(row.text) for row in rows]
    return {"written": written, "reference": [len(row.references[0]) for row in rows if row.references]} if rows else {}


def verse_form(
    config: EvaluateConfig, test: datasets.Dataset, rows: Sequence[ScoredRow]
) -> dict[str, dict[str, dict[str, float]]]:
    """How many lines poems have, and how many characters a line, what was written beside the references."""
    if "verse" not in config.task.metrics or not rows:
        return {}
    continued = "tgt_txt" not in test.column_names  # then a poem begins with what was given
    poems = {
        "written": [line_lengths(row.source * continued + row.text) for row in rows],
        "reference": [line_lengths(row.source * continued + row.references[0]) for row in rows if row.references],
    }
    return {
        "Lines of a poem": {who: tally(map(len, found), MOST) for who, found in poems.items()},
        "Characters of a line": {who: tally(chain.from_iterable(found), MOST) for who, found in poems.items()},
    }


def tally(values: Iterator[int], most: int) -> dict[str, float]:
    """Value → how often it occurs, in order; all values above `most` are counted together."""
    counts = Counter(min(value, most + 1) for value in values)
    return {str(value) if value <= most else f"> {most}": float(counts[value]) for value in sorted(counts)}


def examples(test: datasets.Dataset, model: Evaluation, ranked_by: str) -> Iterator[Example]:
    """The rows that texts were generated for; where there are none, all rows with their own score."""
    for row in model.rows:
        reference = row.references[0] if row.references else None
        yield Example(row.source, row.scores.get(ranked_by, math.nan), row.text, reference, row.stopped)
    values = model[ranked_by].of_rows()
    if model.rows or len(values) != len(test):
        return
    targets = test["tgt_txt"] if "tgt_txt" in test.column_names else [None] * len(test)
    for source, target, value in zip(test["src_txt"], targets, values, strict=True):
        yield Example(source, float(value), reference=target)


def continuation(sample: Mapping[str, Any]) -> Sample:
    """A sample's text holds its prompt, but for a model that was tuned to answer."""
    prompt, text = sample["prompt"], sample["text"]
    return Sample(prompt, text.removeprefix(prompt) if text.startswith(prompt) else f"\n{text}", sample.get("stopped"))


logger = logging.getLogger("moyun.report")
CURVES = {
    "Loss (nats a token)": {"train/loss": "training", "val/loss": "validation"},
    "Learning to stop (validation rows)": {
        "val/end_of_text_found": "end-of-text is likeliest at the end",
        "val/end_of_text_early": "and before it",
    },
}
"""Title of a picture → metric → what its line is called."""


def training_curves(run_id: str | None) -> dict[str, dict[str, Series]]:
    """Title → line → (step, value); a picture for what was logged. Empty where the store doesn't know the run."""
    if not run_id:
        return {}
    try:
        history = metric_history(run_id, [name for lines in CURVES.values() for name in lines])
    except MlflowException as error:
        logger.warning("no training curves in the report: %s", error.message)
        return {}
    curves: dict[str, dict[str, Series]] = {
        title: {line: history[name] for name, line in lines.items() if history[name]} for title, lines in CURVES.items()
    }
    return {title: lines for title, lines in curves.items() if lines}
