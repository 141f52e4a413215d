"""evaluate and register know the model that they are given: links both ways, one version for the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from modules.checkpoint.loading import open_model
from modules.checkpoint.model_folder import write_model
from modules.checkpoint.weights import CheckpointError
from modules.config.loader import load_config
from modules.data.arrow import fingerprint
from modules.data.rows import load_rows
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from modules.tracking.registry import resolve_model
from modules.tracking.stage_run import stage_run
from pipelines.convert import convert
from pipelines.evaluate import evaluate
from pipelines.pretrain import pretrain
from pipelines.register import RegisterResult, register
from tests.helpers.models import make_config, make_decoder, save_model
from tests.tracking.outbox.test_full_disk import small_training
from tests.tracking.test_tracking import all_runs, quiet

QUIET = ["data.path=null", "data.test_path=rows.jsonl", "tracking.log_system_metrics=false"]


@dataclass
class Trained:
    run_id: str
    folder: Path
    uri: str

    @property
    def model_id(self) -> str:
        return self.uri.removeprefix("models:/")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("known")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield folder
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(place: Path) -> Trained:
    made = pretrain(small_training(place))
    assert made.model
    assert made.model_uri
    return Trained(made.run_id, made.model.resolve(), made.model_uri)


def registered(model: str, name: str, *others: str) -> tuple[RegisterResult, ModelVersion]:
    done = register(load_config("register", [f"model={model}", f"model_name={name}", *QUIET, *others]))
    assert done
    return done, MlflowClient().get_model_version(name, done.version)


def versions(name: str) -> list[str]:
    return sorted(str(version.version) for version in MlflowClient().search_model_versions(f"name = '{name}'"))


def used(run_id: str) -> list[str]:
    return [model.model_id for model in MlflowClient().get_run(run_id).inputs.model_inputs]


def scores(model_id: str, run_id: str) -> dict[str, tuple[str | None, str | None]]:
    """What a run has logged of a model: metric → name and digest of the rows."""
    found = MlflowClient().get_logged_model(model_id).metrics or []
    return {m.key: (m.dataset_name, m.dataset_digest) for m in found if m.run_id == run_id}


def copy_of(trained: Trained, name: str) -> Path:
    return Path(shutil.copytree(trained.folder, Path(name)))


@pytest.mark.parametrize("named", ["folder", "output_dir", "copy", "models:/", "runs:/", "version"])
def test_an_evaluation_is_linked_to_its_model_however_it_is_named(trained: Trained, named: str) -> None:
    if named == "version":
        registered(str(trained.folder), "evaluated")
    model = {
        "folder": str(trained.folder),
        "output_dir": "out",
        "copy": str(copy_of(trained, "copied")) if named == "copy" else "",
        "models:/": trained.uri,
        "runs:/": f"runs:/{trained.run_id}/model",
        "version": "models:/evaluated@champion",
    }[named]
    done = evaluate(load_config("evaluate", [f"model={model}", *QUIET]))
    assert used(done.run_id) == [trained.model_id]
    digest = fingerprint(load_rows(Path("rows.jsonl")))[:32]
    linked = scores(trained.model_id, done.run_id)
    assert linked["test/perplexity_per_char"] == ("rows.jsonl-test", digest)
    assert not [name for name in linked if "floor" in name]
    assert done.run_id in {metric.run_id for metric in MlflowClient().get_logged_model(trained.model_id).metrics}


def test_each_of_several_models_gets_its_own_scores(trained: Trained) -> None:
    checkpoint = next(Path("out/checkpoints").glob("step=*.ckpt"))
    arguments = [f"model={trained.folder}", f"baseline={checkpoint}", *QUIET]
    done = evaluate(load_config("evaluate", arguments))
    (other,) = set(used(done.run_id)) - {trained.model_id}
    assert MlflowClient().get_logged_model(other).tags["checkpoint.path"] == str(checkpoint.resolve())
    assert "test/baseline_perplexity_per_char" in scores(other, done.run_id)
    assert "test/perplexity_per_char" not in scores(other, done.run_id)
    assert "test/baseline_perplexity_per_char" not in scores(trained.model_id, done.run_id)


def test_models_are_ranked_by_a_test_score(trained: Trained, tokenizer: Tokenizer) -> None:
    worse = save_model(Path("random"), make_decoder(make_config(tokenizer.vocab_size)), tokenizer, {})
    _, version = registered(str(worse), "ranked")
    registered(str(trained.folder), "ranked", "alias=other")
    experiments = [run.info.experiment_id for run in all_runs()]
    order = [{"field_name": "metrics.test/perplexity_per_char"}]
    found = [model.model_id for model in MlflowClient().search_logged_models(experiments, order_by=order)]
    assert found.index(trained.model_id) < found.index(version.source.removeprefix("models:/"))


def test_a_folder_that_no_store_knows_is_scored_without_a_link(trained: Trained, tokenizer: Tokenizer) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size), 3)
    folder = save_model(Path("foreign"), decoder, tokenizer, {"run_id": "a" * 32})
    done = evaluate(load_config("evaluate", [f"model={folder}", *QUIET]))
    assert used(done.run_id) == []
    assert "test/perplexity_per_char" in MlflowClient().get_run(done.run_id).data.metrics


def test_a_version_comes_from_the_run_that_trained_it(trained: Trained) -> None:
    """Without a copy of what the store has."""
    before = len(MlflowClient().search_logged_models([run.info.experiment_id for run in all_runs()]))
    copied = str(copy_of(trained, "copied_again"))
    for name, model in (("by_folder", str(trained.folder)), ("by_uri", trained.uri), ("by_copy", copied)):
        done, version = registered(model, name)
        assert (version.run_id, version.source) == (trained.run_id, trained.uri)
        assert used(done.run_id) == [trained.model_id]
        assert "test/perplexity_per_char" in scores(trained.model_id, done.run_id)
    assert len(MlflowClient().search_logged_models([run.info.experiment_id for run in all_runs()])) == before


def test_a_version_of_an_unknown_run_comes_from_the_registration(trained: Trained, tokenizer: Tokenizer) -> None:
    folder = save_model(Path("unknown"), make_decoder(make_config(tokenizer.vocab_size), 4), tokenizer, {})
    done, version = registered(str(folder), "unknown")
    assert version.run_id == done.run_id
    again, same = registered(str(folder), "elsewhere")
    assert (same.source, same.run_id) == (version.source, done.run_id)
    assert used(again.run_id) == [version.source.removeprefix("models:/")]


def test_the_same_weights_make_no_second_version(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    _, first = registered(str(trained.folder), "twice")
    again, second = registered(f"runs:/{trained.run_id}/model", "twice")
    assert (second.version, versions("twice")) == (first.version, ["1"])
    assert again.promotion.reason == "stays with version 1, which has these weights"
    assert again.promotion.promoted
    assert second.tags["promotion"] == first.tags["promotion"]
    assert "twice 1, which has these weights already" in capsys.readouterr().out
    client = MlflowClient()
    client.delete_registered_model_alias("twice", "champion")
    third, version = registered(str(trained.folder), "twice")  # a version without the alias may get it
    assert (third.version, third.promotion.verdict, version.aliases) == ("1", "first", ["champion"])
    client.delete_model_version("twice", "1")
    _, anew = registered(str(trained.folder), "twice")
    assert (str(anew.version), versions("twice")) == ("2", ["2"])


def test_the_same_weights_with_another_template_are_another_model(trained: Trained) -> None:
    _, first = registered(str(trained.folder), "template")
    model, tokenizer = open_model(trained.folder), load_tokenizer(trained.folder).with_prompt_template("{src_txt}。")
    weights = ((name, tensor.read()) for name, tensor in model.weights.items())
    other = write_model(Path("other_template"), model.config, weights, tokenizer, {"run_id": trained.run_id})
    _, second = registered(str(other), "template")
    assert (str(first.version), str(second.version)) == ("1", "2")
    assert second.source != trained.uri
    assert second.run_id == trained.run_id
    assert load_tokenizer(resolve_model("models:/template/2")).prompt_template == "{src_txt}。"


def test_a_checkpoints_uri_leads_to_its_folder(trained: Trained) -> None:
    client = MlflowClient()
    run: Run = client.get_run(trained.run_id)
    (kept,) = client.search_logged_models([run.info.experiment_id], "model_type = 'checkpoint'")
    folder = resolve_model(str(kept.model_uri))
    assert str(folder) == kept.tags["checkpoint.path"]
    assert resolve_model(f"runs:/{trained.run_id}/{kept.name}") == folder
    done = evaluate(load_config("evaluate", [f"model={kept.model_uri}", *QUIET]))
    assert used(done.run_id) == [kept.model_id]
    with pytest.raises(CheckpointError, match=r"pipelines\.convert source=.*\.ckpt"):  # a version holds its weights
        registered(str(kept.model_uri), "from_checkpoint")
    convert(load_config("convert", [f"source={folder}", "target=converted"]))
    _, version = registered("converted", "from_checkpoint")
    assert version.run_id == trained.run_id
    client.set_logged_model_tags(kept.model_id, {"checkpoint.path": "/gone/step=1.ckpt"})
    with pytest.raises(ValueError, match=r"the checkpoint of step \d+ of run \w+, whose weights"):
        resolve_model(str(kept.model_uri))


def test_a_model_that_gc_removed_costs_no_scores(trained: Trained) -> None:
    with stage_run("evaluate", quiet()) as run:
        run.log_model_input("m-" + "0" * 32)
        run.log_metrics({"test/rouge": 0.5}, model_id="m-" + "0" * 32)
    assert MlflowClient().get_run(run.info.run_id).data.metrics == {"test/rouge": 0.5}
    assert used(run.info.run_id) == []
