"""Stages of main aren't done twice: what is the same, whole and still there is used again, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import Mock

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.utils.file_utils import local_file_uri_to_path

from modules.config.commands import STAGES_OF_MAIN, SyncConfig
from modules.config.loader import load_config
from modules.tracking.outbox.delivery import Delivery
from modules.tracking.outbox.spool import Record
from modules.tracking.provenance import REUSED_FROM
from modules.tracking.registry import resolve_model
from modules.tracking.reuse.stage_cache import KEYS
from modules.training.checkpoints.run_manifest import RunManifest
from modules.training.checkpoints.run_manifest import read_run_manifest as read_if_there
from pipelines.main import main
from pipelines.prepare import prepare
from pipelines.pretrain import pretrain
from pipelines.sync import sync
from tests.helpers.models import ROOT
from tests.tracking.outbox.test_full_disk import small_training

ARGUMENTS = [
    "from_scratch=true", "prepare.source=rows.jsonl.gz", "prepare.output_dir=prepared",
    "prepare.validation_fraction=0.1", "prepare.test_fraction=0.1", "tracking.log_system_metrics=false",
    "model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2",
    "model.max_position_embeddings=128", "pretrain.data.sequence_length=128",
    *(f"{stage}.train.max_steps=2" for stage in ("pretrain", "finetune")),
    *(f"{stage}.train.validate_every_n_steps=2" for stage in ("pretrain", "finetune")),
    *(f"{stage}.generation.max_new_tokens=4" for stage in ("pretrain", "finetune", "evaluate")),
    "finetune.train.sample_prompts=[]", "evaluate.prompts=[春风]",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("main")
    shutil.copy(empty_store, folder / "mlflow.db")
    shutil.copy(ROOT / "data" / "poems-300.jsonl.gz", folder / "rows.jsonl.gz")
    return folder


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a `main` has been through, the same for all tests here: each leaves it whole."""
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    if not (folder / "outputs").exists():
        main(load_config("main", ARGUMENTS))
    yield folder
    while mlflow.active_run():
        mlflow.end_run()


def runs(filter_string: str = "", view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = MlflowClient()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, filter_string, view, order_by=["attributes.start_time DESC"]))


def done_by(*arguments: str) -> list[str]:
    """Runs main; the stages that it did itself."""
    before = {run.info.run_id for run in runs(view=ViewType.ALL)}
    main(load_config("main", [*ARGUMENTS, *arguments]))
    new = [run for run in runs() if run.info.run_id not in before and run.data.tags["stage"] != "main"]
    stages = {run.data.tags["stage"] for run in new if REUSED_FROM not in run.data.tags}
    return [stage for stage in STAGES_OF_MAIN if stage in stages]


def original(stage: str) -> Run:
    """The newest run of a stage that isn't one that only links to another."""
    return next(run for run in runs(f"tags.stage = '{stage}'") if REUSED_FROM not in run.data.tags)


def test_the_same_again_does_nothing_and_shows_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals = {stage: original(stage) for stage in STAGES_OF_MAIN}
    capsys.readouterr()
    assert done_by("force=[register]") == ["register"]
    first = capsys.readouterr().out.partition("Perplexity per character")[2]
    assert done_by() == []
    said = capsys.readouterr().out
    assert said.partition("Perplexity per character")[2] == first
    assert "白日依山尽" not in first.partition("Registered")[0]
    assert "春风" in first
    for stage, run in originals.items():
        if stage != "register":
            assert f"{stage}: taken from run {run.info.run_id} of 20" in said
        link = runs(f"tags.stage = '{stage}'")[0]
        assert link.data.tags[REUSED_FROM] == original(stage).info.run_id
        assert link.data.tags["mlflow.parentRunId"] == runs("tags.stage = 'main'")[0].info.run_id
        assert not link.data.metrics
        assert link.info.run_name.endswith(" (reused)")
        assert f"- was done already by run: {link.data.tags[REUSED_FROM]}" in link.data.tags["mlflow.note.content"]


