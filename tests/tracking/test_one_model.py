"""A training run has one model in the store, wherever it was killed while it told of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from modules.config.loader import load_config
from modules.tokenizer.tokenizer import Tokenizer
from modules.tracking.models.exported_model import RECORD
from modules.tracking.outbox.spool import Spool
from modules.tracking.run_selection import find_run
from modules.tracking.stage_run import stage_run
from modules.tracking.tracked_run import TrackedRun
from pipelines.pretrain import pretrain
from pipelines.register import register
from tests.helpers.models import ROOT, make_config, make_decoder, save_model
from tests.tracking.outbox.test_full_disk import small_training
from tests.tracking.test_tracking import all_runs, quiet


def models() -> list[LoggedModel]:
    """Those with weights: checkpoints are models of their own (test_logged_models.py)."""
    found = MlflowClient().search_logged_models([run.info.experiment_id for run in all_runs()])
    return [model for model in found if model.model_type != "checkpoint"]


def saved(place: Path, tokenizer: Tokenizer, seed: int) -> Path:
    return save_model(place, make_decoder(make_config(tokenizer.vocab_size), seed), tokenizer, {})


def test_a_run_that_makes_its_model_anew_has_one(store: Path, tokenizer: Tokenizer) -> None:
    with stage_run("pretrain", quiet()) as run:
        first = run.log_model(saved(store / "first", tokenizer, 1))
    with stage_run("pretrain", quiet(), continues=run.info.run_id) as again:
        same = again.log_model(saved(store / "again", tokenizer, 1))
        assert same == first
        other = again.log_model(saved(store / "other", tokenizer, 2))
    assert other != first
    (found,) = models()
    assert (str(found.model_uri), str(found.status)) == (other, "READY")


def test_a_model_that_a_version_is_made_of_stays(store: Path, tokenizer: Tokenizer) -> None:
    """A version has no copy of the weights: `mlflow gc` would take the champion's."""
    with stage_run("pretrain", quiet()) as run:
        first = run.log_model(saved(store / "first", tokenizer, 1))
    assert first
    MlflowClient().create_registered_model("poems")
    version = MlflowClient().create_model_version("poems", first, model_id=first.removeprefix("models:/"))
    with stage_run("pretrain", quiet(), continues=run.info.run_id) as again:
        second = again.log_model(saved(store / "second", tokenizer, 2))
        third = again.log_model(saved(store / "third", tokenizer, 3))
    assert version.source == first
    assert {str(model.model_uri) for model in models()} == {first, third}
    assert second not in (first, third)


def test_half_an_upload_of_a_killed_process_goes(store: Path, tokenizer: Tokenizer) -> None:
    with stage_run("pretrain", quiet()) as run:
        client, experiment = MlflowClient(), run.info.experiment_id
        client.create_logged_model(experiment, "model", run.info.run_id, tags={RECORD: f"{run.info.run_id}/0"})
        uri = run.log_model(saved(store / "model", tokenizer, 1))
    assert [str(model.model_uri) for model in models()] == [uri]


def test_a_model_that_the_earlier_process_could_not_send_is_not_sent_once_the_run_goes_on(
    store: Path, tokenizer: Tokenizer
) -> None:
    """Training makes it anew; the folder may be half removed by then."""
    with stage_run("pretrain", quiet()) as run:
        pass
    spool = Spool(Path("outputs/tracking") / run.info.run_id)
    spool.append("model", folder=str(saved(store / "model", tokenizer, 1)))
    spool.close()
    again = TrackedRun(find_run(run.info.run_id), Path("outputs/tracking"), 10, goes_on=True)
    assert not again.sender.thread.is_alive()
    again.go_on({}, 0)
    assert again.flush()
    again.end("FINISHED", "finished")
    assert models() == []


KILLED = """
import os, signal, sys
from pathlib import Path
from modules.tracking.outbox.spool import Spool
from modules.tracking.tracked_run import TrackedRun
from pipelines import train
from pipelines.pretrain import pretrain
from pipelines.register import register
from tests.tracking.outbox.test_full_disk import small_training

def killing(function, when=lambda *_: True):
    def wrapped(*arguments, **named):
        result = function(*arguments, **named)
        if when(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

place = sys.argv[1]
if place == "append":
    Spool.append = killing(Spool.append, lambda spool, kind: kind == "model")
elif place == "log_model":
    TrackedRun.log_model = killing(TrackedRun.log_model)
else:
    train.write_model = killing(train.write_model)
pretrain(small_training(Path()))
"""


@pytest.mark.parametrize("place", ["write_model", "append", "log_model"])
def test_a_kill_while_the_model_is_logged_leaves_one_model(store: Path, place: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, place], cwd=store, env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    result = pretrain(small_training(store))
    (found,) = models()
    assert str(found.model_uri) == result.model_uri
    (run,) = all_runs()
    steps = {output.model_id: output.step for output in run.outputs.model_outputs}
    kept = MlflowClient().search_logged_models([run.info.experiment_id], "model_type = 'checkpoint'")
    assert steps.keys() == {found.model_id, *(model.model_id for model in kept)}
    assert steps[found.model_id] == max(steps.values()) == int(kept[0].tags["checkpoint.step"])
    assert {m.key: m.value for m in found.metrics}["val/loss"] == run.data.metrics["val/loss"]
    assert run.info.status == "FINISHED"


def test_a_register_that_was_killed_before_its_end_makes_one_version(
    store: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(store / "model", tokenizer, 1)
    (store / "rows.jsonl").write_text('{"src_txt": "春眠不觉晓"}\n{"src_txt": "处处闻啼鸟"}\n', encoding="utf-8")
    arguments = [f"model={folder}", "data.path=null", "data.test_path=rows.jsonl", "tracking.log_system_metrics=false"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.register.complete_version", killed)
        with pytest.raises(KeyboardInterrupt):
            register(load_config("register", arguments))
    done = register(load_config("register", arguments))
    assert done
    assert done.version == "1"
    client = MlflowClient()
    assert [str(version.version) for version in client.search_model_versions("name = 'moyun'")] == ["1"]
    assert client.get_model_version_by_alias("moyun", "champion").tags["moyun.complete"] == "true"
    again = register(load_config("register", arguments))
    assert again
    assert again.version == "1"
