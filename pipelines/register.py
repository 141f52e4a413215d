"""A model folder → a version in the registry; the alias moves to it where a paired test says that it is better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets

from modules.checkpoint.loading import require_finite, verify_model
from modules.config.evaluation import RegisterConfig
from modules.data.splits import load_test_rows
from modules.evaluation.likelihood import score_folder
from modules.evaluation.promotion import Promotion, decide
from modules.evaluation.statistics import Metric
from modules.evaluation.task_rows import GROUP
from modules.tracking.registry import complete_version, log_model, register_version, resolve_model, version_with_alias
from modules.tracking.stage_run import log_rows, stage_run

from .cli.bad_rows import report_quarantine, start_quarantine
from .cli.command_line import run_stage
from .cli.printing import progress_of, show


@dataclass(frozen=True)
class RegisterResult:
    run_id: str
    version: str
    """Number of the new version."""
    perplexity_per_char: float
    promotion: Promotion
    """Whether it carries the alias now, and why."""


def register(config: RegisterConfig) -> RegisterResult | None:
    """None after a dry run. Raises CheckpointError for a damaged folder, ValueError for non-finite weights."""
    with stage_run("register", config) as run:
        folder = resolve_model(config.model)
        verify_model(folder)
        require_finite(folder)
        quarantine = start_quarantine(config.data)
        test = load_test_rows(config.data, quarantine, {GROUP} - set(config.data.columns))
        report_quarantine(run, quarantine)
        if config.dry_run:
            show("register: what will be done", {"model": str(folder), "name": config.model_name, "rows": len(test)})
            return None
        digest = log_rows(run, test, str(config.data.test_path or config.data.path), "test")
        found = scored("the new model", folder, test, config)
        promotion = promote(found, test, config)
        logged = config.model.startswith("models:/m-")  # by a training run; not a version that has a name already
        model_uri = config.model if logged else log_model(folder)
        tags = {"test_perplexity_per_char": f"{found.value:.4f}", "test_rows_sha256": digest}
        number = register_version(model_uri, config.model_name, folder, tags | {"promotion": promotion.reason})
        complete_version(config.model_name, number, config.alias if promotion.promoted else None)
        run.log_metrics({"test/perplexity_per_char": found.value} | promotion.metrics())
        tags = {"registered_version": number, "champion": str(promotion.promoted).lower(), "verdict": promotion.reason}
        run.set_tags(tags)
        show("registered", {"version": f"{config.model_name} {number}", config.alias: promotion.reason})
        return RegisterResult(run.info.run_id, number, found.value, promotion)


def scored(name: str, folder: Path, test: datasets.Dataset, config: RegisterConfig) -> Metric:
    with progress_of(name) as progress:
        return score_folder(folder, test, config.max_batch_tokens, progress=progress)


def promote(found: Metric, test: datasets.Dataset, config: RegisterConfig) -> Promotion:
    """`decide`, against whoever holds the alias, scored now on the same rows."""
    holder = version_with_alias(config.model_name, config.alias)
    if holder is None:
        return decide(found, None, None)
    uri = f"models:/{config.model_name}@{config.alias}"
    against = scored(uri, resolve_model(uri), test, config)
    return decide(found, against, holder.version, config.level)


if __name__ == "__main__":
    run_stage("register", register)
