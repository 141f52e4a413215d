"""A sweep at work, with processes that only pretend: what is counted, what ends it, and what stays on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from modules.config.loader import load_config
from modules.config.sweeps.space import read_space
from modules.evaluation.sweeps.early_end import OtherRowsError, require_same_rows
from modules.evaluation.sweeps.folder import claimed_sweep
from modules.evaluation.sweeps.study import Study
from modules.evaluation.sweeps.sweep_result import PAGE, is_done, log_sweep, result_of
from modules.evaluation.sweeps.trial_outcome import Outcome
from modules.evaluation.sweeps.trials import Trials
from modules.tracking.outbox.logged_models import new_checkpoint
from modules.tracking.stage_run import stage_run

SPACE = ["train.init_from=models/poems", "space.train.learning_rate=1e-2,1e-3,1e-4,1e-5", "output_dir=out",
         "confirm_seeds=0", "tracking.log_system_metrics=false", "tracking.log_model=false"]  # fmt: skip
Answer = Callable[[dict[str, Any]], Any]


class PretendedWorkers:
    """Does a job at once, when it is asked for its answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.jobs, self.done = answer, list[Any](), list[Any]()

    @property
    def busy(self) -> list[Any]:
        return self.jobs

    def start(self, job: dict[str, Any]) -> None:
        (Path(job["folder"]) / "trials" / job["mark"] / "model").mkdir(parents=True, exist_ok=True)
        self.jobs.append(job)

    def wait(self) -> tuple[dict[str, Any], Any, float, str]:
        job = self.jobs.pop(0)
        self.done.append(job)
        return job, self.answer(job), 1.0, "its process was killed (signal 9)"

    def stop(self) -> None:
        """There is no process."""


def losses(**by_rate: Any) -> Answer:
    """An answer by the learning rate: a loss, or what else is said."""

    def answer(job: dict[str, Any]) -> Any:
        rate = next(word for word in job["arguments"] if word.startswith("train.learning_rate=")).partition("=")[2]
        found = by_rate.get(f"r{rate.partition('-')[2]}", 5.0)
        return (
            {"metrics": {"val/loss": found}, "tokens": 100, "rows": {"train": "a"}}
            if isinstance(found, float)
            else found
        )

    return answer


@contextmanager
def begun(answer: Answer, *arguments: str) -> Iterator[tuple[Trials, PretendedWorkers, list[Outcome]]]:
    config = load_config("sweep", [*SPACE, *arguments])
    told: list[Outcome] = []
    with claimed_sweep(config) as folder:
        study = Study(folder, config, read_space(config))
        with stage_run("sweep", config, study.notes.get("run_id")) as run:
            study.note("run_id", run.info.run_id)
            yield Trials(run, study, folder, lambda one, best: told.append(one)), PretendedWorkers(answer), told


def runs() -> dict[str, Any]:
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return {run.info.run_name: run for run in found}


def test_failures_are_counted_and_the_best_folder_alone_stays(store: Path) -> None:
    answers = losses(r2={"error": "the loss is nan at step 3"}, r3=3.0, r4=2.0, r5=4.0)
    with begun(answers) as (trials, workers, told):
        trials.search(workers)  # type: ignore[arg-type]
        result = log_sweep(trials.run, trials.study, trials.folder)
    assert [(one.state, one.value) for one in told] == [
        ("failed", None),
        ("finished", 3.0),
        ("finished", 2.0),
        ("finished", 4.0),
    ]
    assert result.counts == {"finished": 3, "stopped": 0, "failed": 1}
    assert [path.name for path in (store / "out" / "trials").iterdir()] == ["002"]
    found = runs()
    failed, parent = found["lr=1e-2"], MlflowClient().get_run(trials.run.info.run_id)
    assert (failed.info.status, failed.data.tags["end"]) == ("FAILED", "failed: the loss is nan at step 3")
    assert failed.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params["best.train.learning_rate"] == "1e-4"
    assert parent.data.tags["best_trial"].startswith("2: lr=1e-4, val/loss 2, run ")
    assert {name: parent.data.metrics[name] for name in ("val/loss", "trials/finished", "trials/failed")} == {
        "val/loss": 2.0, "trials/finished": 3, "trials/failed": 1,
    }  # fmt: skip
    assert "train.learning_rate=1e-4" in result.command
    page = (store / "out" / PAGE).read_text(encoding="utf-8")
    assert "the loss is nan at step 3" in page
    assert page.count("<svg") == 3  # trials, response, parallel coordinates


