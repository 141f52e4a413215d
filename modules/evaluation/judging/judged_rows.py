"""A model's answers to training rows, ranked by metrics → the best and the worst of each as a preference row."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ...checkpoint.loading import load_verified, open_model, verified_hash
from ...config.data import DataConfig, PrepareConfig
from ...config.evaluation import EvaluateConfig
from ...config.preferences.judging import KNOWN, PreparingConfig
from ...data.arrow import fingerprint
from ...data.conversations.message_rows import as_json, questions_of
from ...data.corpora.manifest import Manifest, begin_folder, earlier_manifest, finish_folder, write_splits
from ...data.quarantine import QUARANTINE, DataError, Quarantine
from ...data.reading.column_names import SCORED_COLUMNS
from ...data.splits import Place, load_training_rows, place_in
from ...tokenizer.tokenizer import Tokenizer
from ...tracking.registry import resolve_model
from ..answers import Answer
from ..choosing.checkpoint_choice import logged_name
from ..choosing.scored_rows import choose_rows, filled, scored_tokenizer, task_data
from ..prompts import Prompted, template_of
from ..task_evaluation import Task
from ..task_rows import REQUIRED, Trained, columns_of, trained_on, usable_columns, with_targets

SAME = 1e-9
"""Scores no further apart than this are alike."""


@dataclass(frozen=True)
class Judged:
    """An answer and what it is worth."""

    text: str
    score: float
    """The weighted sum of its measures, the higher the better; nan where one of them says nothing of this text."""
    measures: dict[str, float]


def is_judged(config: PrepareConfig) -> TypeGuard[PreparingConfig]:
    return isinstance(config, PreparingConfig) and config.is_judged


def judge_answers(
    config: PreparingConfig,
    folder: Path,
    progress: Callable[[str, float], None],
    quarantine: Quarantine | None = None,
) -> Manifest:
    """A data folder of preference rows; DataError where the rows don't allow it, or no prompt has a better answer."""
    assert config.model
    model = resolve_model(config.model)
    task, place, note = prompts_of(config, model, quarantine)
    tokenizer = scored_tokenizer(model, task.config.data)
    prompted = task.prompted(tokenizer, open_model(model).config.max_position_embeddings)
    identity = {
        "source": f"answers of {config.model}, judged",
        "weights_sha256": verified_hash(model),
        "rows": str(place),
        "sha256": {"train": fingerprint(task.test, (*SCORED_COLUMNS,))},
        "judge": config.judges,
        "answers": config.answers,
        "asked": {
            "prompts": len(task.chosen),
            "prompts_sha256": prompts_digest(task, prompted),
            "prompt_template": template_of_prompts(task, tokenizer),
            "seed": config.seed,
            "dtype": config.dtype,
            **vars(config.generation),
        },
    }
    if earlier := earlier_manifest(folder, identity):
        return earlier
    decoder, _ = load_verified(model, config.dtype)
    answered: list[list[Answer]] = []
    for number in range(config.answers):
        told = partial(tell, progress, number / config.answers, 1 / config.answers)
        answered.append(with_seed(task, number).generate_answers(decoder, prompted, task.chosen, task.rows, told))
    scores = [scored(task, answers, config.judges) for answers in answered]
    rows, counts = preferences(task, answered, scores)
    if not rows:
        raise DataError(f"no prompt has an answer that is better than another: {in_words(counts)}; {REMEDY}")
    begin_folder(folder, identity)
    files = write_splits(folder, {"train": rows})
    if quarantine and quarantine.rows:
        files[QUARANTINE] = quarantine.write(folder / QUARANTINE)
    return finish_folder(folder, identity | {"note": note, "judged": counts | spread(rows)}, files)


def prompts_digest(task: Task, prompted: Prompted) -> str:
    """SHA-256 of all that decides what is asked, and how BLEU parts the answers."""
    rows = prompted.rows.select(task.chosen)
    told = [prompted.tokenizer.fingerprint, fingerprint(rows), task.task.tokenize]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def template_of_prompts(task: Task, tokenizer: Tokenizer) -> str | None:
    """How prefer has to ask the rows' questions; None where texts are continued."""
    if "tgt_txt" not in task.test.column_names:
        return None
    return template_of(task.test, tokenizer, task.task, task.config.data)


def tell(progress: Callable[[str, float], None], begun: float, part: float, what: str, share: float) -> None:
    progress(what, begun + part * share)


REMEDY = "sample more (answers, prompts) or longer (generation.max_new_tokens), or give another judge"