def test_the_run_of_the_whole_says_how_good_the_model_is_from_what_and_at_what_cost(place: Path) -> None:
    done_by()
    whole = MlflowClient().get_run(runs("tags.stage = 'main'")[0].info.run_id)
    tuned, scored, started = (original(stage).data.metrics for stage in ("finetune", "evaluate", "pretrain"))
    names = ("test/perplexity_per_char", "test/perplexity_per_char_low", "test/perplexity_per_char_high")
    metrics = whole.data.metrics
    assert [metrics[name] for name in names] == [scored[name] for name in names]
    assert metrics["val/loss"] == tuned["val/loss"]
    for cost in ("cost/tokens", "cost/seconds", "cost/flops"):
        assert metrics[cost] == pytest.approx(tuned[cost] + started[cost]), cost
    assert metrics["cost/parameters"] == tuned["cost/parameters"]
    (model,) = whole.inputs.model_inputs
    assert whole.data.tags["model"] == f"models:/{model.model_id}"
    assert MlflowClient().get_logged_model(model.model_id).source_run_id == original("finetune").info.run_id
    note = whole.data.tags["mlflow.note.content"]
    for line in (
        f"- from the model: `outputs/pretrain-{original('pretrain').info.run_id}/model`",
        "- rows: `prepared`",
        f"- model: `models:/{model.model_id}`",
        "- version: moyun ",
        f"| {names[0]} | {metrics[names[0]]:.4g} | {metrics[names[1]]:.4g} – {metrics[names[2]]:.4g} |",
    ):
        assert line in note


def read_run_manifest(checkpoints: Path) -> RunManifest:
    found = read_if_there(checkpoints)
    assert found
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def model_of(stage: str) -> Path:
    return Path("outputs") / f"{stage}-{original(stage).info.run_id}" / "model"


def artifact(stage: str, name: str) -> Path:
    return Path(local_file_uri_to_path(original(stage).info.artifact_uri), name)