def test_where_all_fail_the_sweep_does_and_says_why(store: Path) -> None:
    failing = {"r3": {"error": "out of memory"}, "r4": {"error": "out of memory"}, "r5": {"error": "out of memory"}}
    with (
        pytest.raises(ValueError, match="no trial came to an end: 3 × out of memory; 1 × nan"),
        begun(losses(r2={"error": "nan"}, **failing)) as (trials, workers, _),
    ):
        trials.search(workers)  # type: ignore[arg-type]
    assert runs()["lr=1e-2"].info.status == "FAILED"


def test_a_nan_is_no_score(store: Path) -> None:
    with begun(losses(r2=float("nan"), r3=3.0)) as (trials, workers, _):
        trials.search(workers)  # type: ignore[arg-type]
        assert trials.study.outcomes()[0].reason == "val/loss is NaN"
        assert trials.study.ranked()[0].values == {"train.learning_rate": "1e-3"}


def test_a_metric_that_there_isnt_ends_the_sweep_at_once(store: Path) -> None:
    with (
        pytest.raises(ValueError, match="metric=val/x isn't measured"),
        begun(lambda job: {"fatal": "metric=val/x isn't measured; there are val/loss"}) as (trials, workers, _),
    ):
        trials.search(workers)  # type: ignore[arg-type]
    assert len(workers.done) == 1


def test_a_trial_whose_process_dies_goes_on_once_in_the_same_run(store: Path) -> None:
    def answer(job: dict[str, Any]) -> Any:
        dies = job["mark"] == "001" or (job["mark"] == "000" and workers.done.count(job) == 1)
        return None if dies else losses()(job)

    with begun(answer) as (trials, workers, told):
        trials.search(workers)  # type: ignore[arg-type]
    assert [job["mark"] for job in workers.done] == ["000", "000", "001", "001", "002", "003"]
    assert {one.number: one.state for one in told} == {0: "finished", 1: "failed", 2: "finished", 3: "finished"}
    assert "killed (signal 9)" in str(trials.study.outcomes()[1].reason)
    assert len(mlflow.search_runs(search_all_experiments=True)) == 5


@pytest.mark.parametrize(
    ("budget", "trials_run"), [("tokens=150", 2), ("tokens=100", 1), ("trials=3", 3), ("minutes=1e-9", 0)]
)
def test_no_trial_starts_when_the_budget_is_spent(store: Path, budget: str, trials_run: int) -> None:
    with begun(losses(), budget) as (trials, workers, _):
        try:
            trials.search(workers)  # type: ignore[arg-type]
        except ValueError:
            assert trials_run == 0
    assert len(workers.done) == trials_run


def test_the_same_command_goes_on_and_more_trials_are_the_same_sweep(store: Path) -> None:
    with begun(losses(r3=3.0), "trials=2") as (trials, workers, _):
        trials.search(workers)  # type: ignore[arg-type]
        log_sweep(trials.run, trials.study, trials.folder)
        assert is_done(trials.study)
    with begun(losses(r4=1.0), "trials=4") as (trials, workers, _):
        assert not is_done(trials.study)
        trials.search(workers)  # type: ignore[arg-type]
        result = log_sweep(trials.run, trials.study, trials.folder)
    assert [job["mark"] for job in workers.done] == ["002", "003"]
    assert result == result_of(trials.study, trials.folder)
    parent = MlflowClient().get_run(trials.run.info.run_id)
    assert parent.data.params["best.train.learning_rate"] == "1e-3"
    assert parent.data.params["best_of_4.train.learning_rate"] == parent.data.tags["best.train.learning_rate"] == "1e-4"
    assert parent.data.metrics["val/loss"] == 1.0
    assert len(mlflow.search_runs(search_all_experiments=True)) == 5


