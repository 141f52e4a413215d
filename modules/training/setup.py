"""What a training run is made of, before it starts: rows, tokenizer, architecture, data module, plan."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import datasets
import pytorch_lightning as pl

from ..checkpoint.loading import open_model, open_tokenizer
from ..config.base import model_folder
from ..config.data import TokenizerConfig
from ..config.model import ModelConfig
from ..config.training import TrainingConfig
from ..data.arrow import fingerprint, text_batches
from ..data.conversations.message_rows import default_template, texts_of_rows
from ..data.datamodule import TextDataModule
from ..data.groups import GROUP
from ..data.quarantine import Quarantine
from ..data.reading.column_names import MESSAGES, SCORED_COLUMNS
from ..data.sources import RowSource
from ..data.splits import Place, choose_places, load_splits, related_rows, texts_alone
from ..inference.text_generator import require_room
from ..model.parallel import check_tensor_parallel
from ..system.cache import cache_folder, cached
from ..system.redaction import redact
from ..tokenizer.lost_text import kept_sign, lost_named, lost_separator
from ..tokenizer.prompt_template import split_template
from ..tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from .callbacks import Selection
from .checkpoints.run_manifest import RunManifest
from .planning.memory_limit import CPU_TOKENS
from .planning.plan import TrainingPlan, batch_of, make_plan
from .planning.recipe import settle_recipe
from .planning.split_facts import facts_of_splits
from .precision import settle_precision
from .strategies import require_devices

logger = logging.getLogger("moyun.training")

BETTER = "a model may then end where it should begin to answer: let it end with a sign, e.g. '{src_txt}\\n'"


@dataclass(frozen=True)
class TrainingSetup:
    """What is trained on what: the same on every process."""

    start: Path | None
    splits: dict[str, datasets.Dataset]
    tokenizer: Tokenizer
    model: ModelConfig
    data: TextDataModule
    plan: TrainingPlan
    quarantine: Quarantine | None = None
    """Rows that were left out."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """Where each split's rows come from."""
    asked: datasets.Dataset | None = None
    """The validation rows with what other columns were to be read."""
    selection: Selection = field(default_factory=Selection)


def without_path(config: TrainingConfig, rows: RowSource | None) -> TrainingConfig:
    """The configuration as it is recorded, a copy, in which what isn't given will be set: rows that were given stand in
    for data.path, which is then not read."""
    config = copy.deepcopy(config)
    return config if rows is None else replace(config, data=replace(config.data, path=None))


def set_up(
    config: TrainingConfig,
    start: Path | None,
    rows: RowSource | None = None,
    quarantine: Quarantine | None = None,
    earlier: RunManifest | None = None,
    extras: Collection[str] = (),
) -> TrainingSetup:
    """Reads, checks and counts everything; `start` is the folder whose weights and tokenizer training begins with.

    What isn't given is set in `config`: the number format, and what the recipe says.
    earlier: of the run that is gone on with. extras: columns to keep of the validation rows, beside their texts.
    """
    require_devices(config.trainer)
    settle_precision(config.trainer)
    pl.seed_everything(config.seed, verbose=False)
    places = choose_places(config.data, rows)
    read = load_splits(config.data, config.seed, rows, quarantine, {GROUP, *extras})
    splits = {name: texts_alone(split) for name, split in read.items()}
    tokenizer = choose_tokenizer(config, start, splits["train"])
    model = architecture(config, start, tokenizer)
    prompts, positions = config.train.sample_prompts, model.max_position_embeddings
    require_room("train.sample_prompts", prompts, tokenizer, positions, config.generation)
    recipe = settle_recipe(config, model, tokenizer, splits["train"], start)
    batch = batch_of(config.train, config.model)
    data = TextDataModule(splits, tokenizer, config.data, **batch, micro_batch_tokens=CPU_TOKENS, seed=config.seed)
    plan = make_plan(config, model, data, earlier.config["train"].get("micro_batch_tokens") if earlier else None)
    facts = facts_of_splits(splits, places, data.documents, related_rows(read, places))
    plan = replace(plan, splits=facts, recipe=recipe)
    data.micro_batch_tokens = plan.demand.micro_batch_tokens  # known when the rows are
    taught = tokenizer.with_source_limit(source_limit(data, splits["train"]))
    return TrainingSetup(start, splits, taught, model, data, plan, quarantine, places, read["validation"])


