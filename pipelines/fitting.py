"""The middle of training: a decoder on its devices, Lightning's trainer, and the checkpoint that validates best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import datasets
import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import Tensor

from modules.allocator import keep_freed_memory
from modules.bad_rows import Quarantine
from modules.callbacks import Progress, SameOnAllRanks, Samples
from modules.checkpoint import (
    fresh_tensors,
    meta_decoder,
    open_model,
)
from modules.checkpoint_callback import Checkpoints, Patience, checkpoints_in
from modules.config import ModelConfig, TrainingConfig
from modules.data import TextDataModule
from modules.lightning_module import LanguageModel
from modules.lora import add_lora, initial_adapters
from modules.plan import TrainingPlan
from modules.resume import CHECKPOINTS
from modules.strategies import compute_format, lightning_precision, make_strategy
from modules.tokenizer import Tokenizer
from modules.tracking import open_runs
from modules.tracking.run_logger import RunLogger

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
    checkpoint: Path | None = None,
) -> tuple[Path, dict[str, float]]:
    """Trains, from `checkpoint` on if given; returns the checkpoint with the best validation loss, and its metrics.

    Raises Stopped when a signal has ended it; a checkpoint of the last whole step is written then.
    """
    module = make_module(config, training)
    train, plan = config.train, training.plan
    interval = validation_interval(config, plan)
    key = f"{stage}.output_dir" if len(open_runs) > 1 else "output_dir"  # in main it stands under the stage's name
    checkpoints = Checkpoints(folder / CHECKPOINTS, interval, train.save_every_n_steps, train.save_top_k, key)
    facts = (training.tokenizer.fingerprint, plan.total_steps, plan.tokens_per_epoch)
    samples = samples or Samples(training.tokenizer, train.sample_prompts, config.generation, config.seed)
    callbacks: list[pl.Callback] = [SameOnAllRanks(facts), checkpoints, samples]
    if train.early_stopping_patience:
        callbacks.append(Patience("val/loss", patience=train.early_stopping_patience))
    if config.trainer.progress_bar:
        callbacks.append(Progress(stage))
    trainer = make_trainer(config, plan, folder, logger, callbacks)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    try:
        with checkpoints.stop.heard():
            trainer.fit(module, training.data, ckpt_path=checkpoint, weights_only=True)
            result = best_checkpoint(trainer, module, training.data, checkpoints)
    except Exception as error:
        if lost := lost_contact(error, config.trainer.process_group_timeout):
            raise lost from None
        raise
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
        num_sanity_val_steps=0,
        logger=logger or False,
        callbacks=callbacks,
        # Under SLURM Lightning would save from within a signal handler, in the middle of a step.
        plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
        enable_checkpointing=False,  # Checkpoints is among the callbacks
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
    trainer: pl.Trainer, module: LanguageModel, data: TextDataModule, checkpoints: Checkpoints
) -> tuple[Path, dict[str, float]]:
    """The last steps may not have been validated yet: do so, then take whichever weights validate best."""
    if trainer.global_step not in module.validations:
        trainer.validate(module, data, verbose=False)
    if not trainer.is_global_zero:
        return checkpoints.folder, {}
    step = checkpoints.best(module.validations)
    return checkpoints_in(checkpoints.folder)[step], module.validations[step]


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
