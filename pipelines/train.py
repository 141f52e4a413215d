"""Training as pretrain and finetune share it, read from top to bottom."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow

from modules.checkpoint.model_folder import write_model
from modules.config.training import TrainingConfig
from modules.data.sources import RowSource
from modules.evaluation.choosing.checkpoint_choice import extras, with_selection
from modules.evaluation.report.figures import loss_curve
from modules.system.signals import is_main_process
from modules.tracking.lightning_logger import RunLogger
from modules.tracking.models.known_models import sent_model
from modules.tracking.provenance import provenance
from modules.tracking.registry import resolve_model
from modules.tracking.reuse.stage_key import program_of
from modules.tracking.run_selection import given_run_id
from modules.tracking.stage_run import checking, commands, connect, connected, log_rows, spelled
from modules.tracking.summary.training_facts import CostMeter, log_changes, log_plan
from modules.tracking.tracked_run import TrackedRun
from modules.training.callbacks import Samples
from modules.training.checkpoints import resume
from modules.training.checkpoints.outcome import final_weights, parent_of, require_finished, result_facts
from modules.training.checkpoints.run_manifest import CHECKPOINTS, RunManifest, write_run_manifest
from modules.training.checkpoints.saving import read_progress
from modules.training.fit import fit
from modules.training.planning.memory_limit import require_memory
from modules.training.planning.plan import TrainingPlan
from modules.training.setup import TrainingSetup, run_manifest_of, set_up, without_path

from .cli.bad_rows import keep_quarantine, log_quarantine, show_quarantine, start_quarantine
from .cli.printing import say_if_older, show
from .cli.summaries import show_trained


def known_folder(stage: str, config: TrainingConfig) -> str | None:
    """Where the run will write, as far as it is known before there is a run; a dry run writes nowhere."""
    if config.dry_run or config.output_dir:
        return None if config.dry_run else config.output_dir
    given = None if mlflow.active_run() else given_run_id()  # that `mlflow run` made, or whoever starts the job again
    return f"outputs/{stage}-{given}" if given else None


@dataclass(frozen=True)
class TrainResult:
    run_id: str
    """Empty after a dry run, and on all processes but the first."""
    plan: TrainingPlan
    model: Path | None = None
    """The model folder; None after a dry run, and on all processes but the first."""
    model_uri: str | None = None  # models:/ID of what was logged to MLflow
    metrics: dict[str, float] | None = None
    setup: TrainingSetup | None = None  # of a dry run: what would be trained on what


def train(stage: str, config: TrainingConfig, rows: RowSource | None = None) -> TrainResult:
    """Rows → a model folder, logged to MLflow. `rows` stands in for data.path, e.g. {"src_txt": […]}.

    Of several processes the first alone prints, logs and writes; its checkpoints have a part from each.
    """
    config = without_path(config, rows)
    if not is_main_process():
        return follow(stage, config, rows)
    known = known_folder(stage, config)
    with resume.claimed(known, config.train.resume_from) as before, ExitStack() as stack:
        resume.settle_format(config, known, before)
        if before and before.finished:
            return done_before(stage, config, rows, before)
        begin_run = stack.enter_context(checking(stage, config, before.run_id if before else None))
        training = set_up_training(config, rows, before)
        show_quarantine(training.quarantine)
        parent = parent_of(config, training.start)
        made_from = run_manifest_of(stage, before.run_id if before else "", config, training, parent)
        start, origin, training = resume.where_to_start(config, known, before, made_from, training)
        show(f"{stage}: what will be done", training.plan.describe())
        require_memory(training.plan.demand)
        if origin.resumed_from or before:
            show(f"{stage}: goes on", resume.describe_start(start, training.data))
        if config.dry_run:
            return TrainResult("", training.plan, setup=training)
        run = begin_run()
        origin = dataclasses.replace(origin, run_id=run.info.run_id, program=program_of(stage, config))
        log_plan(run, training.plan)
        log_quarantine(run, training.quarantine)
        log_changes(run, before, made_from, start)
        if not known:
            stack.enter_context(resume.claimed(f"outputs/{stage}-{run.info.run_id}", None))
        for name, digest in origin.data.items():
            log_rows(run, training.splits[name], training.places[name].name, name, digest)
        run.set_tags(origin.fingerprints)
        folder = Path(known or f"outputs/{stage}-{run.info.run_id}")
        resume.describe_checkpoints(folder / CHECKPOINTS, training, origin)
        keep_quarantine(training.quarantine, folder)
        checkpoint, metrics = tracked_fit(run, stage, config, training, folder, start)
        return finish(run, stage, config, training, origin, parent, checkpoint, metrics)


def finish(
    run: TrackedRun,
    stage: str,
    config: TrainingConfig,
    training: TrainingSetup,
    origin: RunManifest,
    parent: dict[str, str] | None,
    checkpoint: Path,
    metrics: dict[str, float],
) -> TrainResult:
    """The model folder, beside the checkpoints, and in MLflow."""
    checkpoints = checkpoint.parent
    weights, made = final_weights(config, training, checkpoint, checkpoints.parent, parent, metrics)
    run_facts = provenance(config, **result_facts(stage, training, origin, parent, metrics, made))
    model = write_model(checkpoints.parent / "model", training.model, weights, training.tokenizer, run_facts)
    run.log_saved(step := read_progress(checkpoint)["global_step"])
    uri = run.log_model(model, step) if config.tracking.log_model else None
    write_run_manifest(checkpoints, dataclasses.replace(origin, finished=True, model_uri=uri, metrics=metrics))
    show_trained(f"{stage}: done", run.info.run_id, model, metrics, config, not commands, made)
    return TrainResult(run.info.run_id, training.plan, model, uri, metrics)


def set_up_training(config: TrainingConfig, rows: RowSource | None, before: RunManifest | None = None) -> TrainingSetup:
    start = resolve_model(config.train.init_from) if config.train.init_from else None
    return with_selection(config, set_up(config, start, rows, start_quarantine(config.data), before, extras(config)))


def done_before(stage: str, config: TrainingConfig, rows: RowSource | None, before: RunManifest) -> TrainResult:
    """What the same command has made already: whoever starts it again, a scheduler or `main`, goes on from there."""
    with connected(config.tracking):
        training = set_up_training(config, rows, before)
        folder = Path(known_folder(stage, config) or ".")
        uri = before.model_uri or sent_model(before.run_id, folder / "model")
    now = run_manifest_of(stage, before.run_id, config, training, parent_of(config, training.start))
    require_finished(before, now, folder)
    say_if_older(stage, folder, before.program, program_of(stage, config))
    show_trained(f"{stage}: was done before", before.run_id, folder / "model", before.metrics, config, not commands)
    return TrainResult(before.run_id, training.plan, folder / "model", uri, before.metrics)


def follow(stage: str, config: TrainingConfig, rows: RowSource | None) -> TrainResult:
    """What the processes beside the first do."""
    connect(config.tracking)
    resume.settle_format(config, known_folder(stage, config))
    training = set_up_training(config, rows)
    if not config.dry_run:
        require_memory(training.plan.demand)
        fit(stage, config, training, Path(config.output_dir or "outputs"), checkpoint=resume.followed(config))
    return TrainResult("", training.plan)


def tracked_fit(
    run: TrackedRun, stage: str, config: TrainingConfig, training: TrainingSetup, folder: Path, start: Path | None
) -> tuple[Path, dict[str, float]]:
    """`fit`, with metrics, curve and samples in the run, also where it is broken off."""
    logger = RunLogger(run)
    samples = Samples(training.tokenizer, training.sample_prompts, config.generation, config.seed)
    costs = CostMeter(run, config, training)
    try:
        return fit(stage, config, training, folder, logger, samples, start, spelled(stage, "output_dir"))
    finally:
        with suppress(OSError) if sys.exc_info()[0] else nullcontext():  # or a full disk would hide why
            costs.log(folder / CHECKPOINTS / "last.ckpt", logger.history)
            run.log_figure(loss_curve(logger.history, stage), "loss_curve.png")
            if samples.table:
                run.log_table({name: [row[name] for row in samples.table] for name in samples.table[0]}, "samples.json")