DAMAGES: dict[str, tuple[list[Callable[[], object]], dict[str, str]]] = {
    "something of each": (
        [
            lambda: flip(Path("prepared/train.jsonl.gz")),
            lambda: (model_of("finetune") / "tokenizer.json").unlink(),
            lambda: artifact("evaluate", "report.html").unlink(),
            lambda: MlflowClient().delete_registered_model_alias("moyun", "champion"),
        ],
        {
            "prepare": "prepared/train.jsonl.gz has other content",
            "finetune": "tokenizer.json is gone",
            "evaluate": "its artifact report.html is gone",
            "register": "champion was with version 1, and is with None",
        },
    ),
    "files": (
        [
            lambda: Path("prepared/test.jsonl.gz").unlink(),
            lambda: flip(model_of("pretrain") / "model.safetensors"),
            lambda: artifact("evaluate", "samples.json").write_text("{"),
        ],
        {
            "prepare": "prepared/test.jsonl.gz is gone",
            "pretrain": "model.safetensors has other content",
            "evaluate": "its artifact samples.json has another length",
        },
    ),
    "folders": (
        [lambda: shutil.rmtree("prepared"), lambda: shutil.rmtree("outputs")],
        {"prepare": "prepared is gone", "pretrain": "model is gone", "finetune": "model is gone"},
    ),
    "a run and a version": (
        [
            lambda: MlflowClient().delete_run(original("finetune").info.run_id),
            lambda: MlflowClient().delete_model_version("moyun", original("register").data.tags["registered_version"]),
        ],
        {"finetune": "was deleted", "register": "not found"},
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_anew_and_said_why(
    place: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harms, reasons = DAMAGES[damage]
    for harm in harms:
        harm()
    capsys.readouterr()
    assert done_by() == list(reasons)
    said = capsys.readouterr().out.splitlines()
    for stage, reason in reasons.items():
        assert any(line.startswith(f"{stage}: done anew, as ") and reason in line for line in said), stage


def test_a_damaged_model_in_the_store_is_passed_over(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done_by()
    before = original("finetune").info.run_id
    assert done_by("force=finetune") == ["finetune"]
    tuned = original("finetune").info  # no version's: a version's damaged files would be compared with
    found = MlflowClient().search_logged_models([tuned.experiment_id], f"source_run_id = '{tuned.run_id}'")
    (folder,) = [resolve_model(model.model_uri) for model in found if model.name == "model"]  # not its checkpoints
    flip(folder / "model.safetensors")
    capsys.readouterr()
    assert done_by() == []
    assert f"finetune: taken from run {before}" in capsys.readouterr().out
    for run in runs("tags.stage = 'finetune'"):
        if run.info.run_id != tuned.run_id:
            MlflowClient().delete_run(run.info.run_id)
    assert done_by() == ["finetune"]
    assert "has other content in the store" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "stages"),
    [
        ("finetune.train.learning_rate=2e-3", ["finetune", "evaluate", "register"]),
        ("evaluate.generation.seed=8", ["evaluate"]),
        ("register.level=0.01", ["register"]),
        ("finetune.trainer.progress_bar=false", []),
        ("tracking.flush_timeout=50", []),
    ],
)
def test_only_what_has_to_be_is_done_anew(place: Path, argument: str, stages: list[str]) -> None:
    name = argument.partition("=")[0] if "register" in stages else "moyun"  # the others' champion stays
    assert done_by(argument, f"model_name={name}") == stages


def test_a_damaged_data_folder_is_kept_under_another_name(place: Path) -> None:
    Path("prepared/train.jsonl.gz").write_text("what somebody wrote into it")
    done_by()
    kept = {path.read_bytes() for path in place.glob("damaged.prepared*/train.jsonl.gz")}
    assert b"what somebody wrote into it" in kept


def test_a_training_that_was_broken_off_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["finetune.train.learning_rate=3e-3", "model_name=resumed"]
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.train.finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            done_by(*arguments)
    broken_off = original("finetune").info.run_id
    done_by(*arguments)
    assert original("finetune").info.run_id == broken_off
    assert original("finetune").info.status == "FINISHED"
    assert done_by(*arguments) == []


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """A block in which the store takes no model of a stage."""

    @contextmanager
    def away(stage: str) -> Iterator[None]:
        real = Delivery.send_model

        def send(delivery: Delivery, record: Record) -> None:
            if MlflowClient().get_run(delivery.run_id).data.tags["stage"] == stage:
                raise ConnectionError("away")
            real(delivery, record)

        with monkeypatch.context() as patched:
            patched.setattr(Delivery, "send_model", send)
            yield

    return away


def test_a_training_whose_model_was_not_sent_is_taken_once_it_is(
    place: Path, outage: Callable[[str], AbstractContextManager[None]]
) -> None:
    arguments = ["finetune.train.learning_rate=4e-3", "model_name=unsent", "tracking.flush_timeout=5"]
    with outage("finetune"), pytest.raises(ValueError, match=r"couldn't be sent to the tracking store, .*\.sync`"):
        done_by(*arguments)
    trained = original("finetune").info.run_id
    with outage("finetune"), pytest.raises(ValueError, match=rf"the model of run {trained} couldn't be sent"):
        done_by(*arguments)
    assert original("finetune").info.run_id == trained  # another would take as long again, and leave that one
    sync(SyncConfig())
    assert done_by(*arguments) == ["evaluate", "register"]
    whole = runs("tags.stage = 'main'")[0].data
    assert MlflowClient().get_logged_model(whole.tags["model"].removeprefix("models:/")).source_run_id == trained
    assert whole.metrics["val/loss"] == original("finetune").data.metrics["val/loss"]
    assert whole.metrics["cost/tokens"] > original("finetune").data.metrics["cost/tokens"]


def test_a_training_whose_unsent_model_is_gone_is_done_anew(
    place: Path, outage: Callable[[str], AbstractContextManager[None]]
) -> None:
    arguments = ["finetune.train.learning_rate=5e-3", "model_name=lost", "tracking.flush_timeout=5"]
    with outage("finetune"), pytest.raises(ValueError, match="couldn't be sent"):
        done_by(*arguments)
    shutil.rmtree(model_of("finetune"))
    assert done_by(*arguments) == ["finetune", "evaluate", "register"]


def test_a_pretraining_is_taken_from_its_folder_where_the_store_has_no_copy(
    place: Path, outage: Callable[[str], AbstractContextManager[None]]
) -> None:
    arguments = ["pretrain.train.learning_rate=4e-3", "model_name=unsent_start"]
    without_copy = "pretrain.tracking.log_model=false"
    assert done_by(*arguments, without_copy)[0] == "pretrain"
    assert done_by(*arguments, without_copy) == []
    arguments[0] = "pretrain.train.learning_rate=5e-3"
    with outage("pretrain"):
        assert done_by(*arguments, "tracking.flush_timeout=5")[0] == "pretrain"
    with pytest.raises(ValueError, match="couldn't be sent"):
        done_by(*arguments)
    sync(SyncConfig())
    assert done_by(*arguments) == []


def test_what_other_code_made_is_made_anew_also_where_its_folder_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune.output_dir=tuned", "model_name=folder", "register.level=0.02"]
    assert done_by(*arguments) == ["finetune", "register"]  # the same weights as the other tests' model, so no evaluate
    first = original("finetune").info.run_id
    with monkeypatch.context() as patched:
        patched.setattr("modules.tracking.reuse.stage_key.code_digest", lambda script: f"other code of {script.name}")
        capsys.readouterr()
        assert done_by(*arguments) == list(STAGES_OF_MAIN)
        said = capsys.readouterr().out
    assert "finetune: what was there lies in earlier.tuned now" in said
    assert read_run_manifest(Path("earlier.tuned/checkpoints")).run_id == first
    assert read_run_manifest(Path("tuned/checkpoints")).run_id == original("finetune").info.run_id != first
    assert "prepare: the same rows came out, so earlier.prepared was removed" in said
    assert not Path("earlier.prepared").exists()
    assert done_by(*arguments) == ["prepare", "finetune"]  # of this code again; of the others there is a copy


def test_a_stage_by_itself_takes_what_other_code_made_and_says_so(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "data" / "poems-300.jsonl.gz", store / "own.jsonl.gz")
    own = ["source=own.jsonl.gz", "output_dir=rows", "tracking.log_system_metrics=false"]
    made, trained = prepare(load_config("prepare", own)), pretrain(small_training(store))
    monkeypatch.setattr("modules.tracking.reuse.stage_key.code_digest", lambda _: "other code")
    capsys.readouterr()
    assert prepare(load_config("prepare", own)).manifest == made.manifest
    assert pretrain(small_training(store)).run_id == trained.run_id
    said = capsys.readouterr().out
    for stage, folder in (("prepare", "rows"), ("pretrain", "out")):
        assert f"{stage}: other code or libraries than today's made {folder}; remove it" in said


def test_what_is_forced_moves_aside_what_stands_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["finetune.output_dir=forced", "model_name=folder", "force=[prepare,finetune]"]
    done_by(*arguments)
    written = Path("prepared/manifest.json").stat().st_mtime_ns
    first = original("finetune").info.run_id
    done_by(*arguments)
    assert original("finetune").info.run_id != first
    assert read_run_manifest(Path("earlier.forced/checkpoints")).run_id == first
    assert Path("prepared/manifest.json").stat().st_mtime_ns > written


def test_folders_of_an_older_moyun_are_taken(place: Path) -> None:
    """They don't say by what code they were made."""
    config = load_config("main", [*ARGUMENTS, "finetune.output_dir=older", "model_name=older"])
    main(config)
    for path in (Path("prepared/manifest.json"), Path("older/checkpoints/origin.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        del facts["program"]
        path.write_text(json.dumps(facts), encoding="utf-8")
    before = original("finetune").info.run_id
    MlflowClient().set_tag(runs("tags.stage = 'main'")[0].info.run_id, KEYS, "")
    done_by("finetune.output_dir=older", "model_name=older")
    assert original("finetune").info.run_id == before
    assert not list(place.glob("*.older*"))


def test_scores_and_model_of_the_whole_belong_together_where_equal_weights_were_made_anew(place: Path) -> None:
    done_by()
    first = runs("tags.stage = 'main'")[0]
    assert done_by("force=[finetune]") == ["finetune"]
    again = MlflowClient().get_run(runs("tags.stage = 'main'")[0].info.run_id)
    assert again.data.tags["model"] == first.data.tags["model"]
    (model,) = again.inputs.model_inputs
    scored = MlflowClient().get_logged_model(model.model_id).metrics
    assert "test/perplexity_per_char" in {metric.key for metric in scored}
    MlflowClient().delete_logged_model(model.model_id)
    assert done_by() == ["evaluate"]


def test_a_dry_run_says_what_would_be_used_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(runs(view=ViewType.ALL))
    capsys.readouterr()
    main(load_config("main", [*ARGUMENTS, "dry_run=true"]))
    said = capsys.readouterr().out
    assert [line.partition(":")[0] for line in said.splitlines() if "would be taken from run" in line] == list(
        STAGES_OF_MAIN
    )
    assert len(runs(view=ViewType.ALL)) == count
    main(load_config("main", [*ARGUMENTS, "dry_run=true", "evaluate.generation.seed=99"]))
    assert "evaluate: would be done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("force", "stages"), [("evaluate", ["evaluate"]), ("[prepare,register]", ["prepare", "register"])]
)
def test_what_is_named_is_done_anew(place: Path, force: str, stages: list[str]) -> None:
    assert done_by(f"force={force}") == stages


def test_all_is_done_anew_where_that_is_asked_for(place: Path) -> None:
    assert done_by("force=true", "model_name=forced") == list(STAGES_OF_MAIN)


@pytest.mark.parametrize("given", ["nothing", "[finetune,evalute]"])
def test_what_force_names_must_be_a_stage(given: str) -> None:
    with pytest.raises(ValueError, match=r"must be true, or some of \[prepare, pretrain, finetune, evaluate, register"):
        load_config("main", [f"force={given}"])


@pytest.mark.parametrize(
    ("given", "stages"),
    [("true", set(STAGES_OF_MAIN)), ("false", set()), ("[evaluate, register]", {"evaluate", "register"}),
     ("finetune", {"finetune"}), ("[]", set())],
)  # fmt: skip
def test_force_is_read_as_it_is_typed(given: str, stages: set[str], tmp_path: Path) -> None:
    assert load_config("main", [f"force={given}"]).forced == stages
    (tmp_path / "own.yaml").write_text(f"force: {given}\n", encoding="utf-8")
    assert load_config("main", [f"config={tmp_path / 'own.yaml'}"]).forced == stages
