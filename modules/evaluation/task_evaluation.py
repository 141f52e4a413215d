"""A model, a trivial baseline or an n-gram model on the rows of a task: metrics, and what each row was answered."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from ..config.evaluation import TEXT_METRICS, EvaluateConfig
from ..data.arrow import count_copies
from ..data.conversations.message_rows import last_turns, learnt_texts, questions_of
from ..data.splits import Place, place_in
from ..inference.row_constraints import require_constraints
from ..inference.text_generator import TextGenerator
from ..model.decoder import Decoder
from ..tokenizer.lost_text import LostText, lost_named, lost_separator
from ..tokenizer.prompt_template import Message, split_template
from ..tokenizer.tokenizer import Tokenizer
from .answers import Answer, write_answers
from .baselines import NEEDS_TRAINING_ROWS, ngram_floor, trivial_answers
from .likelihood import chance, choice_accuracy, score
from .metrics import METRICS, bleu, verse
from .prompts import Prompted, build_prompts, require_examples, require_lines, template_of
from .statistics import Metric, intervals, mean, with_clusters
from .task_rows import TaskRow, copies_in_training, first_of_groups, groups_of, lacking, read_task_rows
from .verse.copying import TrainingText

Progress = Callable[[str, float], None]
"""Called with (what is being done, the share of it that is done)."""

SAMPLES = 3
"""Test rows in a table of samples."""


class TaskRows(NamedTuple):
    """What `Task` is given beside the configuration."""

    test: datasets.Dataset
    train: datasets.Dataset | None
    place: Place
    """Of the test rows."""
    ignored: Mapping[str, str]
    """Column of the test rows that can't serve → why."""


