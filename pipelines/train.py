"""Training as pretrain and finetune share it, read from top to bottom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import datasets
import mlflow
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from modules.callbacks import Progress, Samples
from modules.checkpoint import build_decoder, load_model, model_hash, open_model, save_model
from modules.config import ModelConfig, TrainingConfig
from modules.data import TextDataModule, load_splits
from modules.lightning_module import LanguageModel
from modules.pictures import loss_curve
from modules.plan import TrainingPlan, batch_of, make_plan
from modules.registry import log_model
from modules.rows import RowSource
from modules.run_logger import RunLogger
from modules.tokenizer import Tokenizer
from modules.tokenizer_choice import choose_tokenizer
from modules.tracking import log_rows, output_folder, provenance, resolve_model, stage_run

from .command_line import show


@dataclass(frozen=True)
class TrainResult:
    run_id: str
    plan: TrainingPlan
    model: Path | None = None
    """The model folder; None after a dry run."""
    model_uri: str | None = None
    """models:/ID of what was logged to MLflow."""
    metrics: dict[str, float] | None = None


def train(stage: str, config: TrainingConfig, rows: RowSource | None = None) -> TrainResult:
    """Rows → a model folder, logged to MLflow. `rows` stands in for data.path, e.g. {"src_txt": […]}."""
    with stage_run(stage, config) as run:
        pl.seed_everything(config.seed, verbose=False)
        start = resolve_model(config.train.init_from) if config.train.init_from else None
        splits = load_splits(config.data, config.seed, rows)
        tokenizer = choose_tokenizer(config, start, splits["train"])
        model_config = architecture(config, start, tokenizer)
        data = data_module(config, splits, tokenizer)
        plan = make_plan(config, model_config, data)
        show(f"{stage}: what will be done", plan.describe())
        if config.dry_run:
            return TrainResult(run.info.run_id, plan)
        fingerprints = {
            name: log_rows(split, str(config.data.path or "rows in memory"), name)
            for name, split in splits.items()
            if name != "test"
        }
        decoder = load_model(start, dtype=torch.float32) if start else build_decoder(model_config, config.seed)
        module = LanguageModel(decoder.train(), config.train, plan.learning_rate, plan.total_steps)
        folder = output_folder(stage, config)
        logger = RunLogger(run.info.run_id)
        samples = Samples(tokenizer, config.train.sample_prompts, config.generation, config.seed)
        try:
            metrics = fit(stage, config, module, data, plan, folder, logger, samples)
        finally:
            mlflow.log_figure(loss_curve(logger.history, stage), "loss_curve.png")
            log_samples(samples)
        facts = {"stage": stage, "parent": parent_of(config, start), "data": fingerprints, "metrics": metrics}
        facts |= {"tokenizer": tokenizer.fingerprint, "rows": {name: len(split) for name, split in splits.items()}}
        model = save_model(folder / "model", module.decoder.cpu(), tokenizer, provenance(config, **facts))
        uri = log_model(model)
        show(f"{stage}: done", {name: f"{value:.4g}" for name, value in metrics.items()} | {"model folder": str(model)})
        return TrainResult(run.info.run_id, plan, model, uri, metrics)


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
    module: LanguageModel,
    data: TextDataModule,
    plan: TrainingPlan,
    folder: Path,
    logger: RunLogger,
    samples: Samples,
) -> dict[str, float]:
    """Trains, leaves the weights with the best validation loss in the module, and returns their metrics."""
    best = ModelCheckpoint(
        folder / "checkpoints",
        "step={step}",
        monitor="val/loss",
        save_top_k=config.train.save_top_k,
        save_last=True,
        auto_insert_metric_name=False,
    )
    callbacks: list[pl.Callback] = [best, samples]
    if config.train.early_stopping_patience:
        callbacks.append(EarlyStopping("val/loss", patience=config.train.early_stopping_patience))
    if config.trainer.progress_bar:
        callbacks.append(Progress(stage))
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,
        max_steps=plan.total_steps,
        max_epochs=-1,
        val_check_interval=min(config.train.validate_every_n_steps or plan.steps_per_epoch, plan.total_steps),
        check_val_every_n_epoch=None,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=logger,
        callbacks=callbacks,
        enable_progress_bar=config.trainer.progress_bar,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, data)
    except SystemExit as stop:  # how Lightning passes Ctrl-C on
        raise (KeyboardInterrupt() if isinstance(stop.__context__, KeyboardInterrupt) else stop) from None
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")  # validation may have ended before the last step
    return keep_best(trainer, module, data, best)


def keep_best(
    trainer: pl.Trainer, module: LanguageModel, data: TextDataModule, best: ModelCheckpoint
) -> dict[str, float]:
    """The last steps may not have been validated yet: do so, then keep whichever weights validate best."""
    if trainer.global_step not in module.validations:
        trainer.validate(module, data, verbose=False)
    final = module.validations[trainer.global_step]
    best_loss = float(best.best_model_score) if best.best_model_score is not None else math.inf
    if final["val/loss"] <= best_loss:
        return final
    checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    return module.validations[checkpoint["global_step"]]


def log_samples(samples: Samples) -> None:
    if samples.table:
        columns = {name: [row[name] for row in samples.table] for name in samples.table[0]}
        mlflow.log_table(columns, "samples.json")
