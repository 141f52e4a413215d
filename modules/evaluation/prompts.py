"""Zero-, one- and few-shot prompts: solved examples before the question, as in the GPT-3 paper (Brown et al. 2020).

Each row has its own examples, drawn from the training rows. The result is rows again, and the tokenizer that makes
prompts of them, so that likelihood and generation see exactly the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from ..config.data import DataConfig
from ..config.evaluation import TaskConfig
from ..data.conversations.message_rows import conversations_of, default_template
from ..data.reading.column_names import MESSAGES
from ..data.splits import texts_alone
from ..tokenizer.lost_text import kept_sign, loses, vanishes
from ..tokenizer.prompt_template import (
    SOURCE_FIELD,
    SYSTEM,
    Message,
    cut_source,
    fill_template,
    prompt_limit,
    with_system,
    without_first_turn,
)
from ..tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompted:
    rows: datasets.Dataset
    tokenizer: Tokenizer
    counts: dict[str, int]
    """What didn't fit into the model's positions: examples_dropped, prompts_cut."""


def template_of(rows: datasets.Dataset, tokenizer: Tokenizer, task: TaskConfig, data: DataConfig) -> str:
    """The model's own where it was tuned with one (of several the task's), else the task's."""
    names = task.name, task.data, Path(data.path or "").name
    own = tokenizer.template_for(names) if task.own_template else None
    return own or task.template or data.prompt_template or default_template(rows, tokenizer)


def build_prompts(
    rows: datasets.Dataset,
    train: datasets.Dataset | None,
    tokenizer: Tokenizer,
    task: TaskConfig,
    data: DataConfig,
    positions: int,
    answer_tokens: int,
    seed: int,
) -> Prompted:
    """Rows with the prompts that the model is to see.

    answer_tokens: how many of the model's positions to keep free for a generated answer; the target always has room.
    Raises ValueError as `require_examples` does.
    """
    require_examples(rows, train, task)
    if "tgt_txt" not in rows.column_names:
        return Prompted(rows, tokenizer.with_prompt_template(None), {})
    template = template_of(rows, tokenizer, task, data)
    if not task.examples or train is None:
        return Prompted(rows, tokenizer.with_prompt_template(template), {})
    writer = FewShot(tokenizer, template, task, train, seed)
    texts = []
    for index, (*asked, target) in enumerate(conversations_of(texts_alone(rows))):
        free = max(answer_tokens, len(tokenizer.encode(target.text)) + 1)
        texts.append(writer.prompt(index, asked, prompt_limit(positions, free)))
    others = [name for name in rows.column_names if name not in ("src_txt", MESSAGES)]
    return Prompted(
        rows.select_columns(others).add_column("src_txt", texts),
        tokenizer.with_prompt_template(SOURCE_FIELD),
        writer.counts,
    )


def require_examples(rows: datasets.Dataset, train: datasets.Dataset | None, task: TaskConfig) -> None:
    """ValueError where examples are wanted of rows without tgt_txt, or without training rows."""
    if task.examples and "tgt_txt" not in rows.column_names:
        raise ValueError(f"task.examples={task.examples} needs rows with tgt_txt: plain text has no answers to show")
    if task.examples and (train is None or "tgt_txt" not in train.column_names):
        raise ValueError(
            f"task.examples={task.examples} needs training rows with tgt_txt to draw them from: give data.path=FOLDER "
            "with train and test files, or data.path=TRAIN data.test_path=TEST"
        )


def require_lines(rows: datasets.Dataset, metrics: Collection[str], tokenizer: Tokenizer) -> None:
    """ValueError where verse in lines is to be written by a model whose tokenizer loses line ends."""
    columns = set(rows.column_names) & {"src_txt", "tgt_txt"}
    if "verse" in metrics and loses("\n", tokenizer) and any("\n" in text for name in columns for text in rows[name]):
        raise ValueError(
            "the metric verse: these rows have line ends, which this model's tokenizer loses, so it can't write lines; "
            "part the lines by punctuation, or name other task.metrics"
        )


class FewShot:
    """Writes prompts of at most so many tokens: examples go first, then the end of the source."""

    def __init__(
        self, tokenizer: Tokenizer, template: str, task: TaskConfig, train: datasets.Dataset, seed: int
    ) -> None:
        """ValueError where the tokenizer loses task.separator."""
        if vanishes(task.separator, tokenizer):
            raise ValueError(
                f"task.separator={task.separator!r}: this model's tokenizer loses it, and nothing would part the "
                f"examples; give one that is in its vocabulary, e.g. task.separator='{kept_sign(tokenizer)}'"
            )
        self.tokenizer, self.template, self.task, self.seed = tokenizer, template, task, seed
        self.train = list(conversations_of(texts_alone(train)))
        self.counts = {"examples_dropped": 0, "prompts_cut": 0}

    def prompt(self, index: int, asked: list[Message], limit: int) -> str:
        """The text of row `index`, of a conversation up to its last question. ValueError where not even the template
        fits.

        What a conversation's earlier turns were is shown as examples are; when these are gone, the earliest go too.
        """
        solved = [self.written(self.train[example]) for example in self.drawn(index, asked)]
        room = limit - len(self.tokenizer.start_ids)
        while solved and self.size("".join(solved) + self.written(asked)) > room:
            solved = solved[1:]
            self.counts["examples_dropped"] += 1
        if self.size("".join(solved) + self.written(asked)) > room:
            asked = self.shortened(asked, room)
            self.counts["prompts_cut"] += 1
        return "".join(solved) + self.written(asked)

    def written(self, messages: Sequence[Message]) -> str:
        """Question and answer in turns, the separator after each answer."""
        return "".join(
            fill_template(self.template, text) if role == "user" else text + self.task.separator
            for role, text in with_system(messages)
        )

    def size(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def drawn(self, index: int, asked: Sequence[Message]) -> list[int]:
        """Numbers of training rows, never of one in which just this is asked: it would be the answer."""
        rng = np.random.default_rng((self.seed, index))
        count = min(len(self.train), self.task.examples + 16)  # spares, for any that are left out below
        drawn = rng.choice(len(self.train), count, replace=False).tolist()
        return [number for number in drawn if self.train[number][: len(asked)] != asked][: self.task.examples]

    def shortened(self, asked: list[Message], room: int) -> list[Message]:
        """The latest turns that fit, or the longest beginning of the last question."""
        while len(with_system(asked)) > 1:
            asked = without_first_turn(asked)
            if self.size(self.written(asked)) <= room:
                return asked
        ((_, source),) = with_system(asked)
        told = len(asked[0].text) + 1 if asked[0].role in SYSTEM else 0
        fits, over = 0, len(source)
        while over - fits > 1:
            middle = (fits + over) // 2
            fit = self.size(fill_template(self.template, cut_source(source, told, middle))) <= room
            fits, over = (middle, over) if fit else (fits, middle)
        if not fits:
            raise ValueError(
                f"task.template ({self.template!r}) leaves none of the source within {room} tokens: shorten it, or "
                "lower generation.max_new_tokens"
            )
        return [Message("user", cut_source(source, told, fits))]
