"""What isn't given of a training: by the original model card's recipe, or worked out from the rows and the model.

Of the rows their number and lengths count (of a mixture those of one of its epochs), of the model its width:

- A document is as long as 95% of the rows are, or as the model's window. Longer plain text becomes several documents.
- A step takes 16 rows; of few rows fewer, so that an epoch has 30 steps.
- √(200,000 / rows) epochs, at least one and at most three: three of up to 30,000 rows, one of more than 90,000. A
  small model on few rows is worse from the third on (docs/recipes.md); the best checkpoint is kept anyway.
- The rate lies between that of text which the model knows, 1e-4 · √(256 / width), and of text which is new to it,
  1e-3 · 256 / width, as half of a pretraining's: by how far the model's loss on some of the rows is below the loss of
  guessing among all tokens, ln(vocabulary). At half of that the text is known, from four fifths on it is new. Adapters
  take ten times the former, up to 2e-3. After a warm-up of a tenth of the steps the rate follows a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ...checkpoint.loading import load_model
from ...config.assignments import dotted_items
from ...config.model import ModelConfig
from ...config.schema import CONF
from ...config.training import TrainingConfig
from ...data.encoding import encode_batches, encode_rows
from ...data.mixing.mixed_steps import shares
from ...data.packing import in_order
from ...model.decoder import parameter_count
from ...model.loss import linear_cross_entropy
from ...system.bounded_read import read_json, read_plain_yaml
from ...tokenizer.tokenizer import Tokenizer
from .memory_limit import CPU_TOKENS

POETRY = dict(dotted_items(read_plain_yaml(CONF / "recipe" / "poetry.yaml")))

KEYS = tuple(POETRY)
"""What a recipe sets."""

INSTEAD = {"train.batch_size": "batch_tokens", "train.max_epochs": "max_steps"}
"""Key → another of its section which, where it is given, says as much."""

SIZES_OWN = ("train.learning_rate", "train.batch_size")
"""What a model that begins with fresh weights has of its size."""

LOOKED_AT = 10_000
"""Rows whose lengths are asked for, spread over all of them."""

MEASURED_ROWS, MEASURED_PARAMETERS = 32, 500_000_000

Parts = Sequence[tuple[datasets.Dataset, Tokenizer]]

UNCUT = 2**40
"""More tokens than any row has."""


@dataclass(frozen=True)
class Recipe:
    """Which recipe there was, and what it had to say."""

    name: str
    filled: tuple[str, ...] = ()
    """The keys that it set."""
    longest: int = 0
    """Tokens of the longest row that was looked at; 0 where none was."""
    starting_loss: float | None = None
    """Of a token of some of the rows, before training; None where it wasn't measured."""

    def __str__(self) -> str:
        says = {"own": "worked out from rows and model", "poetry": "the original model card's"}[self.name]
        return f"{self.name}, {says}: {', '.join(self.filled)}" if self.filled else "none: all is given"

    def why_this_rate(self) -> str:
        if self.starting_loss is None:
            return ""
        return f" (the model's loss on these rows is {self.starting_loss:.2f} a token before training)"


def settle_recipe(config: TrainingConfig, model: ModelConfig, parts: Parts, start: Path | None = None) -> Recipe:
    """Sets what isn't given of `config`, which is changed; says what that was.

    parts: the training rows of each source, and the tokenizer with its template. start: the model's folder.
    """
    name = config.recipe or ("poetry" if is_prepared_verse(config.data.path) else "own")
    if name == "poetry":
        return Recipe(name, fill(config, POETRY))
    wanted = [key for key in missing(config) if config.train.init_from or key not in SIZES_OWN]
    if not wanted:
        return Recipe(name)
    sizes = sizes_of(config, parts)
    values = own_values(config, model, sizes)
    filled = fill(config, {key: values[key] for key in wanted})
    measured = None
    if "train.learning_rate" in filled and start and measurable(config, model):
        weights = [each.weight for each in sizes]
        measured = starting_loss(start, parts, config.data.sequence_length or 1, weights)
        newness = measured / math.log(model.vocab_size or parts[0][1].vocab_size)
        config.train.learning_rate = learning_rate_for(model.hidden_size, False, newness)
    return Recipe(name, filled, max(int(each.lengths.max(initial=0)) for each in sizes), measured)


def missing(config: TrainingConfig) -> list[str]:
    """The keys that the recipe has to set."""
    found = []
    for key in KEYS:
        section, name = key.split(".")
        values = vars(getattr(config, section))
        if values[name] is None and not values.get(INSTEAD.get(key, "")):
            found.append(key)
    return found


