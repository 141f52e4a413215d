"""A stage of `main`, done unless an earlier run has done the same and all that it made is still there and whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlflow.exceptions import MlflowException

from modules.config.base import StageConfig
from modules.config.data import DataConfig
from modules.tracking.reuse.contents import checksums, content_digest, content_of
from modules.tracking.reuse.soundness import artifact_sizes, holder_of, only_waits
from modules.tracking.reuse.stage_cache import (
    Found,
    find,
    interrupted,
    keep,
    let_find,
    make_room,
    one_at_a_time,
)
from modules.tracking.reuse.stage_key import stage_key
from modules.tracking.stage_run import stage_run
from modules.tracking.summary.costs import costs_of, together
from modules.tracking.tracked_run import TrackedRun

from .printing import say

TRAININGS = ("pretrain", "finetune")

Facts = dict[str, Any]
"""What a stage made, as main needs it and as modules/tracking/reuse/stage_cache.py keeps it."""


@dataclass(frozen=True)
class Once:
    """Calls stages, each at most once for the same."""

    run: Callable[[], TrackedRun] | None
    """main's; None in a dry run."""
    forced: frozenset[str]
    """Stages that are done in any case."""
    known: dict[str, str] = field(default_factory=dict)
    """Model in the store → digest of its content."""
    costs: dict[str, float] = field(default_factory=dict)
    """Of the trainings so far, also of those that an earlier run has done."""
    keys: dict[str, str] = field(default_factory=dict)
    """Stage → key of those that main's run has done, or begun."""

    def __call__(self, stage: str, config: Any, function: Callable[[Any], Any]) -> Facts | None:
        """What the stage made; None where a dry run only says what would be done."""
        key, why = stage_key(stage, config, self.known)
        with one_at_a_time(stage, key if self.run else None):
            found = find(stage, key) if key else Found()
            if found.facts and stage not in self.forced:
                facts = self.reused(stage, config, found.facts)
            elif self.run:
                facts = self.done(stage, config, function, key, found)
            else:
                return self.planned(stage, config, function, found.wrong)
        if key is None:
            say(f"{stage}: is done each time, as {why}")
        if uri := facts.get("model_uri"):
            self.known[uri] = content_digest(facts["files"])
        if self.run:
            self.tell(self.run(), stage, config, facts)
        return facts

    def tell(self, run: TrackedRun, stage: str, config: Any, facts: Facts) -> None:
        """What main's run says of a stage, so that it alone answers how good the model is, from what, at what cost."""
        if stage in TRAININGS:
            self.costs.update(together(self.costs, facts.get("costs", {})))
        if stage == "finetune":
            run.log_metrics(facts["metrics"] | self.costs)
            run.set_tags({"from_model": str(config.train.init_from), "from_rows": rows_of(config.data)})
            if uri := facts["model_uri"]:
                run.set_tags({"model": uri})
        elif stage == "evaluate":
            run.log_metrics(facts["metrics"] | facts.get("intervals", {}))
            scored = facts.get("scored") or config.model  # an earlier one with these weights, which has the scores
            run.set_tags({"model": scored})
            run.log_model_input(scored.removeprefix("models:/"))
        elif stage == "register":
            version = f"{facts['model_name']} {facts['version']}"
            run.set_tags({"registered_version": version, "promotion": facts["reason"]})

    def reused(self, stage: str, config: StageConfig, facts: Facts) -> Facts:
        """Says so, and links to the run that did it, whose metrics stay its own: a list by scores has each once."""
        verb = "taken" if self.run else "would be taken"
        say(f"{stage}: {verb} from run {facts['run_id']} of {facts['made']} (force=[{stage}] does it anew)")
        if self.run:
            with stage_run(stage, config, reuses=facts["run_id"]):
                pass
        return facts

    def planned(self, stage: str, config: Any, function: Callable[[Any], Any], wrong: str | None) -> Facts | None:
        """In a dry run prepare makes its rows all the same: what comes next can't be planned without."""
        if wrong:
            say(f"{stage}: would be done anew, as {wrong}")
        if stage == "prepare":
            return {"folder": str(function(config).folder)}
        config.dry_run = True
        if stage in TRAININGS:
            function(config)
        else:
            say(f"{stage}: would be done")
        return None

    def done(self, stage: str, config: Any, function: Callable[[Any], Any], key: str | None, found: Found) -> Facts:
        assert self.run
        if stage not in self.forced and found.damaged and only_waits(found.damaged, self.run().root):
            require_sent(found.damaged)
        if found.wrong:
            say(f"{stage}: done anew, as {found.wrong}")
        if aside := make_room(stage, config, found, stage in self.forced):
            say(f"{stage}: what was there lies in {aside} now")
        if key and stage in TRAININGS:  # what is broken off from here on is found by it
            if not config.output_dir and stage not in self.forced and (folder := interrupted(stage, key)):
                config.output_dir = str(folder)
            self.keys[stage] = key
            let_find(self.run(), self.keys)
        facts = FACTS[stage](function(config), config)
        if aside and stage == "prepare" and content_of(str(aside)) == content_digest(facts["files"]):
            shutil.rmtree(aside)
            say(f"{stage}: the same rows came out, so {aside} was removed")
        if stage == "register":
            facts["content"] = self.known.get(config.model) or content_of(config.model)
        whole = facts.pop("whole", True)
        kept = keep(self.run(), stage, facts)
        if key and whole and stage not in self.keys:
            self.keys[stage] = key
            let_find(self.run(), self.keys)
        return kept


