"""What a training run is made of, before it starts: rows, tokenizer, architecture, data module, plan."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import pytorch_lightning as pl

from ..checkpoint.loading import open_model, open_tokenizer
from ..config.base import model_folder
from ..config.data import DataConfig, TokenizerConfig
from ..config.model import ModelConfig
from ..config.preferences.preference import PreferConfig
from ..config.training import TrainingConfig
from ..data.arrow import fingerprint
from ..data.conversations.message_rows import default_template
from ..data.datamodule import TextDataModule
from ..data.groups import GROUP
from ..data.mixing.mixed_steps import shares
from ..data.mixing.source_splits import all_related_rows, choose_all_places, load_all_splits, part_of, split_name
from ..data.preferences.pair_packing import pairs_of
from ..data.preferences.pair_rows import as_plain_text, template_asked_with
from ..data.quarantine import Quarantine
from ..data.reading.column_names import MESSAGES, SCORED_COLUMNS
from ..data.reading.pair_columns import REJECTED
from ..data.sources import RowSource
from ..data.splits import Place, texts_alone
from ..data.training_texts import Texts
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
from .planning.sample_prompts import usual_prompts
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
    sample_prompts: Sequence[str] = ()
    """What is continued at each validation."""
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
    places = choose_all_places(config.data, rows)
    prefers = isinstance(config, PreferConfig)
    read = load_all_splits(config.data, config.seed, rows, quarantine, {GROUP, *extras}, prefers)
    splits = {name: texts_alone(split) for name, split in read.items()}
    tokenizers = choose_tokenizers(config, start, splits)
    tokenizer = saved_tokenizer(config, tokenizers, start)
    model = architecture(config, start, tokenizer)
    prompts, positions = config.train.sample_prompts, model.max_position_embeddings
    if prompts is None:
        prompts = usual_prompts(splits, tokenizers, tokenizer, positions, config.generation)
    require_room("train.sample_prompts", prompts, tokenizer, positions, config.generation)
    parts = [(splits[split_name("train", source)], each) for source, each in tokenizers.items()]
    recipe = settle_recipe(config, model, parts, start)
    how: dict[str, Any] = {**batch_of(config.train, config.model), "seed": config.seed, "tokenizers": tokenizers}
    data = TextDataModule(splits, tokenizer, config.data, micro_batch_tokens=CPU_TOKENS, **how)
    if isinstance(config, PreferConfig):
        data.documents = pairs_of(data.documents, config.preference)
        data.bounds = {name: (0, len(pairs)) for name, pairs in data.documents.items()}
    plan = make_plan(config, model, data, earlier.config["train"].get("micro_batch_tokens") if earlier else None)
    objective = str(config.preference) if isinstance(config, PreferConfig) else ""
    facts = facts_of_splits(splits, places, data.parts, all_related_rows(read, places))
    plan = replace(plan, objective=objective, splits=facts, recipe=recipe)
    data.micro_batch_tokens = plan.demand.micro_batch_tokens  # known when the rows are
    asked = read.get("validation")
    if prefers and asked is not None and tokenizers[""].prompt_template is None:  # answers go on with their prompts
        asked = as_plain_text(asked)
    taught = tokenizer
    if not (config.data.mix or prefers):
        taught = tokenizer.with_source_limit(source_limit(data, splits["train"]))
    return TrainingSetup(start, splits, taught, model, data, plan, prompts, quarantine, places, asked)


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


def choose_tokenizers(
    config: TrainingConfig, start: Path | None, splits: Mapping[str, datasets.Dataset]
) -> dict[str, Tokenizer]:
    """Source → the tokenizer, with the prompt template that its rows need; without a mixture the only source is ""."""
    rows = {source: splits[split_name("train", source)] for source in config.data.sources}
    if start:
        tokenizer = open_tokenizer(start)
        tokenizer = tokenizer if isinstance(config, PreferConfig) else tokenizer.with_source_limit(None)
    elif config.tokenizer.path:
        tokenizer = open_tokenizer(model_folder(config.tokenizer.path)).with_source_limit(None)
    else:
        tokenizer = trained_on(passes_of(config, rows), config.tokenizer, cache_folder(config.data.cache_dir))
    sections = config.data.sources.items()
    if config.data.prompt_template and not any("tgt_txt" in each.column_names for each in rows.values()):
        logger.warning("data.prompt_template has no effect: the rows have no tgt_txt, and plain text has no prompt")
    tasks = tokenizer.task_templates if isinstance(config, PreferConfig) else None
    return {
        source: tokenizer.with_prompt_template(template_for(section, rows[source], tokenizer, source), tasks)
        for source, section in sections
    }


def template_for(config: DataConfig, rows: datasets.Dataset, tokenizer: Tokenizer, source: str) -> str | None:
    """None for plain text; for other rows what the section says, else the tokenizer's own."""
    if "tgt_txt" not in rows.column_names:
        return None
    key = f"data.mix, source {source}: prompt_template" if source else "data.prompt_template"
    prefers, own = REJECTED in rows.column_names, tokenizer.prompt_template
    known = template_asked_with(config.path, own) if prefers else tokenizer.template_for((source,))
    named = config.prompt_template or known
    if prefers and not named:  # preferences teach no prompt
        if (asks := tokenizer.for_conversations) is not tokenizer:
            logger.warning(
                "%s is unset, so prompts are texts to go on with; this model is asked conversations with %r: give that "
                "if the answers are to conversations",
                key,
                asks.prompt_template,
            )
        return None
    template = named or default_template(rows, tokenizer)
    if sign := lost_separator(template, tokenizer):
        raise ValueError(
            f"{key}={template!r}: the tokenizer loses {sign!r}, and nothing would part the answer "
            "from the source; let it end with a sign of the vocabulary: "
            f"{key}='{{src_txt}}{kept_sign(tokenizer)}'"
        )
    if lost := lost_named(split_template(template), tokenizer):
        logger.warning("%s=%r: the tokenizer loses %s of it", key, template, lost)
    if not split_template(template)[1]:
        logger.warning("%s=%r: nothing parts the answer from the source; %s", key, template, BETTER)
    return template


