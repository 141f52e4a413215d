"""A model folder → a version in the registry; the alias moves to it where a paired test says that it is better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modules.checkpoint.loading import open_model, open_tokenizer, require_finite, verify_model
from modules.config.evaluation import RegisterConfig
from modules.evaluation.likelihood import Likelihoods, lost_of_rows, score_folder
from modules.evaluation.logged_results import doubts
from modules.evaluation.promotion import Promotion, decide
from modules.evaluation.statistics import Metric
from modules.evaluation.task_evaluation import TaskRows, load_scored_rows
from modules.evaluation.task_rows import GROUP, copies_in_training
from modules.tracking.registry import complete_version, log_model, register_version, resolve_model, version_with_alias
from modules.tracking.stage_run import checking, log_rows

from .cli.bad_rows import log_quarantine, show_quarantine, start_quarantine
from .cli.command_line import run_stage
from .cli.printing import progress_of, show
from .cli.results import describe_test_rows


@dataclass(frozen=True)
class RegisterResult:
    run_id: str
    version: str  # its number
    perplexity_per_char: float
    promotion: Promotion
    """Whether it carries the alias now, and why."""


def register(config: RegisterConfig) -> RegisterResult | None:
    """None after a dry run. Raises CheckpointError for a damaged folder, ValueError for non-finite weights."""
    with checking("register", config) as begin_run:
        verify_model(folder := resolve_model(config.model))
        require_finite(folder)
        quarantine = start_quarantine(config.data)
        rows = load_scored_rows(config.data, {GROUP} - set(config.data.columns), quarantine)
        show_quarantine(quarantine)
        copies = copies_in_training(rows.test, folder, config.data.cache_dir)
        if config.dry_run:
            lost = lost_of_rows(rows.test, open_tokenizer(folder), open_model(folder).config.max_position_embeddings)
            plan = {"model": str(folder), "name": config.model_name} | describe_test_rows(rows, copies, lost)
            show("register: what will be done", plan)
            return None
        run = begin_run()
        log_quarantine(run, quarantine)
        digest = log_rows(run, rows.test, rows.place.name, "test")
        score = scored("the new model", folder, rows, config)
        found = score.perplexity_per_char
        promotion = promote(found, rows, config)
        # models:/m-… is by a training run, and not a version that has a name already
        model_uri = config.model if config.model.startswith("models:/m-") else log_model(folder)
        tags = {"test_perplexity_per_char": f"{found.value:.4f}", "test_rows_sha256": digest}
        number = register_version(model_uri, config.model_name, folder, tags | {"promotion": promotion.reason})
        complete_version(config.model_name, number, config.alias if promotion.promoted else None)
        run.log_metrics({"test/perplexity_per_char": found.value, **promotion.metrics(), **doubts(score.lost, copies)})
        run.set_tags({"registered_version": number} | promotion.tags())
        shown = {"version": f"{config.model_name} {number}", config.alias: promotion.reason}
        show("registered", shown | describe_test_rows(rows, copies, score.lost))
        return RegisterResult(run.info.run_id, number, found.value, promotion)


def scored(name: str, folder: Path, rows: TaskRows, config: RegisterConfig) -> Likelihoods:
    with progress_of(name) as progress:
        return score_folder(folder, rows.test, config.max_batch_tokens, progress=progress)


def promote(found: Metric, rows: TaskRows, config: RegisterConfig) -> Promotion:
    """`decide`, against whoever holds the alias, scored now on the same rows."""
    holder = version_with_alias(config.model_name, config.alias)
    uri = f"models:/{config.model_name}@{config.alias}"
    against = scored(uri, resolve_model(uri), rows, config).perplexity_per_char if holder else None
    return decide(found, against, holder.version if holder else None, config.level)


if __name__ == "__main__":
    run_stage("register", register)
