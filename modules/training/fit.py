"""Training itself: the decoder on its devices, Lightning's trainer, and the checkpoint that validates best."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ..checkpoint.loading import open_model
from ..config.model import ModelConfig
from ..config.preferences.preference import PreferConfig
from ..config.training import TrainerConfig, TrainingConfig
from ..data.datamodule import TextDataModule
from ..model.decoder import fresh_tensors, meta_decoder
from ..model.lora import add_lora, initial_adapters
from ..system.hardware import grow_gpu_memory_in_place, keep_freed_memory
from ..system.signals import WorkerError, is_main_process
from .callbacks import (
    Checkpoints,
    ProgressLine,
    QuietEarlyStopping,
    SameOnAllRanks,
    Samples,
    checkpoints_in,
    score_texts,
)
from .checkpoints.run_manifest import CHECKPOINTS
from .checkpoints.saving import read_progress
from .lightning_module import LanguageModel
from .planning.plan import Course, make_course, plan_from
from .precision import compiles, compute_format, on_gpu
from .preferences.preference_model import PreferenceModel
from .setup import TrainingSetup
from .strategies import group_timeout, job_environment, make_strategy
from .utilization import Utilization

grow_gpu_memory_in_place()  # now: even what number format pays is asked of the GPU


also_called: list[pl.Callback] = []
"""Callbacks of whoever trains many times and watches: a sweep."""


def fit(
    stage: str,
    config: TrainingConfig,
    training: TrainingSetup,
    folder: Path,
    logger: Logger | None = None,
    samples: Samples | None = None,
    checkpoint: Path | None = None,
    output_key: str = "output_dir",
) -> tuple[Path, dict[str, float]]:
    """Trains, from `checkpoint` on if given; returns the best checkpoint, by training.selection, and its metrics.

    `output_key`: how the command line spells output_dir. Raises Stopped after a signal, with the last whole step saved.
    """
    module = make_module(config, training)
    train, plan = config.train, training.plan
    if checkpoint and is_main_process():  # the others take the first one's course
        plan = plan_from(train, plan, training.data, read_progress(checkpoint).get("progress"))
    course = make_course(train, plan, training.data)
    selection = training.selection
    if selection.score:
        module.score_texts = partial(score_texts, selection, module)
    keep = train.save_every_n_steps, train.save_top_k
    checkpoints = Checkpoints(folder / CHECKPOINTS, course, *keep, output_key, selection)
    samples = samples or Samples(training.tokenizer, training.sample_prompts, config.generation, config.seed)
    same = SameOnAllRanks(
        (training.tokenizer.fingerprint, config.trainer.precision, plan.steps_per_epoch, plan.tokens_per_epoch)
    )
    callbacks: list[pl.Callback] = [same, checkpoints, samples]
    if train.early_stopping_patience:
        callbacks.append(QuietEarlyStopping(selection, train.early_stopping_patience))
    if on_gpu(config.trainer):
        callbacks.append(Utilization(training.model, config.trainer, bool(config.lora.rank)))
    if config.trainer.progress_bar:
        callbacks.append(ProgressLine(stage))
    callbacks += also_called
    trainer = make_trainer(config.trainer, course, folder, logger, callbacks)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    try:
        with checkpoints.stop.heard():
            trainer.fit(module, training.data, ckpt_path=checkpoint, weights_only=True)
            result = best_checkpoint(trainer, module, training.data, checkpoints)
    except Exception as error:
        if lost := lost_contact(error, group_timeout(config.trainer)):
            raise lost from None
        raise
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()  # whose threads abort a process that ends with them
    return result


def make_trainer(
    config: TrainerConfig, course: Course, folder: Path, logger: Logger | None, callbacks: list[pl.Callback]
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=make_strategy(config),
        max_steps=course.total_steps,
        max_epochs=-1,
        val_check_interval=course.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=logger or False,
        callbacks=callbacks,
        plugins=job_environment(),
        enable_checkpointing=False,  # Checkpoints is among the callbacks
        enable_progress_bar=config.progress_bar,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        inference_mode=config.devices * config.nodes == 1,  # spread weights couldn't be trained on afterwards
        default_root_dir=folder,
    )


def best_checkpoint(
    trainer: pl.Trainer, module: LanguageModel, data: TextDataModule, checkpoints: Checkpoints
) -> tuple[Path, dict[str, float]]:
    """The last steps may not have been validated yet: do so, then take whichever weights validate best."""
    if trainer.global_step not in module.validations:
        trainer.validate(module, data, verbose=False)
    checkpoints.tell(trainer)  # also where a run goes on that had no more step to take
    if not trainer.is_global_zero:
        return checkpoints.folder, {}
    step = checkpoints.best(module.validations)
    return checkpoints_in(checkpoints.folder)[step], module.validations[step]


def make_module(config: TrainingConfig, training: TrainingSetup) -> LanguageModel:
    """On the meta device, without memory: it takes its weights when it is known which devices they go to."""
    model = training.model
    decoder = meta_decoder(without_dropout(model) if isinstance(config, PreferConfig) else model)
    decoder.transformer.activation_checkpointing = config.trainer.activation_checkpointing
    decoder.transformer.compile_layers = compiles(config.trainer)
    if config.trainer.precision == "bf16-true":
        decoder.bfloat16()  # before there are adapters, which stay float32; Lightning would convert them too, and later
    elif config.trainer.precision == "bf16-mixed":
        decoder.compute_dtype = torch.bfloat16  # and no autocast, which would keep activations in float32
    tensors = first_tensors(config, training)
    if config.lora.rank:
        add_lora(decoder, config.lora, config.seed)
        tensors = chain(tensors, initial_adapters(decoder, config.seed).items())
    plan, compute = training.plan, compute_format(config.trainer)
    rest = decoder, config.train, plan.learning_rate, plan.total_steps, tensors, compute, config.seed
    if isinstance(config, PreferConfig):
        return PreferenceModel(*rest, config.trainer.deterministic, preference=config.preference)
    return LanguageModel(*rest, config.trainer.deterministic)


def without_dropout(model: ModelConfig) -> ModelConfig:
    """For pairs: an answer would be less likely than to the model that training starts from by dropout alone."""
    return replace(model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def first_tensors(config: TrainingConfig, training: TrainingSetup) -> Iterator[tuple[str, Tensor]]:
    """The weights to start from, one by one."""
    if training.start is None:
        yield from fresh_tensors(training.model, config.seed)
        return
    yield from ((name, tensor.read()) for name, tensor in open_model(training.start).weights.items())


LOST = re.compile(
    "Timed out waiting|timeout caused pair closure|Connection closed by peer|Connection reset by peer|Watchdog caught"
)
"""What gloo and NCCL say when another rank is gone or doesn't answer."""


def lost_contact(error: BaseException, timeout: int) -> WorkerError | None:
    """What an error means where another rank's silence is behind it (teardown may have failed on top of it)."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, dist.DistError) or (isinstance(cause, RuntimeError) and LOST.search(str(cause))):
            time.sleep(1)  # the other may have been stopped on purpose, and this process's own signal be on its way
            return WorkerError(
                f"rank {os.environ.get('RANK') or '?'}: another rank has died, or hasn't answered for {timeout} s "
                "(trainer.process_group_timeout). The same command goes on from the last checkpoint in its output_dir"
            )
        cause = cause.__context__
    return None
