"""The middle of training: a decoder on its devices, Lightning's trainer, and the checkpoint that validates best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import datasets
import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from modules.allocator import keep_freed_memory
from modules.bad_rows import Quarantine
from modules.callbacks import LAST, Progress, SameOnAllRanks, Samples, SaveAtEnd, StopAtOnce
from modules.checkpoint import (
    fresh_tensors,
    meta_decoder,
    open_model,
)
from modules.config import ModelConfig, TrainingConfig
from modules.data import TextDataModule
from modules.lightning_module import LanguageModel
from modules.lora import add_lora, initial_adapters
from modules.plan import TrainingPlan
from modules.run_logger import RunLogger
from modules.strategies import compute_format, lightning_precision, make_strategy, read_loops
from modules.tokenizer import Tokenizer

from .launch import lost_contact


@dataclass(frozen=True)
class Training:
    """What is trained on what: the same on every process."""

    start: Path | None
    splits: dict[str, datasets.Dataset]
    tokenizer: Tokenizer
    model: ModelConfig
    data: TextDataModule
    plan: TrainingPlan
    quarantine: Quarantine | None = None
    """Rows that were left out."""


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
    callbacks: list[pl.Callback] = [StopAtOnce(), SameOnAllRanks(facts), best]
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
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    try:
        trainer.fit(module, training.data, ckpt_path=config.train.resume_from, weights_only=True)
    except SystemExit as stop:  # how Lightning passes Ctrl-C on
        raise (KeyboardInterrupt() if isinstance(stop.__context__, KeyboardInterrupt) else stop) from None
    except Exception as error:
        if lost := lost_contact(error, config.trainer.process_group_timeout):
            raise lost from None
        raise
    result = best_checkpoint(trainer, module, training.data, best)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()  # whose threads abort a process that ends with them
    return result


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
