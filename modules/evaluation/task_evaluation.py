"""A model, a trivial baseline or an n-gram model on the rows of a task: metrics, and what each row was answered."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np

from ..config.evaluation import TEXT_METRICS, EvaluateConfig
from ..data.quarantine import Quarantine
from ..data.splits import load_test_rows, load_training_rows
from ..model.decoder import Decoder
from ..tokenizer.tokenizer import Tokenizer
from .answers import Answer, write_answers
from .baselines import NEEDS_TRAINING_ROWS, ngram_floor, trivial_answers
from .likelihood import chance, choice_accuracy, score
from .metrics import METRICS, bleu, training_text, verse
from .prompts import Prompted, build_prompts, template_of
from .statistics import Metric, intervals, mean, with_clusters
from .task_rows import columns_of, groups_of, lacking, read_task_rows, with_targets
from .verse.copying import TrainingText

Progress = Callable[[str, float], None]
"""Called with (what is being done, the share of it that is done)."""


def load_task_rows(
    config: EvaluateConfig, quarantine: Quarantine | None = None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Test rows; and training rows where something is made of them and data.path names any.

    Bad rows go to the quarantine; without one they are refused.
    """
    task, columns = config.task, columns_of(config.task, config.data)
    test = with_targets(load_test_rows(config.data, quarantine, columns))
    counted = config.ngram_floor and "perplexity" in task.metrics
    compared = "verse" in task.metrics or bool(set(task.trivial) & set(NEEDS_TRAINING_ROWS))
    if not config.data.path or not (counted or compared or task.examples):
        return test, None
    return test, with_targets(load_training_rows(config.data, config.seed, quarantine, columns))


@dataclass(frozen=True)
class ScoredRow:
    number: int
    """In the test rows, from 0."""
    source: str
    """What was asked: src_txt; of plain text its first clause."""
    references: list[str]
    text: str
    """What was generated, and nothing else."""
    stopped: bool | None
    """Whether it ended by itself; None where no model wrote it."""
    scores: dict[str, float]
    """The metrics of this row alone; nan where it has none."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model, or of a baseline, on the test rows."""

    metrics: list[Metric]
    rows: list[ScoredRow] = field(default_factory=list)
    """The rows that texts were generated for."""
    counts: dict[str, int] = field(default_factory=dict)
    """What didn't fit into the model's positions: rows_cut (pairs, for their likelihood), prompts_cut (sources to
    write an answer to), choices_cut (sources of questions), examples_dropped (few-shot)."""

    @functools.cached_property
    def intervals(self) -> list[tuple[float, float]]:
        """95 %, of each metric."""
        return intervals(self.metrics)

    def __getitem__(self, name: str) -> Metric:
        return next(metric for metric in self.metrics if metric.name == name)

    def __contains__(self, name: str) -> bool:
        return any(metric.name == name for metric in self.metrics)