def source_limit(data: TextDataModule, rows: datasets.Dataset) -> int | None:
    """The most ids that were left of a source, where some lost their end; None where none did."""
    documents, (before, after) = data.documents["train"], data.tokenizer.prompt_parts
    if not documents.rows_cut or "tgt_txt" not in rows.column_names or MESSAGES in rows.column_names:
        return None
    return int(documents.prompt_lengths.max()) - len(before) - len(after)


def architecture(config: TrainingConfig, start: Path | None, tokenizer: Tokenizer) -> ModelConfig:
    """What the start folder says, else config.model with the tokenizer's vocabulary. ValueError if they don't fit."""
    model = open_model(start).config if start else config.model
    assert model is not None
    model.vocab_size = model.vocab_size or tokenizer.vocab_size
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"model.vocab_size={model.vocab_size}: the tokenizer has {tokenizer.vocab_size} entries")
    if (config.data.sequence_length or 0) > model.max_position_embeddings:
        limit = f"the model's max_position_embeddings ({model.max_position_embeddings})"
        raise ValueError(f"data.sequence_length={config.data.sequence_length} is over {limit}: give a shorter one")
    check_tensor_parallel(model, config.trainer.tensor_parallel)
    return model


def choose_tokenizer(config: TrainingConfig, start: Path | None, rows: datasets.Dataset) -> Tokenizer:
    """With the prompt template that the rows need: none for plain text; for others config's, else the tokenizer's."""
    if start:
        tokenizer = open_tokenizer(start)
    elif config.tokenizer.path:
        tokenizer = open_tokenizer(model_folder(config.tokenizer.path))
    else:
        tokenizer = trained_on(rows, config.tokenizer, cache_folder(config.data.cache_dir))
    template = None
    if "tgt_txt" in rows.column_names:
        template = config.data.prompt_template or tokenizer.prompt_template or default_template(rows, tokenizer)
        if sign := lost_separator(template, tokenizer):
            raise ValueError(
                f"data.prompt_template={template!r}: the tokenizer loses {sign!r}, and nothing would part the answer "
                "from the source; let it end with a sign of the vocabulary: "
                f"data.prompt_template='{{src_txt}}{kept_sign(tokenizer)}'"
            )
        if lost := lost_named(split_template(template), tokenizer):
            logger.warning("data.prompt_template=%r: the tokenizer loses %s of it", template, lost)
        if not split_template(template)[1]:
            logger.warning("data.prompt_template=%r: nothing parts the answer from the source; %s", template, BETTER)
    elif config.data.prompt_template:
        logger.warning("data.prompt_template has no effect: the rows have no tgt_txt, and plain text has no prompt")
    return tokenizer.with_source_limit(None).with_prompt_template(template)


def trained_on(rows: datasets.Dataset, config: TokenizerConfig, cache: Path) -> Tokenizer:
    arguments = {"kind": config.kind, "vocab_size": config.vocab_size, "min_frequency": config.min_frequency}

    def build(folder: Path) -> None:
        train_tokenizer(Texts(rows), **arguments).save(folder)  # type: ignore[arg-type]

    return load_tokenizer(cached(cache, "tokenizer", {"rows": fingerprint(rows), **arguments}, build))


@dataclass
class Texts:
    """All texts of the rows, as often as they are asked for."""

    rows: datasets.Dataset

    def __iter__(self) -> Iterator[str]:
        for batch in text_batches(self.rows):
            for texts in texts_of_rows(batch):
                yield from texts


def fingerprints_of(training: TrainingSetup) -> dict[str, str]:
    """Split → the fingerprint of its rows, of those that training reads."""
    return {name: fingerprint(split) for name, split in training.splits.items() if name != "test"}


def run_manifest_of(
    stage: str, run_id: str, config: TrainingConfig, training: TrainingSetup, parent: dict[str, str] | None
) -> RunManifest:
    data = fingerprints_of(training)
    base = parent["weights_sha256"] if parent else None
    given = redact(asdict(config))
    given["train"]["micro_batch_tokens"] = training.plan.demand.micro_batch_tokens
    asked = training.asked if config.train.text_metric else None
    scored = None if asked is None else fingerprint(asked, SCORED_COLUMNS)
    tokenizer = training.data.tokenizer.fingerprint
    return RunManifest(stage, run_id, given, data, tokenizer, base, scored_rows=scored)