def saved_tokenizer(config: TrainingConfig, tokenizers: Mapping[str, Tokenizer], start: Path | None) -> Tokenizer:
    """What the model is saved with: of a mixture with the template of each source by its name, for task=NAME; and for
    whoever names no task with data.prompt_template, else with none where it learns plain text too, which it then goes
    on with, else with that of the first source. Preferences change nothing of how a model is asked, unless
    data.prompt_template is given."""
    if isinstance(config, PreferConfig) and start and not config.data.prompt_template:
        return open_tokenizer(start)
    if not config.data.mix:
        return tokenizers[""]
    found = {name: each.prompt_template for name, each in tokenizers.items()}
    templates = {name: template for name, template in found.items() if template is not None}
    usual = config.data.prompt_template if templates else None
    if len(templates) == len(found):
        usual = usual or next(iter(templates.values()))
    return next(iter(tokenizers.values())).with_prompt_template(usual, templates)


def trained_on(rows: Sequence[tuple[datasets.Dataset, float]], config: TokenizerConfig, cache: Path) -> Tokenizer:
    """rows: of each source, and how often each text of it counts."""
    arguments = {"kind": config.kind, "vocab_size": config.vocab_size, "min_frequency": config.min_frequency}
    origin: dict[str, Any] = {"rows": ",".join(fingerprint(each) for each, _ in rows), **arguments}
    if len(rows) > 1:
        origin["passes"] = [passes for _, passes in rows]

    def build(folder: Path) -> None:
        train_tokenizer(Texts(rows), **arguments).save(folder)  # type: ignore[arg-type]

    return load_tokenizer(cached(cache, "tokenizer", origin, build))


def passes_of(config: TrainingConfig, rows: Mapping[str, datasets.Dataset]) -> list[tuple[datasets.Dataset, float]]:
    """The rows of each source, and how often they count for the tokenizer: so that each source has its weight in
    characters, and all together as many as they have once."""
    if len(rows) == 1:
        return [(each, 1.0) for each in rows.values()]
    sizes = [sum(map(len, Texts([(each, 1.0)]))) for each in rows.values()]
    weights = shares(sizes, [source.weight for source in config.data.mix], config.data.mix_temperature)
    passes = [weight * sum(sizes) / size for weight, size in zip(weights, sizes, strict=True)]
    return list(zip(rows.values(), passes, strict=True))


def fingerprints_of(training: TrainingSetup) -> dict[str, str]:
    """Split → the fingerprint of its rows, of those that training reads."""
    return {name: fingerprint(split) for name, split in training.splits.items() if part_of(name)[0] != "test"}


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
