"""How the best checkpoint is chosen where train.select_by is a measure of texts: scored as evaluate scores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import datasets

from ...config.evaluation import MEASURES, TEXT_METRICS, EvaluateConfig, TaskConfig
from ...config.training import LOSS, TrainingConfig
from ...data.quarantine import DataError
from ...data.splits import Place
from ...model.decoder import Decoder
from ...tokenizer.tokenizer import Tokenizer
from ...training.callbacks import Selection
from ...training.setup import TrainingSetup
from ..statistics import Metric
from ..task_evaluation import Task
from ..task_rows import REQUIRED, columns_of, usable_columns

ROWS = 50
"""task.rows, where it is unset: at each validation there must be time for them."""

BATCH_TOKENS = 2048
"""Positions that are written to at once: a GPU that training fills has room for no more, and all ranks must agree."""


def extras(config: TrainingConfig) -> set[str]:
    """Columns beside the texts that train.select_by looks for in the validation rows."""
    return columns_of(scored_task(config), config.data) if config.train.text_metric else set()


def scored_task(config: TrainingConfig) -> TaskConfig:
    """The task with its metrics of generated texts alone; the one that train.select_by is a measure of comes first."""
    named = [config.train.text_metric, *config.task.metrics]
    texts = [name for name in dict.fromkeys(named) if name in TEXT_METRICS]
    return replace(config.task, metrics=texts, trivial=[], rows=config.task.rows or ROWS)


def with_selection(config: TrainingConfig, training: TrainingSetup) -> TrainingSetup:
    """The set-up with what its checkpoints are chosen by. DataError where the validation rows don't allow it."""
    if (chosen_by := config.train.select_by) != LOSS and not config.train.text_metric:  # the loss of one source
        return replace(training, selection=Selection(chosen_by), plan=replace(training.plan, chosen_by=chosen_by))
    if not config.train.text_metric:
        return training
    assert training.asked is not None
    task = selection_task(config, training.asked, training.splits["train"], training.places["validation"])
    task.prompted(training.tokenizer, training.model.max_position_embeddings)  # raises where they don't fit
    chosen = measured(task, config.train.measure)
    texts = f"{len(task.rows):,} of {len(task.test):,} validation rows, each answered greedily in up to "
    texts += f"{task.config.generation.max_new_tokens:,} tokens"
    write = partial(scores, task, training.tokenizer)
    selection = Selection(f"val/{config.train.measure}", chosen.higher_is_better, texts, write)
    chosen_by = f"{selection.metric} ({'the highest' if chosen.higher_is_better else 'the lowest'}) of {texts}"
    return replace(training, selection=selection, plan=replace(training.plan, chosen_by=chosen_by))


def selection_task(config: TrainingConfig, asked: datasets.Dataset, train: datasets.Dataset, place: Place) -> Task:
    """How texts for validation rows (`asked`, with the columns of `extras`) are written and scored."""
    rows, ignored = usable_columns(asked)
    require_columns(config, rows, str(place), ignored)
    scored = EvaluateConfig(
        seed=config.seed,
        task=scored_task(config),
        data=config.data,
        ngram_floor=False,
        max_batch_tokens=BATCH_TOKENS,
        generation=replace(config.generation, temperature=0.0, seed=config.seed),
    )
    return Task(scored, rows, train if config.task.examples else None, place, ignored)


def require_columns(config: TrainingConfig, rows: datasets.Dataset, place: str, ignored: dict[str, str]) -> None:
    metric = str(config.train.text_metric)
    missing = [name for name in REQUIRED.get(metric, ()) if name not in rows.column_names]
    if not missing:
        return
    allowed = [name for name in MEASURES if set(REQUIRED.get(name, ())) <= set(rows.column_names)]
    why = "".join(f" ({name} can't serve: {ignored[name]})" for name in missing if name in ignored)
    rename = "; data.columns.YOUR_COLUMN=tgt_txt names the answers" if missing == ["tgt_txt"] else ""
    raise DataError(
        f"train.select_by={config.train.select_by} needs validation rows with {' and '.join(missing)}, and {place} has "
        f"{', '.join(rows.column_names)}{why}: give others{rename}. These allow train.select_by={LOSS} or "
        f"{', '.join(measure for name in allowed for measure in MEASURES[name])}"
    )


def measured(task: Task, measure: str) -> Metric:
    """The measure, of the rows' own answers: it shows that the rows can be scored, and which values are better."""
    found = task.of_texts([row.references[0] for row in task.rows])
    return next(metric for metric in found if logged_name(metric) == measure)


def logged_name(metric: Metric) -> str:
    return metric.name.replace(" ", "_")


def scores(task: Task, tokenizer: Tokenizer, decoder: Decoder, between: Callable[[], None]) -> dict[str, float]:
    """Metric → its value, of texts that the decoder writes now; `between` is called after each batch of them."""
    found = task.of_model(decoder, tokenizer, lambda what, share: between())
    return {f"val/{logged_name(metric)}": metric.value for metric in found.metrics}