def fill(config: TrainingConfig, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Sets those of `values` that are missing; returns their keys."""
    filled = tuple(key for key in missing(config) if values.get(key) is not None)
    for key in filled:
        section, name = key.split(".")
        setattr(getattr(config, section), name, values[key])
    config.filled += filled
    return filled


@dataclass(frozen=True)
class Sizes:
    """Of one source, or of all rows where there is no mixture."""

    lengths: np.ndarray
    """Tokens of each row that was looked at."""
    rows: int
    """That an epoch takes."""
    weight: float = 1.0
    """Its share of the trained tokens."""
    pairs: bool = False


def sizes_of(config: TrainingConfig, parts: Parts) -> list[Sizes]:
    """An epoch of a mixture takes of a source what goes with its weight: of the others' many rows, beside few, few."""
    looked = [row_sizes(rows, tokenizer) for rows, tokenizer in parts]
    tokens = [
        max(1, round(float(trained.mean()) * len(rows))) for (_, trained), (rows, _) in zip(looked, parts, strict=True)
    ]
    weights = shares(tokens, [source.weight for source in config.data.mix] or [None], config.data.mix_temperature)
    epoch = min(each / weight for each, weight in zip(tokens, weights, strict=True))
    taken = [epoch * weight / each for each, weight in zip(tokens, weights, strict=True)]
    return [
        Sizes(lengths, max(1, round(len(rows) * share)), weight, "tgt_txt" in rows.column_names)
        for (lengths, _), (rows, _), share, weight in zip(looked, parts, taken, weights, strict=True)
    ]


def own_values(config: TrainingConfig, model: ModelConfig, sizes: Sequence[Sizes]) -> dict[str, Any]:
    """Key → what suits these rows and this model."""
    train, count = config.train, sum(each.rows for each in sizes)
    lengths = np.concatenate([each.lengths for each in sizes])
    counted = np.concatenate([np.full(len(each.lengths), each.rows / len(each.lengths)) for each in sizes])
    batch = train.batch_size or max(1, min(16, count // 30))
    mean = float(np.average(lengths, weights=counted))
    in_epoch = count * mean / train.batch_tokens if train.batch_tokens else count / batch
    epochs = train.max_epochs or max(1, min(3, round(math.sqrt(200_000 / count))))
    steps = min(train.max_steps or math.inf, math.ceil(in_epoch) * epochs)
    most = np.percentile(lengths, 95, method="inverted_cdf", weights=counted / counted.min())
    fitting = -(-int(most) // 16) * 16
    return {
        "data.sequence_length": min(fitting, model.max_position_embeddings),
        "data.over_long": "cut" if all(each.pairs for each in sizes) else "split",
        "train.learning_rate": learning_rate_for(model.hidden_size, bool(config.lora.rank)),
        "train.schedule": "cosine",
        "train.warmup_steps": max(1, min(100, int(steps // 10))),
        "train.batch_size": batch,
        "train.max_epochs": epochs,
    }


def learning_rate_for(hidden_size: int, adapters: bool, newness: float = 0.0) -> float:
    """To two digits. newness: the loss at the start, as a share of that of guessing."""
    known, new = 1e-4 * math.sqrt(256 / hidden_size), 1e-3 * 256 / hidden_size
    share = min(1.0, max(0.0, (newness - 0.5) / 0.3))
    rate = min(2e-3, 10 * known) if adapters else known ** (1 - share) * new**share
    return float(f"{rate:.1e}")


def measurable(config: TrainingConfig, model: ModelConfig) -> bool:
    """Whether the model's loss on some rows takes no more than seconds. Larger models know most text, and adapters
    don't go by it."""
    return not config.lora.rank and parameter_count(model) <= MEASURED_PARAMETERS


@torch.inference_mode()
def starting_loss(start: Path, parts: Parts, sequence_length: int, weights: Sequence[float] = (1.0,)) -> float:
    """The mean loss of a trained token before any training: of MEASURED_ROWS rows of each source, spread over them, and
    of the sources by their weights."""
    decoder, loss = load_model(start, dtype=torch.float32), 0.0
    for (rows, tokenizer), weight in zip(parts, weights, strict=True):
        some = rows.select(range(0, len(rows), max(1, -(-len(rows) // MEASURED_ROWS))))
        documents = encode_rows(some, tokenizer, sequence_length)
        steps, total = in_order(documents, CPU_TOKENS), 0.0
        for batch in (batch for number in range(len(steps)) for batch in steps[number].micro_batches):
            head = partial(linear_cross_entropy, labels=batch.labels, trained=batch.trained)
            total += float(decoder(batch.input_ids, batch.layout, head=head))
        loss += weight * total / max(1, int(documents.trained_tokens.sum()))
    return loss


def row_sizes(rows: datasets.Dataset, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that the documents of rows would have if nothing were cut, and those that follow a prompt; of LOOKED_AT
    rows at most."""
    some = rows.select(range(0, len(rows), max(1, -(-len(rows) // LOOKED_AT))))
    batches = list(encode_batches(some, tokenizer, UNCUT, "cut"))
    lengths = np.concatenate([batch.lengths for batch in batches])
    return lengths - 1, lengths - np.concatenate([batch.prompt_lengths for batch in batches])


def is_prepared_verse(path: str | None) -> bool:
    """Whether a folder of rows is one of the sets of verse that `prepare` makes of the poem corpus."""
    if not path:
        return False
    folder = Path(path)
    try:
        manifest = read_json(folder.parent / "manifest.json")
        stages = manifest.get("stages", {"": manifest}).values()
        return any(f"{folder.name}/train.jsonl.gz" in stage["files"] for stage in stages)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