def rows_of(data: DataConfig) -> str:
    """Where they come from, as a tag says it."""
    return ", ".join(f"{source.path} ({name})" if name else str(source.path) for name, source in data.sources.items())


def require_sent(facts: Facts) -> None:
    """ValueError for a training whose model the store hasn't got."""
    if not facts.get("model_uri"):
        raise ValueError(
            f"the model of run {facts['run_id']} couldn't be sent to the tracking store, where the stages that follow "
            f"look for it: `python -m pipelines.sync` sends it; it stands in {facts['folder']} until then"
        )


def of_prepare(result: Any, _: Any) -> Facts:
    return {"run_id": result.run_id, "folder": str(result.folder), "files": checksums(result.folder)}


def of_training(result: Any, _: Any) -> Facts:
    facts = {"run_id": result.run_id, "folder": str(result.model), "files": checksums(result.model)}
    sent = result.model_uri is not None
    costs = costs_of(result.run_id) if sent else {}
    return facts | {"model_uri": result.model_uri, "metrics": result.metrics or {}, "costs": costs, "whole": sent}


def of_pretraining(result: Any, _: Any) -> Facts:
    """What comes next reads its folder: it is of use also where the store has no copy."""
    facts = of_training(result, _)
    return {name: value for name, value in facts.items() if value is not None} | {"whole": True}


def of_evaluation(result: Any, config: Any) -> Facts:
    from modules.evaluation.logged_results import intervals_of, scores_of

    from .results import REPORT

    found = result.evaluations
    perplexities = {who: e["perplexity_per_char"] for who, e in found.items() if "perplexity_per_char" in e}
    try:
        artifacts = artifact_sizes(result.run_id)
    except MlflowException:  # the store is away
        artifacts = {}
    return {
        "run_id": result.run_id,
        "scored": config.model,
        "metrics": scores_of(found["model"]),
        "intervals": intervals_of(found["model"]),
        "scores": {who: metric.value for who, metric in perplexities.items()},
        "rows": len(found["model"].metrics[0].statistics),
        "samples": result.samples[:3],
        "artifacts": artifacts,
        "whole": REPORT in artifacts,
    }


def of_registration(result: Any, config: Any) -> Facts:
    return {
        "run_id": result.run_id,
        "model_name": config.model_name,
        "version": result.version,
        "alias": config.alias,
        "holder": holder_of(config.model_name, config.alias),
        "reason": result.promotion.reason,
    }


FACTS: dict[str, Callable[[Any, Any], Facts]] = {
    "prepare": of_prepare,
    "pretrain": of_pretraining,
    "finetune": of_training,
    "evaluate": of_evaluation,
    "register": of_registration,
}
"""Stage → what is kept of its result."""
