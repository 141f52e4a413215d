"""A run's models in the store: its kept checkpoints and the saved model, each with its own metrics."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.data.dataset import Dataset
from mlflow.data.huggingface_dataset import from_huggingface
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from modules.config.commands import SyncConfig
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.outbox.delivery import Delivery
from modules.tracking.outbox.logged_models import keep_checkpoints
from modules.tracking.stage_run import stage_run
from modules.tracking.tracked_run import TrackedRun
from pipelines.pretrain import pretrain
from pipelines.sync import sync
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.tracking.outbox.test_full_disk import small_training
from tests.tracking.test_lightning_logger import history
from tests.tracking.test_tracking import all_runs, quiet

LOSSES = {5: 4.0, 10: 3.0, 15: 3.5}
"""Step → validation loss: the checkpoint in the middle is the best."""


def rows() -> Dataset:
    return from_huggingface(datasets.Dataset.from_dict({"src_txt": ["春"]}), name="rows-validation", digest="0123")


def validate(run: TrackedRun, step: int) -> None:
    run.log_metrics({"val/loss": LOSSES[step], "val/perplexity": math.exp(LOSSES[step])}, step)


def train(run: TrackedRun) -> None:
    """What a training run logs that keeps its best checkpoint and its last."""
    run.log_input(rows(), "validation")
    folder = Path("out/checkpoints")
    run.log_metrics({"train/loss": 9.0}, 5)
    for step, kept in ((5, [5]), (10, [10]), (15, [10, 15])):
        validate(run, step)
        run.log_checkpoints(folder, kept)


def models(order: str = "val/loss") -> list[LoggedModel]:
    experiments = [run.info.experiment_id for run in all_runs()]
    found = MlflowClient().search_logged_models(experiments, order_by=[{"field_name": f"metrics.{order}"}])
    return list(found)


def scores(model: LoggedModel) -> dict[str, tuple[int, float, str | None, str | None]]:
    return {m.key: (m.step, m.value, m.dataset_name, m.dataset_digest) for m in model.metrics or ()}


def saved(place: Path, tokenizer: Tokenizer) -> Path:
    return save_model(place, make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})


def outputs(run_id: str) -> dict[str, int]:
    return {output.model_id: output.step for output in MlflowClient().get_run(run_id).outputs.model_outputs}


def expected(step: int) -> dict[str, tuple[int, float, str, str]]:
    loss = LOSSES[step]
    return {
        name: (step, v, "rows-validation", "0123")
        for name, v in (("val/loss", loss), ("val/perplexity", math.exp(loss)))
    }


def test_a_run_has_its_checkpoints_and_its_model_each_with_its_own_metrics(store: Path, tokenizer: Tokenizer) -> None:
    with stage_run("pretrain", quiet()) as run:
        run.log_metrics({"rows/train": 7, "system/cpu": 1.0})  # of step 0: of no model
        train(run)
        uri = run.log_model(saved(store / "model", tokenizer), 10)
    best, same, last = models()
    assert (best.model_uri, best.name, same.name, last.name) == (uri, "model", "checkpoint-10", "checkpoint-15")
    assert [scores(model) for model in (best, same, last)] == [expected(10), expected(10), expected(15)]
    assert outputs(run.info.run_id) == {best.model_id: 10, same.model_id: 10, last.model_id: 15}
    assert {str(model.status) for model in (best, same, last)} == {"READY"}
    assert last.tags["checkpoint.path"] == str(store / "out" / "checkpoints" / "step=15.ckpt")
    assert mlflow.artifacts.list_artifacts(artifact_uri=same.artifact_location) in ([], None)


@pytest.mark.parametrize("sent", [True, False], ids=["model sent", "tracking.log_model=false"])
def test_a_runs_listed_metric_is_the_saved_models_and_its_history_stays(
    store: Path, tokenizer: Tokenizer, sent: bool
) -> None:
    with stage_run("pretrain", quiet()) as run:
        train(run)
        run.log_saved(10)
        if sent:
            run.log_model(saved(store / "model", tokenizer), 10)
    with stage_run("pretrain", quiet()) as other:
        other.log_metrics({"val/loss": 3.2}, 5)
    ranked = MlflowClient().search_runs([run.info.experiment_id], order_by=["metrics.`val/loss`"])
    assert [found.info.run_id for found in ranked] == [run.info.run_id, other.info.run_id]
    assert ranked[0].data.metrics["val/loss"] == 3.0
    assert ranked[0].data.metrics["val/perplexity"] == math.exp(3.0)
    assert history(run.info.run_id, "val/loss") == [(5, 4.0), (10, 3.0), (15, 3.5), (15, 3.0)]
    assert history(run.info.run_id, "train/loss") == [(5, 9.0)]


def test_where_the_last_checkpoint_is_the_saved_one_nothing_is_repeated(store: Path) -> None:
    with stage_run("pretrain", quiet()) as run:
        train(run)
        run.log_saved(15)
    assert history(run.info.run_id, "val/loss") == [(5, 4.0), (10, 3.0), (15, 3.5)]


def test_the_listed_metric_stays_the_saved_models_where_the_run_goes_on(store: Path) -> None:
    """It takes more steps: first the same checkpoint stays the best, then a later one is."""
    listed = []
    with stage_run("pretrain", quiet()) as run:
        train(run)
        run.log_saved(10)
    for step, loss, best in ((20, 3.25, 10), (25, 2.5, 25)):
        with stage_run("pretrain", quiet(), continues=run.info.run_id) as again:
            again.log_metrics({"val/loss": loss}, step)
            again.log_checkpoints(Path("out/checkpoints"), [10, step])
            again.log_saved(best)
        listed.append(MlflowClient().get_run(run.info.run_id).data.metrics["val/loss"])
    assert listed == [3.0, 2.5]
    assert history(run.info.run_id, "val/loss") == [
        *[(5, 4.0), (10, 3.0), (15, 3.5), (15, 3.0)],
        *[(20, 3.25), (20, 3.0), (25, 2.5)],
    ]


def test_a_loss_that_is_no_number_does_not_rank_first(store: Path) -> None:
    """The store would keep NaN as 0."""
    with stage_run("pretrain", quiet()) as run:
        train(run)
        run.log_metrics({"val/loss": math.nan}, 20)
        run.log_checkpoints(Path("out/checkpoints"), [10, 20])
    assert [model.name for model in models()] == ["checkpoint-10", "checkpoint-20"]
    assert scores(models()[1]) == {}
    with stage_run("evaluate", quiet()) as evaluation:
        evaluation.log_metrics({"test/loss": math.nan, "test/rows": 3.0}, model_id=models()[1].model_id)
    assert scores(models()[1]) == {"test/rows": (0, 3.0, None, None)}
    assert math.isnan(history(evaluation.info.run_id, "test/loss")[0][1])


CLIENT_CALLS = ("create_logged_model", "finalize_logged_model", "delete_logged_model", "log_batch", "log_outputs")


@pytest.mark.parametrize("after", [True, False], ids=["answer lost", "not done"])
@pytest.mark.parametrize("call", CLIENT_CALLS)
def test_whatever_call_fails_is_made_good_and_nothing_is_doubled(
    store: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: bool
) -> None:
    with stage_run("pretrain", quiet()) as run:
        for step in LOSSES:
            validate(run, step)
    place: dict[str, Any] = {"folder": "out", "dataset": ("rows-validation", "0123")}
    real: Callable[..., Any] = getattr(MlflowClient, call)
    failures: list[str] = []

    def failing(client: MlflowClient, *arguments: Any, **named: Any) -> Any:
        failures.append(call)
        if len(failures) % 2:  # every other call
            if after:
                real(client, *arguments, **named)
            raise MlflowException("away")
        return real(client, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, failing)
        for kept, ended in (([5], False), ([5, 10], False), ([10, 15], True)):
            for _ in range(6):
                try:
                    keep_checkpoints(MlflowClient(), run.info.run_id, place | {"steps": kept, "ended": ended})
                    break
                except MlflowException:
                    continue
            else:
                raise AssertionError("it never came to an end")
    assert failures
    best, last = models()
    assert [scores(best), scores(last)] == [expected(10), expected(15)]
    assert outputs(run.info.run_id) == {best.model_id: 10, last.model_id: 15}
    assert {str(best.status), str(last.status)} == {"READY"}
    assert history(run.info.run_id, "val/loss") == list(LOSSES.items())


def test_what_waits_is_sent_as_it_is_at_last(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage no model is made of a checkpoint that is gone by then."""
    made: list[str] = []
    real = MlflowClient.create_logged_model
    with stage_run("pretrain", quiet()) as run:
        run.sender.stop()
        run.sender.thread.join()
        train(run)
        delivery = Delivery(run.spool, run.info.run_id, mlflow.get_tracking_uri(), lambda *_: "")

        def noting(client: MlflowClient, *arguments: Any, **named: Any) -> Any:
            made.append(named["name"])
            return real(client, *arguments, **named)

        monkeypatch.setattr(MlflowClient, "create_logged_model", noting)
        while delivery.step():
            pass
    assert made == ["checkpoint-10", "checkpoint-15"]


