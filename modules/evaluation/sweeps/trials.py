"""A sweep at work: which trial runs next, in which MLflow run, and what is kept of it."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from ...config.sweeps.command import SweepConfig
from ...config.sweeps.space import arguments_of
from ...system.atomic import remove_folder
from ...tracking.outbox.logged_models import keep_checkpoints
from ...tracking.outbox.store import until_answered
from ...tracking.run_lifecycle import END, set_tags
from ...tracking.tracked_run import TrackedRun
from .confirmation import further_seeds, mark_of
from .early_end import OtherRowsError, require_same_rows
from .folder import log_of, scores_of_rows, trial_folder
from .study import ATTEMPTS, PRECISION, Study
from .trial_outcome import RUN_ID, TRAINED_IN, Outcome
from .workers import Workers

TRIAL = "moyun.trial"
"""Tag of a trial's run: which of the sweep's it is."""

SECONDS = "seconds"

ROWS = "rows"
"""Note of the study: the rows that all trials must have, and whose they are."""


class Trials:
    """Runs a sweep's trials, and after them those that confirm the best."""

    def __init__(self, run: TrackedRun, study: Study, folder: Path, tell: Callable[[Outcome, bool], None]) -> None:
        """tell: called with each trial that has ended, and whether it is the best so far."""
        self.run, self.study, self.folder, self.tell = run, study, folder, tell
        self.config: SweepConfig = study.config
        self.client = MlflowClient()
        self.began, self.before = time.monotonic(), float(study.notes.get(SECONDS, 0.0))
        self.waiting = study.interrupted()
        self.deaths: Counter[str] = Counter()

    # --- the search ---

    def search(self, workers: Workers) -> None:
        """Until the budget is spent or there is nothing else to try. ValueError where no trial was any good."""
        with self.none_left_running(workers):
            while True:
                while len(workers.busy) < self.config.workers and (trial := self.next_trial()):
                    workers.start(self.job(f"{trial.number:03d}", trial) | {"number": trial.number})
                if not workers.busy:
                    break
                self.take_answer(*workers.wait())
        if not self.study.ranked():
            reasons = Counter(one.reason or one.state for one in self.study.outcomes())
            listed = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(5))
            raise ValueError(
                f"no trial came to an end: {listed}. Their logs are in {self.folder / 'logs'}; the same values are "
                "tried again in another output_dir"
            )

    def next_trial(self) -> Outcome | None:
        if self.waiting:
            return self.waiting.pop(0)
        return None if self.spent() else self.study.next_trial()

    def spent(self) -> str | None:
        """Which budget has come to its end."""
        outcomes, limit = self.study.outcomes(), self.study.limit
        if limit is not None and len(outcomes) >= limit:
            return "trials"
        if self.config.tokens and sum(one.facts.get("tokens", 0) for one in outcomes) >= self.config.tokens:
            return "tokens"
        return "minutes" if self.config.minutes and self.seconds() >= 60 * self.config.minutes else None

    def seconds(self) -> float:
        """Of this call and those that were killed."""
        return self.before + time.monotonic() - self.began

    def take_answer(self, job: dict[str, Any], answer: dict[str, Any] | None, seconds: float, died: str) -> None:
        number = int(job["number"])
        self.study.note(SECONDS, self.seconds())
        self.deaths[job["mark"]] += answer is None
        if (answer is None and self.deaths[job["mark"]] < ATTEMPTS) or (answer and "away" in answer):
            self.waiting.append(self.study.outcome(number))
            return
        answer = {"error": died} if answer is None else self.with_same_rows(number, answer)
        reason = answer.get("error") or answer.get("fatal")
        facts = {"seconds": round(seconds, 1), "log": job["log"]}
        facts |= {name: answer[name] for name in ("tokens", "metrics", TRAINED_IN) if name in answer}
        value = None if reason else float(answer["metrics"][self.config.metric])
        if value is not None and value != value:
            value, reason = None, f"{self.config.metric} is NaN"
        outcome = self.study.tell(number, value, facts, reason)
        self.end_run(job["run_id"], outcome)
        if "fatal" in answer:
            raise ValueError(answer["fatal"])
        self.keep_best()
        ranked = self.study.ranked()
        self.tell(outcome, bool(ranked) and ranked[0].number == number)

    def with_same_rows(self, number: int, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, which becomes a fatal one where the rows aren't the other trials'."""
        if rows := answer.get("rows"):
            try:
                require_same_rows(number, rows, self.study.notes.get(ROWS))
            except OtherRowsError as error:
                return {"fatal": str(error)}
            if ROWS not in self.study.notes:
                self.study.note(ROWS, {"of": f"trial {number}", "rows": rows})
        return answer

    def keep_best(self) -> None:
        """Removes the folders of all trials that have ended but the best keep_models; their runs stay in MLflow."""
        if self.config.keep_models < 0:
            return
        kept = {one.number for one in self.study.ranked()[: self.config.keep_models]}
        for one in self.study.outcomes():
            if one.state != "running" and one.number not in kept:
                self.remove(f"{one.number:03d}", one.facts.get(TRAINED_IN, one.run_id))

    def remove(self, mark: str, run_id: str | None) -> None:
        """A trial's folder, and the models of the checkpoints in it: MLflow would rank what nobody has any more."""
        folder = trial_folder(self.folder, mark)
        if not folder.is_dir():
            return
        if run_id:
            until_answered(lambda: keep_checkpoints(self.client, run_id, {"steps": []}))
        remove_folder(folder)

    # --- MLflow ---

    def job(self, mark: str, trial: Outcome, seed: int | None = None) -> dict[str, Any]:
        """What a worker is told."""
        place, log = trial_folder(self.folder, mark), log_of(self.folder, mark)
        log.parent.mkdir(parents=True, exist_ok=True)
        name = trial.name if seed is None else f"{trial.name} seed={seed}"
        run = until_answered(lambda: self.run_of(mark, name))
        if seed is None:
            self.study.keep(trial.number, RUN_ID, run.info.run_id)
        output = f"finetune.output_dir={place / 'finetune'}" if self.config.stage == "main" else f"output_dir={place}"
        arguments = [*self.study.notes.get(PRECISION, []), *arguments_of(self.config, trial.values), output]
        return {
            "mark": mark,
            "name": name,
            "run_id": run.info.run_id,
            "folder": str(self.folder),
            "log": str(log),
            "sweep": dataclasses.asdict(self.config),
            "arguments": arguments if seed is None else [*arguments, f"seed={seed}"],
        }

    def run_of(self, mark: str, name: str) -> Run:
        """The trial's run, nested in the sweep's: that of an earlier attempt, if there was one, else a new one."""
        about, parent = self.run.info, f"{self.run.info.run_id}/{mark}"
        if found := self.client.search_runs([about.experiment_id], f"tags.`{TRIAL}` = '{parent}'"):
            return found[0]
        tags = {MLFLOW_PARENT_RUN_ID: about.run_id, TRIAL: parent}
        return self.client.create_run(about.experiment_id, tags=tags, run_name=name)

    def end_run(self, run_id: str, outcome: Outcome) -> None:
        """What the stage couldn't say in its run: that it was refused, killed or stopped early."""
        if outcome.stopped_at is not None:
            said = f"stopped early at step {outcome.stopped_at}, by pruner={self.config.pruner}"
            until_answered(lambda: set_tags(run_id, {END: said}))
        if outcome.state == "failed":
            until_answered(lambda: self.end_if_running(run_id, "FAILED", f"failed: {outcome.reason}"))

    @contextmanager
    def none_left_running(self, workers: Workers) -> Iterator[None]:
        """Whatever ends the block: trials that are at work write a checkpoint and end, and so do their runs."""
        try:
            yield
        except BaseException:
            jobs = [worker.job for worker in workers.busy if worker.job]
            workers.stop()
            with suppress(Exception):  # or the store's silence would hide what has happened
                self.study.note(SECONDS, self.seconds())
                for job in jobs:
                    self.end_if_running(job["run_id"], "KILLED", "ended with its sweep")
            raise

    def end_if_running(self, run_id: str, status: str, reason: str) -> None:
        if RunStatus.from_string(self.client.get_run(run_id).info.status) == RunStatus.RUNNING:
            set_tags(run_id, {END: reason})
            self.client.set_terminated(run_id, status)

    # --- whether the best is better ---

    def confirm(self, workers: Workers) -> None:
        """Trains the best trial and the next with further seeds, as many as are wanted."""
        pair = self.study.ranked()[:2]
        seeds = further_seeds(self.config) if len(pair) == 2 else []
        entries = [(mark_of(trial, seed), trial, seed) for seed in seeds for trial in pair]
        todo = [entry for entry in entries if entry[0] not in self.study.notes]
        with self.none_left_running(workers):
            while todo or workers.busy:
                while todo and len(workers.busy) < self.config.workers:
                    mark, trial, seed = todo.pop(0)
                    scores = {"scores": str(scores_of_rows(self.folder, mark))}
                    workers.start(self.job(mark, trial, seed) | scores)
                job, answer, _, died = workers.wait()
                if answer and "away" in answer:
                    todo.insert(0, next(entry for entry in entries if entry[0] == job["mark"]))
                    continue
                answer = answer or {"error": died}
                self.study.note(job["mark"], {"value": answer.get("metrics", {}).get(self.config.metric)} | answer)
                self.remove(job["mark"], answer.get(TRAINED_IN, job["run_id"]))
                if error := answer.get("error"):
                    reason = f"failed: {error}"
                    until_answered(partial(self.end_if_running, job["run_id"], "FAILED", reason))
