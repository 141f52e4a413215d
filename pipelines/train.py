"""Training as pretrain and finetune share it, read from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import datasets
import mlflow
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from modules.adapter import adapter_hash, apply_adapter, read_adapter, save_adapter
from modules.callbacks import LAST, Progress, SameOnAllRanks, Samples, SaveAtEnd
from modules.checkpoint import (
    fresh_tensors,
    meta_decoder,
    model_hash,
    open_model,
    sound_hash,
    write_architecture,
    write_model,
)
from modules.config import ModelConfig, TrainingConfig
from modules.data import TextDataModule, load_splits
from modules.interop.safe_dcp import METADATA
from modules.interop.training_checkpoint import trained_weights
from modules.lightning_module import LanguageModel
from modules.lora import add_lora, initial_adapters
from modules.memory_limit import require_memory
from modules.parallel import require_cuttable
from modules.pictures import loss_curve
from modules.plan import TrainingPlan, batch_of, make_plan
from modules.registry import log_model
from modules.rows import RowSource
from modules.run_logger import RunLogger
from modules.strategies import compute_format, lightning_precision, make_strategy, read_loops, require_devices
from modules.tokenizer import Tokenizer
from modules.tokenizer_choice import choose_tokenizer
from modules.tracking import (
    connect,
    is_main_process,
    log_rows,
    output_folder,
    provenance,
    resolve_model,
    stage_run,
)
from modules.weights import StoredWeights

from .command_line import show
from .launch import lost_contact


@dataclass(frozen=True)
class TrainResult:
    run_id: str
    plan: TrainingPlan
    model: Path | None = None
    """The model folder; None after a dry run, and on all processes but the first."""
    model_uri: str | None = None
    """models:/ID of what was logged to MLflow."""
    metrics: dict[str, float] | None = None


@dataclass(frozen=True)
class Training:
    """What is trained on what: the same on every process."""

    start: Path | None
    splits: dict[str, datasets.Dataset]
    tokenizer: Tokenizer
    model: ModelConfig
    data: TextDataModule
    plan: TrainingPlan


def train(stage: str, config: TrainingConfig, rows: RowSource | None = None) -> TrainResult:
    """Rows → a model folder, logged to MLflow. `rows` stands in for data.path, e.g. {"src_txt": […]}.

    Of several processes the first alone prints, logs and writes; its checkpoints have a part from each.
    """
    if not is_main_process():
        connect(config.tracking)
        training = set_up(config, rows)
        if not config.dry_run:
            require_memory(training.plan.demand)
            fit(stage, config, training, Path(config.output_dir or "outputs"))
        return TrainResult("", training.plan)
    with stage_run(stage, config) as run:
        training = set_up(config, rows)
        show(f"{stage}: what will be done", training.plan.describe())
        require_memory(training.plan.demand)
        if config.dry_run:
            return TrainResult(run.info.run_id, training.plan)
        source = str(config.data.path or "rows in memory")
        digests = {name: log_rows(split, source, name) for name, split in training.splits.items() if name != "test"}
        folder = output_folder(stage, config)
        describe_checkpoints(folder / "checkpoints", training)
        logger = RunLogger(run.info.run_id)
        samples = Samples(training.tokenizer, config.train.sample_prompts, config.generation, config.seed)
        try:
            checkpoint, metrics = fit(stage, config, training, folder, logger, samples)
        finally:
            mlflow.log_figure(loss_curve(logger.history, stage), "loss_curve.png")
            log_samples(samples)
        facts = {"stage": stage, "parent": parent_of(config, training.start), "data": digests, "metrics": metrics}
        facts |= {"rows": {name: len(split) for name, split in training.splits.items()}}
        facts |= {"tokenizer": training.tokenizer.fingerprint}
        weights = trained_weights(checkpoint)
        made = {"model folder": str(folder / "model")}
        if config.lora.rank:
            weights = merge_adapter(config, training, weights, folder / "adapter")
            facts["adapter_sha256"] = adapter_hash(folder / "adapter")
            made["adapter alone"] = str(folder / "adapter")
        tensors = ((name, tensor.read()) for name, tensor in weights.items())
        model = write_model(folder / "model", training.model, tensors, training.tokenizer, provenance(config, **facts))
        uri = log_model(model)
        show(f"{stage}: done", {name: f"{value:.4g}" for name, value in metrics.items()} | made)
        return TrainResult(run.info.run_id, training.plan, model, uri, metrics)


def describe_checkpoints(folder: Path, training: Training) -> None:
    """What lets every checkpoint of the run be opened as a model."""
    folder.mkdir()
    write_architecture(folder, training.model)
    training.tokenizer.save(folder)


def set_up(config: TrainingConfig, rows: RowSource | None) -> Training:
    require_devices(config.trainer)
    pl.seed_everything(config.seed, verbose=False)
    resume = config.train.resume_from
    if resume and not (Path(resume) / METADATA).is_file():
        raise ValueError(f"train.resume_from={resume} is no checkpoint; give one of a run's checkpoints/*.ckpt folders")
    start = resolve_model(config.train.init_from) if config.train.init_from else None
    if start:
        sound_hash(start)
    splits = load_splits(config.data, config.seed, rows)
    tokenizer = choose_tokenizer(config, start, splits["train"])
    model = architecture(config, start, tokenizer)
    data = data_module(config, splits, tokenizer)
    return Training(start, splits, tokenizer, model, data, make_plan(config, model, data))


def make_module(config: TrainingConfig, training: Training) -> LanguageModel:
    """Still without memory: it takes its weights when it is known which devices they go to."""
    decoder = meta_decoder(training.model)
    decoder.transformer.recompute = config.trainer.activation_checkpointing
    if config.trainer.precision == "bf16-true":
        decoder.bfloat16()  # before there are adapters, which stay float32
    tensors = first_tensors(config, training)
    if config.lora.rank:
        add_lora(decoder, config.lora, config.seed)
        tensors = chain(tensors, initial_adapters(decoder, config.seed).items())
    plan, compute = training.plan, compute_format(config.trainer)
    return LanguageModel(decoder, config.train, plan.learning_rate, plan.total_steps, tensors, compute, config.seed)


def first_tensors(config: TrainingConfig, training: Training) -> Iterator[tuple[str, Tensor]]:
    """The weights to start from, one by one."""
    if training.start is None:
        yield from fresh_tensors(training.model, config.seed)
        return
    for name, tensor in open_model(training.start).weights.items():
        yield name, tensor.read()


def merge_adapter(config: TrainingConfig, training: Training, trained: StoredWeights, folder: Path) -> StoredWeights:
    """Saves what was trained as an adapter of its own; returns the weights of the start folder with it merged in."""
    assert training.start, "TrainingConfig.complaints sees to it"
    base_hash = model_hash(training.start)
    tensors = {name: tensor.read() for name, tensor in trained.items()}
    adapter = save_adapter(folder, tensors, training.model, config.lora, base_hash)
    return apply_adapter(open_model(training.start), read_adapter(adapter), base_hash).weights


def parent_of(config: TrainingConfig, start: Path | None) -> dict[str, str] | None:
    """Where the weights came from; by hash as well, since folders and aliases move."""
    if start is None:
        return None
    return {"init_from": str(config.train.init_from), "weights_sha256": model_hash(start)}


def architecture(config: TrainingConfig, start: Path | None, tokenizer: Tokenizer) -> ModelConfig:
    """What the start folder says, else config.model with the tokenizer's vocabulary. ValueError if they don't fit."""
    model = open_model(start).config if start else config.model
    assert model is not None
    model.vocab_size = model.vocab_size or tokenizer.vocab_size
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"model.vocab_size={model.vocab_size}: the tokenizer has {tokenizer.vocab_size} entries")
    if config.data.sequence_length > model.max_position_embeddings:
        raise ValueError(
            f"data.sequence_length={config.data.sequence_length} is over the model's "
            f"max_position_embeddings ({model.max_position_embeddings}): give a shorter one"
        )
    require_cuttable(model, config.trainer.tensor_parallel)
    return model


def data_module(config: TrainingConfig, splits: dict[str, datasets.Dataset], tokenizer: Tokenizer) -> TextDataModule:
    return TextDataModule(
        splits,
        tokenizer,
        config.data,
        **batch_of(config.train, config.model),
        micro_batch_tokens=config.train.micro_batch_tokens,
        seed=config.seed,
    )


def fit(
    stage: str,
    config: TrainingConfig,
    training: Training,
    folder: Path,
    logger: RunLogger | None = None,
    samples: Samples | None = None,
) -> tuple[Path, dict[str, float]]:
    """Trains; returns the checkpoint with the best validation loss, and its metrics."""
    module = make_module(config, training)
    best = ModelCheckpoint(
        folder / "checkpoints",
        "step={step}",
        monitor="val/loss",
        save_top_k=config.train.save_top_k,
        save_last=True,
        auto_insert_metric_name=False,
    )
    facts = (training.tokenizer.fingerprint, training.plan.total_steps, training.plan.tokens_per_epoch)
    callbacks: list[pl.Callback] = [SameOnAllRanks(facts), best]
    if training.plan.total_steps % validation_interval(config, training.plan):
        callbacks.append(SaveAtEnd(best))  # otherwise the last validation saves
    callbacks.append(
        samples or Samples(training.tokenizer, config.train.sample_prompts, config.generation, config.seed)
    )
    if config.train.early_stopping_patience:
        callbacks.append(EarlyStopping("val/loss", patience=config.train.early_stopping_patience))
    if config.trainer.progress_bar:
        callbacks.append(Progress(stage))
    trainer = make_trainer(config, training.plan, folder, logger, callbacks)
    try:
        trainer.fit(module, training.data, ckpt_path=config.train.resume_from, weights_only=True)
    except SystemExit as stop:  # how Lightning passes Ctrl-C on
        raise (KeyboardInterrupt() if isinstance(stop.__context__, KeyboardInterrupt) else stop) from None
    except Exception as error:
        if trainer.received_sigterm:  # in the middle of a collective, which the other ranks have left
            raise SystemExit from None
        if lost := lost_contact(error, config.trainer.process_group_timeout):
            raise lost from None
        raise
    return best_checkpoint(trainer, module, training.data, best)


def make_trainer(
    config: TrainingConfig, plan: TrainingPlan, folder: Path, logger: RunLogger | None, callbacks: list[pl.Callback]
) -> pl.Trainer:
    several = config.trainer.devices * config.trainer.nodes > 1
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        strategy=make_strategy(config.trainer),
        precision=lightning_precision(config.trainer),
        max_steps=plan.total_steps,
        max_epochs=-1,
        val_check_interval=validation_interval(config, plan),
        check_val_every_n_epoch=None,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=logger or False,
        callbacks=callbacks,
        enable_progress_bar=config.trainer.progress_bar,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        inference_mode=not several,  # what it makes of spread weights could not be trained on afterwards
        default_root_dir=folder,
    )


def validation_interval(config: TrainingConfig, plan: TrainingPlan) -> int:
    return min(config.train.validate_every_n_steps or plan.steps_per_epoch, plan.total_steps)


def best_checkpoint(
    trainer: pl.Trainer, module: LanguageModel, data: TextDataModule, best: ModelCheckpoint
) -> tuple[Path, dict[str, float]]:
    """The last steps may not have been validated yet: do so, then take whichever weights validate best."""
    if trainer.global_step not in module.validations:
        trainer.validate(module, data, verbose=False)
    final = module.validations[trainer.global_step]
    best_loss = float(best.best_model_score) if best.best_model_score is not None else math.inf
    if final["val/loss"] <= best_loss or not best.best_model_path:
        return Path(best.dirpath or ".") / LAST, final
    path = Path(best.best_model_path)
    return path, module.validations[read_loops(path)["global_step"]]


def log_samples(samples: Samples) -> None:
    if samples.table:
        columns = {name: [row[name] for row in samples.table] for name in samples.table[0]}
        mlflow.log_table(columns, "samples.json")