KILLED = """
import os, signal
from modules.tracking.stage_run import stage_run
from tests.tracking.test_logged_models import train
from tests.tracking.test_tracking import quiet
with stage_run("pretrain", quiet()) as run:
    train(run)
    run.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_runs_checkpoints_stay_its_models(store: Path, tokenizer: Tokenizer) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED], cwd=store, env=environment)
    assert done.returncode == -signal.SIGKILL
    with stage_run("prepare", quiet()):  # which makes this process's store the same
        (run_id,) = [run.info.run_id for run in all_runs() if run.data.tags["stage"] == "pretrain"]
    before = models()
    assert [model.name for model in before] == ["checkpoint-10", "checkpoint-15"]
    assert outputs(run_id) == {}
    sync(SyncConfig())
    assert outputs(run_id) == {before[0].model_id: 10, before[1].model_id: 15}
    with stage_run("pretrain", quiet(), continues=run_id) as again:  # which has no more step to take
        train(again)
        again.log_saved(10)
        again.log_model(saved(store / "model", tokenizer), 10)
    assert [model.name for model in models()] == ["model", "checkpoint-10", "checkpoint-15"]
    assert [model.model_id for model in models()[1:]] == [model.model_id for model in before]
    assert len(outputs(run_id)) == 3
    assert history(run_id, "val/loss") == [(5, 4.0), (10, 3.0), (15, 3.5), (15, 3.0)]


def test_a_training_that_sends_no_model_lists_the_metrics_of_the_one_that_it_saved(store: Path) -> None:
    config = small_training(store)
    config.tracking.log_model = False
    Path("other.jsonl").write_text('{"src_txt": "鸟啼闻处处晓觉不眠春"}\n', encoding="utf-8")
    config.data.validation_path = "other.jsonl"  # backwards: the better a checkpoint knows the rows, the worse
    config.train.learning_rate = 0.05
    done = pretrain(config)
    assert done.metrics
    values = [value for step, value in history(done.run_id, "val/loss") if step == 20]
    assert values[0] > values[1] == done.metrics["val/loss"]
    listed = MlflowClient().get_run(done.run_id).data.metrics
    assert {name: listed[name] for name in done.metrics} == done.metrics
