"""A model folder → a version in the registry; the alias moves to it where a paired test says that it is better."""

from __future__ import annotations

from dataclasses import dataclass

from modules.checkpoint.loading import require_finite, verify_model
from modules.config.evaluation import RegisterConfig
from modules.evaluation.choosing.candidate import Candidate, holder_of
from modules.evaluation.choosing.measure import DEFAULT, settle_measure
from modules.evaluation.choosing.scored_rows import choose_rows, load_task_rows
from modules.evaluation.logged_results import doubts, log_scores
from modules.evaluation.promotion import Promotion
from modules.tracking.models.known_models import log_used_model
from modules.tracking.registry import complete_version, register_version, resolve_model, version_of
from modules.tracking.stage_run import checking, log_rows

from .cli.bad_rows import log_quarantine, show_quarantine, start_quarantine
from .cli.command_line import run_stage
from .cli.printing import progress_of, show
from .cli.results import describe_test_rows


@dataclass(frozen=True)
class RegisterResult:
    run_id: str
    version: str
    """Number of the version that holds the model: a new one, or the one that held it before."""
    perplexity_per_char: float
    promotion: Promotion
    """Whether it carries the alias now, and why."""


def register(config: RegisterConfig) -> RegisterResult | None:
    """None after a dry run. Raises CheckpointError for a damaged folder, ValueError for non-finite weights."""
    with checking("register", config) as begin_run:
        verify_model(folder := resolve_model(config.model))
        require_finite(folder)
        config, chosen = choose_rows(settle_measure(config), config.model, folder)
        quarantine = start_quarantine(config.data)
        rows = load_task_rows(config, chosen, quarantine)
        show_quarantine(quarantine)
        candidate = Candidate(config, folder, rows, holder_of(config))
        copies = candidate.task.copies
        if config.dry_run:
            plan = {"model": str(folder), "name": config.model_name} | candidate.plan()
            show("register: what will be done", plan | describe_test_rows(rows, copies, candidate.lost()))
            return None
        run = begin_run()
        log_quarantine(run, quarantine)
        digest = log_rows(run, rows.test, rows.place.name, "test")
        with progress_of("the new model") as progress:
            new = candidate.score(folder, progress)
        log_scores(run, candidate.scores(new) | doubts(new.lost, copies), log_used_model(run, config.model, folder))
        before = number = version_of(config.model_name, config.model, folder)
        while True:
            outcome = candidate.judge(run, new, before, progress_of)
            promotion = outcome.promotion
            tags = outcome.tags() | {"test_rows": str(rows.place), "test_rows_sha256": digest}
            kept = {} if promotion.verdict == "held" else tags
            number = register_version(config.model_name, config.model, folder, run.info.run_id, kept, number)
            if (holder := holder_of(config)) == candidate.holder:
                break
            candidate.face(holder)  # another command has moved the alias meanwhile
        complete_version(config.model_name, number, config.alias if promotion.promoted else None)
        run.log_metrics(promotion.metrics())
        run.set_tags({"registered_version": number} | tags)
        shown = {"version": f"{config.model_name} {number}{', which has these weights already' if before else ''}"}
        shown |= outcome.describe(config.alias) | candidate.plan()
        show("registered", shown | describe_test_rows(rows, copies, new.lost))
        return RegisterResult(run.info.run_id, number, new[DEFAULT].value, promotion)


if __name__ == "__main__":
    run_stage("register", register)