def test_a_trial_on_rows_that_have_changed_meanwhile_fails_and_takes_nothing_from_the_best(store: Path) -> None:
    with begun(losses(), "trials=1") as (trials, workers, _):
        trials.search(workers)  # type: ignore[arg-type]
    other = {"metrics": {"val/loss": 1.0}, "tokens": 1, "rows": {"training rows": "b"}}
    with (
        pytest.raises(ValueError, match="the rows of trial 1 aren't those of trial 0: its training rows differ"),
        begun(lambda job: other, "trials=2") as (trials, workers, _),
    ):
        trials.search(workers)  # type: ignore[arg-type]
    assert (store / "out" / "trials" / "000").is_dir()
    with begun(losses(), "trials=2") as (trials, workers, _):
        trials.search(workers)  # type: ignore[arg-type]
        assert workers.done == []  # the budget is spent
        assert [(one.number, one.value) for one in trials.study.ranked()] == [(0, 5.0)]
    assert (store / "out" / "trials" / "000").is_dir()


def test_rows_that_arent_the_sweeps_end_a_trial_before_it_is_trained(tmp_path: Path) -> None:
    expected = {"of": "trial 0", "rows": {"validation rows": "a", "tokenizer": "t"}}
    require_same_rows(1, {"validation rows": "a", "tokenizer": "t"}, expected)
    with pytest.raises(
        OtherRowsError, match=r"rows of trial 1 aren't those of trial 0: its tokenizer differ.*per_char"
    ):
        require_same_rows(1, {"validation rows": "a", "tokenizer": "u"}, expected)


def test_a_trial_that_failed_because_the_store_was_away_is_begun_again(store: Path) -> None:
    def answer(job: dict[str, Any]) -> Any:
        return {"away": "the tracking store can't be used"} if len(workers.done) < 3 else losses()(job)

    with begun(answer, "trials=2") as (trials, workers, told):
        trials.search(workers)  # type: ignore[arg-type]
    assert {one.number: one.state for one in told} == {0: "finished", 1: "finished"}
    assert len(mlflow.search_runs(search_all_experiments=True)) == 3


def test_a_store_that_is_away_between_trials_is_waited_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with begun(losses(), "trials=2") as (trials, workers, told):
        search_runs, calls, waited = trials.client.search_runs, list[Any](), list[float]()

        def away(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) in (2, 3):
                raise MlflowException("Max retries exceeded (Connection refused)")
            return search_runs(*arguments)

        monkeypatch.setattr(trials.client, "search_runs", away)
        monkeypatch.setattr("modules.tracking.outbox.store.sleep", waited.append)
        trials.search(workers)  # type: ignore[arg-type]
    assert [one.state for one in told] == ["finished"] * 2
    assert waited == [1.0, 2.0]


def test_checkpoints_that_are_gone_are_no_models_any_more(store: Path) -> None:
    def answer(job: dict[str, Any]) -> Any:
        client = MlflowClient()
        new_checkpoint(client, client.get_run(job["run_id"]), 4, "nowhere")
        return losses(r2=3.0, r3=2.0, r4=4.0)(job)

    with begun(answer, "trials=3") as (trials, workers, _):
        trials.search(workers)  # type: ignore[arg-type]
        experiment = trials.run.info.experiment_id
        best = trials.study.ranked()[0]
    (left,) = mlflow.search_logged_models(experiment_ids=[experiment], output_format="list")
    assert (best.number, left.source_run_id) == (1, best.run_id)


def test_a_trial_of_main_writes_finetunes_folder_alone_to_its_own(store: Path) -> None:
    """What comes before is the same in many trials, and made once."""
    arguments = ["stage=main", "from_scratch=true", "space.finetune.train.learning_rate=1e-3,1e-4", "output_dir=out"]
    config = load_config("sweep", [*arguments, "tracking.log_system_metrics=false"])
    with claimed_sweep(config) as folder, stage_run("sweep", config) as run:
        study = Study(folder, config, read_space(config))
        job = Trials(run, study, folder, lambda one, best: None).job("000", study.next_trial())  # type: ignore[arg-type]
    assert [word for word in job["arguments"] if "output_dir" in word] == [
        "finetune.output_dir=out/trials/000/finetune"
    ]