@dataclass(frozen=True)
class ScoredRow:
    number: int
    """In the test rows, from 0."""
    source: str
    """As in TaskRow, like the references."""
    references: list[str]
    text: str
    """What was generated, and nothing else."""
    stopped: bool | None
    """As in Answer."""
    scores: dict[str, float]
    """The metrics of this row alone; nan where it has none."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model, or of a baseline, on the test rows."""

    metrics: list[Metric]
    rows: list[ScoredRow] = field(default_factory=list)
    """The rows that texts were generated for."""
    lost: LostText | None = None
    """Characters of the test rows that the model's tokenizer doesn't give back; None where nothing of them was scored
    by likelihood."""
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

    def __init__(
        self,
        config: EvaluateConfig,
        test: datasets.Dataset,
        train: datasets.Dataset | None,
        place: Place | None = None,
        ignored: Mapping[str, str] | None = None,
    ) -> None:
        """The fields of `TaskRows`. ValueError where these rows allow none of the metrics, or no examples."""
        self.config, self.task = config, config.task
        self.test, self.train, self.place = test, train, place
        require_examples(test, train, self.task)
        missing = lacking(test, self.task, ignored or {})
        self.left_out = {metric: f"the rows have no {column}" for metric, column in missing.items()}
        """Metric or baseline that was asked for and can't be computed, or column that can't serve → why."""
        self.left_out |= {f"column {name}": why for name, why in (ignored or {}).items()}
        self.metrics = [name for name in self.task.metrics if name not in self.left_out]
        count = min(self.task.rows or len(test), len(test))
        drawn = np.random.default_rng(config.seed).permutation(len(test))[:count]
        self.chosen: list[int] = np.sort(drawn).tolist() if set(self.metrics) & set(TEXT_METRICS) else []
        self.rows = read_task_rows(test.select(self.chosen)) if self.chosen else []
        self.trivial = [name for name in self.task.trivial if train is not None or name not in NEEDS_TRAINING_ROWS]
        if train is None:
            counted = config.ngram_floor and "perplexity" in self.metrics
            without = [name for name in self.task.trivial if name not in self.trivial]
            without += ["n-grams"] * counted + ["copies"] * ("verse" in self.metrics)
            self.left_out |= dict.fromkeys(without, "no training rows (data.path)")
        self.chance = chance(test) if "choices" in self.metrics else []
        self.prompts: dict[tuple[str, int], Prompted] = {}
        """By tokenizer and positions."""
        self.copies = None if train is None else count_copies(test, train)
        """How many test rows stand among the model's training rows too, as far as these are known; else among those
        that data.path names."""

    @property
    def train_place(self) -> Place | None:
        path = self.config.data.path
        return place_in(path, "train") if path and self.train is not None else None

    def note_copies(self, model: Path) -> np.ndarray | None:
        """Looks for the test rows among those that the model was trained on, where its folder tells which they are."""
        known = copies_in_training(self.test, model, self.config.data.cache_dir)
        self.copies = self.copies if known is None else int(known.sum())
        return known

    @functools.cached_property
    def training_text(self) -> TrainingText | None:
        """The training rows' answers, or texts where they have none, to find copies in."""
        return None if self.train is None else TrainingText(learnt_texts(self.train))

    def of_model(self, decoder: Decoder, tokenizer: Tokenizer, progress: Progress | None = None) -> Evaluation:
        """Likelihood of all rows, answers to the chosen ones."""
        prompted = self.prompted(tokenizer, decoder.config.max_position_embeddings)
        metrics, counts, lost = self.likelihood(decoder, prompted, progress)
        if not self.chosen:
            return self.found(metrics, [], counts, lost)
        answers = self.generate_answers(decoder, prompted, self.chosen, self.rows, progress)
        counts["prompts_cut"] = counts.get("prompts_cut", 0) + sum(answer.cut for answer in answers)
        found = self.of_texts([answer.text for answer in answers])
        found.append(mean("end_of_text_rate", [float(answer.stopped or False) for answer in answers]))
        every = {metric.name: metric.of_rows()[self.chosen] for metric in metrics}
        return self.found([*metrics, *found], self.scored(answers, found, every), counts, lost)

    def prompted(self, tokenizer: Tokenizer, positions: int) -> Prompted:
        """The rows as a model is asked them. ValueError where its tokenizer or its positions don't allow it."""
        known = tokenizer.fingerprint, positions
        if known not in self.prompts:
            config = self.config
            answer_tokens = config.generation.max_new_tokens if self.chosen else 0
            require_lines(self.test, self.metrics, tokenizer)
            self.note_template(tokenizer)
            self.prompts[known] = build_prompts(
                self.test, self.train, tokenizer, self.task, config.data, positions, answer_tokens, config.seed
            )
            sampled = self.rows or read_task_rows(self.test.select(self.first_rows))
            require_constraints([row.source for row in sampled], self.prompts[known].tokenizer, config.generation)
        return self.prompts[known]

    @property
    def first_rows(self) -> Sequence[int]:
        return first_of_groups(self.test, range(len(self.test)), SAMPLES)

    def note_template(self, tokenizer: Tokenizer) -> None:
        """What the tokenizer loses of the prompt template, and of the separator where there is one."""
        if "tgt_txt" not in self.test.column_names:
            return
        template = template_of(self.test, tokenizer, self.task, self.config.data)
        if sign := lost_separator(template, tokenizer):
            self.left_out[f"{sign!r} of the prompt template"] = (
                "this model's tokenizer loses it: nothing parts question and answer"
            )
        elif lost := lost_named(split_template(template), tokenizer):
            self.left_out[f"{lost} of the prompt template"] = "this model's tokenizer loses it"
        if self.task.examples and (lost := lost_named([self.task.separator], tokenizer)):
            self.left_out[f"{lost} of task.separator"] = "this model's tokenizer loses it"

    def found(
        self,
        metrics: Sequence[Metric],
        rows: list[ScoredRow] | None = None,
        counts: dict[str, int] | None = None,
        lost: LostText | None = None,
    ) -> Evaluation:
        """Metrics of all test rows or of the chosen ones, with those rows' groups as clusters."""
        labels, whole = groups_of(self.test), len(self.test)
        chosen = labels and [labels[row] for row in self.chosen]
        clustered = [with_clusters(each, labels if len(each.statistics) == whole else chosen) for each in metrics]
        return Evaluation(clustered, rows or [], lost, counts or {})

    def likelihood(
        self, decoder: Decoder, prompted: Prompted, progress: Progress | None
    ) -> tuple[list[Metric], dict[str, int], LostText | None]:
        metrics, counts, lost = [], dict(prompted.counts), None
        work = decoder, prompted.tokenizer, prompted.rows, self.config.max_batch_tokens
        if "perplexity" in self.metrics:
            found = score(*work, part_of(progress, "likelihood"))
            metrics += [found.perplexity_per_char, found.perplexity]
            counts["rows_cut"], lost = found.rows_cut, found.lost
        if "choices" in self.metrics:
            accuracy, counts["choices_cut"] = choice_accuracy(*work, part_of(progress, "choices"))
            metrics += accuracy
        return metrics, counts, lost

    def generate_answers(
        self,
        decoder: Decoder,
        prompted: Prompted,
        chosen: Sequence[int],
        rows: Sequence[TaskRow],
        progress: Progress | None = None,
    ) -> list[Answer]:
        """chosen: the numbers of these rows among the test rows."""
        generation = self.config.generation
        if self.task.examples:  # an untuned model goes on with the next question
            own = prompted.tokenizer
            separator = own.decode(own.encode(self.task.separator))  # what comes back of it
            generation = dataclasses.replace(generation, stop=[*generation.stop, separator])
        sources: list[str | list[Message]] = [row.source for row in rows]
        if "tgt_txt" in prompted.rows.column_names:
            sources = questions_of(prompted.rows.select(chosen))
        most, shown = self.config.max_batch_tokens, part_of(progress, "answers")
        return write_answers(decoder, prompted.tokenizer, sources, generation, most, shown)

    def samples(self, found: Evaluation, decoder: Decoder, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """A table of what a model writes to the prompts, else to `first_of_groups`: prompt, text, stopped."""
        if self.config.prompts:
            return TextGenerator(decoder, tokenizer, self.config.generation).samples(self.config.prompts)
        if found.rows:
            places = first_of_groups(self.test, self.chosen, SAMPLES)
            rows = [self.rows[place] for place in places]
            answers = [Answer(found.rows[place].text, found.rows[place].stopped) for place in places]
        else:
            chosen = self.first_rows
            rows = read_task_rows(self.test.select(chosen))
            prompted = self.prompted(tokenizer, decoder.config.max_position_embeddings)
            answers = self.generate_answers(decoder, prompted, chosen, rows)
        return [
            {"prompt": row.source, "text": row.source * row.continued + answer.text, "stopped": answer.stopped}
            for row, answer in zip(rows, answers, strict=True)
        ]

    def of_trivial(self, name: str) -> Evaluation:
        """A trivial baseline, by a name in `trivial`; its texts are scored as a model's are."""
        texts = trivial_answers(name, self.rows, self.train)
        found = self.of_texts(texts)
        return self.found(found, self.scored([Answer(text, None) for text in texts], found, {}))

    def rivals(self, tokenizer: Tokenizer) -> dict[str, Evaluation]:
        """What needs no model: trivial answers by name, chance, unigram, bigram, trigram."""
        return {name: self.of_trivial(name) for name in self.trivial} | self.floors(tokenizer)

    def floors(self, tokenizer: Tokenizer) -> dict[str, Evaluation]:
        """n-gram models on the same text (in this tokenizer's prompts), and guessing among choices."""
        found = {"chance": self.found(self.chance)} if self.chance else {}
        if self.config.ngram_floor and self.train is not None and "perplexity" in self.metrics:
            asked = tokenizer.with_prompt_template(template_of(self.test, tokenizer, self.task, self.config.data))
            test = last_turns(self.test) if self.task.examples else self.test  # as build_prompts has them
            found |= {name: self.found([metric]) for name, metric in ngram_floor(self.train, test, asked).items()}
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
        self, answers: Sequence[Answer], metrics: Sequence[Metric], more: dict[str, np.ndarray]
    ) -> list[ScoredRow]:
        columns = more | {metric.name: metric.of_rows() for metric in metrics}
        rows = []
        for index, (number, row, answer) in enumerate(zip(self.chosen, self.rows, answers, strict=True)):
            scores = {name: float(values[index]) for name, values in columns.items()}
            rows.append(ScoredRow(number, row.source, row.references, answer.text, answer.stopped, scores))
        return rows


def part_of(progress: Progress | None, name: str) -> Callable[[float], None] | None:
    return functools.partial(progress, name) if progress else None