class Task:
    """The test rows and how they are scored, the same for every model and baseline."""

    def __init__(self, config: EvaluateConfig, test: datasets.Dataset, train: datasets.Dataset | None) -> None:
        """Raises DataError where none of the metrics can be computed of these rows."""
        self.config, self.task = config, config.task
        self.test, self.train = test, train
        self.left_out = {metric: f"the rows have no {column}" for metric, column in lacking(test, self.task).items()}
        """Metric or baseline that was asked for and can't be computed → why."""
        self.metrics = [name for name in self.task.metrics if name not in self.left_out]
        count = min(self.task.rows or len(test), len(test))
        drawn = np.random.default_rng(config.seed).permutation(len(test))[:count]
        self.chosen: list[int] = np.sort(drawn).tolist() if set(self.metrics) & set(TEXT_METRICS) else []
        self.rows = read_task_rows(test.select(self.chosen)) if self.chosen else []
        self.trivial = [name for name in self.task.trivial if train is not None or name not in NEEDS_TRAINING_ROWS]
        if train is None:
            counted = config.ngram_floor and "perplexity" in self.metrics
            missing = [name for name in self.task.trivial if name not in self.trivial]
            missing += ["n-grams"] * counted + ["copies"] * ("verse" in self.metrics)
            self.left_out |= dict.fromkeys(missing, "no training rows (data.path)")
        self.chance = chance(test) if "choices" in self.metrics else []

    @functools.cached_property
    def training_text(self) -> TrainingText | None:
        return None if self.train is None else training_text(self.train)

    def of_model(self, decoder: Decoder, tokenizer: Tokenizer, progress: Progress | None = None) -> Evaluation:
        """Likelihood of all rows, answers to the chosen ones."""
        config, positions = self.config, decoder.config.max_position_embeddings
        answer_tokens = config.generation.max_new_tokens if self.chosen else 0
        prompted = build_prompts(
            self.test, self.train, tokenizer, self.task, config.data, positions, answer_tokens, config.seed
        )
        metrics, counts = self.likelihood(decoder, prompted, progress)
        if not self.chosen:
            return self.found(metrics, [], counts)
        answers = self.generate_answers(decoder, prompted, progress)
        counts["prompts_cut"] = counts.get("prompts_cut", 0) + sum(answer.cut for answer in answers)
        found = self.of_texts([answer.text for answer in answers])
        found.append(stop_rate(answers))
        every = {metric.name: metric.of_rows()[self.chosen] for metric in metrics}
        return self.found([*metrics, *found], self.scored(answers, found, every), counts)

    def found(
        self, metrics: Sequence[Metric], rows: list[ScoredRow] | None = None, counts: dict[str, int] | None = None
    ) -> Evaluation:
        """Metrics of all test rows or of the chosen ones, with those rows' groups as clusters."""
        labels, whole = groups_of(self.test), len(self.test)
        chosen = labels and [labels[row] for row in self.chosen]
        clustered = [with_clusters(each, labels if len(each.statistics) == whole else chosen) for each in metrics]
        return Evaluation(clustered, rows or [], counts or {})

    def likelihood(
        self, decoder: Decoder, prompted: Prompted, progress: Progress | None
    ) -> tuple[list[Metric], dict[str, int]]:
        metrics, counts = [], dict(prompted.counts)
        most = self.config.max_batch_tokens
        if "perplexity" in self.metrics:
            found = score(decoder, prompted.tokenizer, prompted.rows, most, progress_of_part(progress, "likelihood"))
            metrics += [found.perplexity_per_char, found.perplexity]
            counts["rows_cut"] = found.rows_cut
        if "choices" in self.metrics:
            accuracy, cut = choice_accuracy(
                decoder, prompted.tokenizer, prompted.rows, most, progress_of_part(progress, "choices")
            )
            metrics += accuracy
            counts["choices_cut"] = cut
        return metrics, counts

    def generate_answers(self, decoder: Decoder, prompted: Prompted, progress: Progress | None) -> list[Answer]:
        generation = self.config.generation
        if self.task.examples:  # an untuned model goes on with the next question
            generation = dataclasses.replace(generation, stop=[*generation.stop, self.task.separator])
        sources = [row.source for row in self.rows]
        if "tgt_txt" in prompted.rows.column_names:
            sources = prompted.rows.select(self.chosen)["src_txt"]
        return write_answers(
            decoder,
            prompted.tokenizer,
            list(sources),
            generation,
            self.config.max_batch_tokens,
            progress_of_part(progress, "answers"),
        )

    def of_trivial(self, name: str) -> Evaluation:
        """A trivial baseline, by a name in `trivial`; its texts are scored as a model's are."""
        texts = trivial_answers(name, self.rows, self.train)
        found = self.of_texts(texts)
        return self.found(found, self.scored([Answer(text, False, False) for text in texts], found, {}, by_model=False))

    def floors(self, tokenizer: Tokenizer) -> dict[str, Evaluation]:
        """n-gram models on the same text (in this tokenizer's prompts), and guessing among choices."""
        found = {"chance": self.found(self.chance)} if self.chance else {}
        if self.config.ngram_floor and self.train is not None and "perplexity" in self.metrics:
            asked = tokenizer.with_prompt_template(template_of(tokenizer, self.task, self.config.data))
            floors = ngram_floor(self.train, self.test, asked)
            found |= {name: self.found([metric]) for name, metric in floors.items()}
        return found

    def of_texts(self, texts: Sequence[str]) -> list[Metric]:
        found: list[Metric] = []
        for name in self.metrics:
            if name == "bleu":
                found += bleu(texts, self.rows, self.task.tokenize)
            elif name == "verse":
                found += verse(texts, self.rows, self.training_text)
            elif name in TEXT_METRICS:
                found += METRICS[name](texts, self.rows)
        return found

    def scored(
        self,
        answers: Sequence[Answer],
        metrics: Sequence[Metric],
        more: dict[str, np.ndarray],
        by_model: bool = True,
    ) -> list[ScoredRow]:
        columns = more | {metric.name: metric.of_rows() for metric in metrics}
        return [
            ScoredRow(
                number=number,
                source=row.source,
                references=row.references,
                text=answer.text,
                stopped=answer.stopped if by_model else None,
                scores={name: float(values[index]) for name, values in columns.items()},
            )
            for index, (number, row, answer) in enumerate(zip(self.chosen, self.rows, answers, strict=True))
        ]


def stop_rate(answers: Sequence[Answer]) -> Metric:
    """How often the model ended by itself."""
    return mean("end_of_text_rate", [float(answer.stopped) for answer in answers])


def progress_of_part(progress: Progress | None, name: str) -> Callable[[float], None] | None:
    return functools.partial(progress, name) if progress else None