def prompts_of(config: PreparingConfig, model: Path, quarantine: Quarantine | None) -> tuple[Task, Place, str]:
    """(the training rows as a task to be answered, where they are from, whose they are)."""
    metrics = list(dict.fromkeys(KNOWN[name] for name in config.judges))
    asked = EvaluateConfig(
        seed=config.seed,
        model=str(config.model),
        task=replace(config.task, metrics=metrics, trivial=[], rows=config.prompts),
        ngram_floor=False,
        generation=config.generation,
    )
    data, trained, note = training_data(config, model, asked)
    seed = trained.seed if trained else config.seed
    read = load_training_rows(data, seed, quarantine, columns_of(asked.task, data))
    rows, ignored = usable_columns(read)
    rows, place = with_targets(rows), place_in(str(data.path), "train")
    for name in config.judges:
        if lacks := [column for column in REQUIRED.get(KNOWN[name], ()) if column not in rows.column_names]:
            why = "".join(f" ({ignored[column]})" for column in lacks if column in ignored)
            raise DataError(
                f"judge.{name} needs rows with {' and '.join(lacks)}, and {place} has {', '.join(rows.column_names)}"
                f"{why}: give other rows (data.path), or another judge"
            )
    examples = rows if asked.task.examples else None
    return Task(replace(asked, data=data), rows, examples, place, ignored), place, note


def training_data(
    config: PreparingConfig, model: Path, asked: EvaluateConfig
) -> tuple[DataConfig, Trained | None, str]:
    """(whose training rows are the prompts, the model's training where they are its own, whose they are in words)."""
    if config.data.path:
        trained = trained_on(model, config.data.cache_dir)
        usual = DataConfig(prompt_template=task_data(config.task).prompt_template)
        return filled(config.data, usual), trained.source_with(config.data) if trained else None, ""
    found, chosen = choose_rows(replace(asked, data=config.data), str(config.model), model)
    return found.data, chosen.trained, chosen.note


def with_seed(task: Task, number: int) -> Task:
    """The same task, answered with other random numbers."""
    generation = task.config.generation
    seed = task.config.seed if generation.seed is None else generation.seed
    other = copy.copy(task)
    other.config = replace(task.config, generation=replace(generation, seed=seed + number))
    return other


def scored(task: Task, answers: Sequence[Answer], judges: Mapping[str, float]) -> list[Judged]:
    """What one answer to each of the prompts is worth."""
    found = {logged_name(metric): metric for metric in task.of_texts([answer.text for answer in answers])}
    values = {name: found[name].of_rows() for name in judges}
    signs = {name: 1.0 if found[name].higher_is_better else -1.0 for name in judges}
    totals = np.sum([judges[name] * signs[name] * values[name] for name in judges], axis=0)
    return [
        Judged(answer.text, float(total), {name: float(values[name][row]) for name in judges})
        for row, (answer, total) in enumerate(zip(answers, totals, strict=True))
    ]


def preferences(
    task: Task, answered: Sequence[Sequence[Answer]], scores: Sequence[Sequence[Judged]]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(rows, what became of prompts and answers). An answer that was cut off can't be judged, nor an empty one."""
    questions = questions_of(task.test.select(task.chosen)) if "tgt_txt" in task.test.column_names else None
    counts = {"prompts": len(task.rows), "answers cut off or empty": 0, "answers not scored": 0, "prompts alike": 0}
    rows = []
    for row, asked in enumerate(task.rows):
        ended = [each[row] for each, answers in zip(scores, answered, strict=True) if complete(answers[row])]
        known = [each for each in ended if not math.isnan(each.score)]
        counts["answers cut off or empty"] += len(scores) - len(ended)
        counts["answers not scored"] += len(ended) - len(known)
        best = max(known, key=lambda each: each.score, default=None)
        worst = min(known, key=lambda each: each.score, default=None)
        if best is None or worst is None or best.score - worst.score <= SAME:
            counts["prompts alike"] += 1
            continue
        question = asked.source if questions is None else questions[row]
        prompt = {"src_txt": question} if isinstance(question, str) else {"messages": as_json(question)}
        rows.append(
            {
                **prompt,
                "chosen": best.text,
                "rejected": worst.text,
                "chosen_scores": best.measures,
                "rejected_scores": worst.measures,
            }
        )
    return rows, counts


def complete(answer: Answer) -> bool:
    return bool(answer.stopped) and bool(answer.text.strip())


def spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many rows there are, and each measure's mean on both sides."""
    names = rows[0]["chosen_scores"]
    sides = ("chosen", "rejected")
    means = {s: {name: float(np.mean([row[f"{s}_scores"][name] for row in rows])) for name in names} for s in sides}
    return {"rows": len(rows), **means}


def in_words(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
