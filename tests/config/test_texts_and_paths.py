"""~ and impossible paths, model folders that are none, and the key that is meant."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from modules.config.base import model_folder
from modules.config.commands import STAGES
from modules.config.loader import ConfigError, load_config, to_yaml
from modules.config.schema import key_of_path, keys, missing_models

NEEDED = {"register": ["model=m"], "finetune": ["model=tiny"], "convert": ["source=a", "target=b"],
          "prefer": ["train.init_from=m"], "compare": ["one=a", "other=b"],
          "predict": ["source=a.csv", "target=b.csv"]}  # fmt: skip


def load(stage: str, *arguments: str) -> Any:
    return load_config(stage, [*NEEDED.get(stage, []), *arguments])


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def complaints_of(stage: str, *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(stage, *arguments)
    return caught.value.complaints


# --- paths ---

# But for the tokenizer where a model brings its own.
PATHS = [
    (stage, key.name)
    for stage in STAGES
    for key in keys(STAGES[stage])
    if key.holds == "path"
    and (stage, key.name) not in {("main", "finetune.tokenizer.path"), ("prefer", "tokenizer.path")}
]
JUDGED = ["source=judged", "model=m", "judge.rhyme=1"]
LONELY = {"archive": ["source=full"], "train.init_from": ["model=null", "train.learning_rate=1", "train.batch_size=1"]}


def with_path(stage: str, key: str, path: str) -> Any:
    """The stage's configuration with a path at the key, and whatever else that key needs."""
    arguments = [*NEEDED.get(stage, []), *LONELY.get(key.removeprefix("prepare."), []), f"{key}={path}"]
    if stage == "prepare" and (key == "model" or key.startswith("data.")):
        arguments = [*JUDGED, f"{key}={path}"]
    if key == "prepare.archive":
        arguments = ["prepare.source=full", f"{key}={path}"]
    if key == "pretrain.train.init_from":
        arguments += ["pretrain.model=null", "pretrain.train.learning_rate=1", "pretrain.train.batch_size=1"]
    return load_config(stage, arguments)


def test_all_that_is_a_path_is_marked_so() -> None:
    names = {key.rpartition(".")[2] for _, key in PATHS}
    assert names == {
        "spool_dir", "output_dir", "path", "validation_path", "test_path", "cache_dir", "init_from", "resume_from",
        "source", "archive", "target", "adapter", "model", "baseline", "champion", "one", "other",
    }  # fmt: skip


@pytest.mark.parametrize(("stage", "key"), PATHS)
def test_the_home_folder_is_filled_in(stage: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/li")
    assert at(with_path(stage, key, "~/x/~"), key) == "/home/li/x/~"
    assert at(with_path(stage, key, "./~/x"), key) == "./~/x"


@pytest.mark.parametrize(("stage", "key"), PATHS)
def test_what_can_be_no_path_is_refused_with_its_key(stage: str, key: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as caught:
        with_path(stage, key, str(tmp_path / "pipe"))
    (complaint,) = caught.value.complaints
    assert complaint == f"{key}='{tmp_path / 'pipe'}': no regular file but a pipe; save what it gives to a file first"


def test_each_reason_has_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
    server.bind("socket")
    for path, reason in {
        "loop/x": "its links lead in a circle",
        "file/x": "a part of it is a file and no folder",
        "/dev/null/x": "a part of it is a file and no folder",
        "x" * 300: "the name is too long",
        "墨" * 100: "the name is too long",
        "zero": "no regular file but a device",
        "socket": "no regular file but a socket",
        "a\0b": "no path can hold a NUL",
        "file:///tmp/a%20b": "a path is wanted here, without file://: /tmp/a b",
        "$HOME/x": "variables aren't filled in here",
        "${HOME}/x": "variables aren't filled in here",
    }.items():
        (complaint,) = complaints_of("finetune", f"data.test_path={path}")
        assert complaint.startswith("data.test_path='")
        assert f"': {reason}" in complaint
    server.close()


def test_what_stages_share_is_named_once(tmp_path: Path) -> None:
    (complaint,) = complaints_of("main", "tracking.spool_dir=/dev/null/x")
    assert complaint.startswith("tracking.spool_dir=")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///~/m.db", "sqlite:////home/li/m.db"),
        ("~/mlruns", "/home/li/mlruns"),
        ("sqlite:///m~.db", "sqlite:///m~.db"),
        ("http://host/~li", "http://host/~li"),
    ],
)
def test_a_stores_uri_knows_the_home_folder(given: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/li")
    assert load("main", f"tracking.tracking_uri={given}").finetune.tracking.tracking_uri == meant


def test_files_of_keys_are_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("seed: 7\n")
    (tmp_path / "size.yaml").write_text(
        to_yaml(dataclasses.asdict(load("pretrain", "model.hidden_size=24").model)), encoding="utf-8"
    )
    config = load("pretrain", "config=~/mine.yaml", "model=~/size.yaml")
    assert (config.seed, config.model.hidden_size) == (7, 24)


@pytest.mark.parametrize("argument", ["config=", "model=", "task="])
def test_a_file_of_keys_that_is_none_is_refused(argument: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    stage = "evaluate" if argument == "task=" else "pretrain"
    for place, reason in (
        (tmp_path / "pipe.yaml", "pipe.yaml: no regular file but a pipe"),
        (f"{'x' * 300}.yaml", "too long" if argument == "config=" else "no such file or name"),
    ):
        (complaint,) = complaints_of(stage, f"{argument}{place}")
        assert reason in complaint


def test_the_key_of_a_path_is_the_closest(tmp_path: Path) -> None:
    config = load("finetune", f"output_dir={tmp_path}/out", f"data.cache_dir={tmp_path}/out/cache")
    assert key_of_path(config, f"{tmp_path}/out/checkpoints/a") == "output_dir"
    assert key_of_path(config, f"{tmp_path}/out/cache/rows") == "data.cache_dir"
    assert key_of_path(config, f"{tmp_path}/outer") is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train.init_from=nowhere"], "train.init_from=nowhere: no such model folder; a registered model is models:/"),
        (["train.init_from=damo/nlp_gpt3_text-generation_1.3B"], "download it first"),
        (["train.init_from=iic/anything"], "download it first"),
        (["model=tiny", "tokenizer.path=nowhere"], "tokenizer.path=nowhere: no such model folder"),
    ],
)
def test_a_model_folder_that_is_not_there_is_named(arguments: list[str], complaint: str) -> None:
    (found,) = missing_models(load_config("finetune", arguments))
    assert complaint in found


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("finetune", "train.init_from"), ("finetune", "tokenizer.path"), ("evaluate", "model"),
        ("evaluate", "champion"), ("evaluate", "baseline"), ("register", "model"),
    ],
)  # fmt: skip
def test_a_file_is_no_model_folder(stage: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    arguments = ["model=tiny"] if key == "tokenizer.path" else []
    (found, *_) = missing_models(load_config(stage, [*arguments, f"{key}={tmp_path}/rows.jsonl"]))
    assert found.startswith(f"{key}={tmp_path}/rows.jsonl: this is a file; give the model folder")


def test_models_that_may_be_there_are_not_complained_of(tmp_path: Path) -> None:
    for place in (tmp_path, "models/poems", "models:/a@champion", "runs:/1/model"):
        assert not list(missing_models(load("evaluate", f"model={place}")))
    assert not list(missing_models(load("main")))


# --- the key that is meant ---


@pytest.mark.parametrize(
    ("stage", "argument", "complaint"),
    [
        ("finetune", "data=my.csv", "; your own rows are data.path=my.csv"),
        ("main", "finetune.data=rows/my", "; your own rows are finetune.data.path=rows/my"),
        ("finetune", "data=quatrain", "; did you mean quatrains?"),
        ("finetune", "data.path=quatrains", "no such path; data=quatrains is the data set of that name"),
        ("main", "evaluate.data.path=poems", "no such path; evaluate.data=poems is the data set of that name"),
        ("finetune", "model=outputs/a/model", "; a model folder to start from is train.init_from=outputs/a/model"),
        ("pretrain", "train.init_from=base", "no such path; model=base is the size of that name"),
        ("finetune", "max_steps=3", "no such key; did you mean train.max_steps?"),
        ("main", "max_steps=3", "did you mean pretrain.train.max_steps or finetune.train.max_steps?"),
        ("serve", "batch_rows=3", "did you mean limits.batch_rows?"),
        ("generate", "max_tokens=5", "no such key; did you mean generation.max_new_tokens?"),
        ("generate", "seeed=1", "no such key; did you mean generation.seed?"),
        ("generate", r"generation.stop=\n", r"must be list[str], e.g. [a, b]; one alone is generation.stop=[\n]"),
        ("finetune", "data={path: a.jsonl}", "data is a section: set its keys, data.KEY=VALUE"),
        ("evaluate", "task={name: a}", "task is a section: set its keys, task.KEY=VALUE"),
    ],
)
def test_the_key_that_is_meant_is_named(stage: str, argument: str, complaint: str) -> None:
    assert any(complaint in found for found in complaints_of(stage, argument))


def test_generate_takes_samplings_keys_without_their_section() -> None:
    config = load("generate", "temperature=0.5", "seed=1", "--max_new_tokens", "3", "generation.top_k=4")
    found = config.generation
    assert (found.temperature, found.seed, found.max_new_tokens, found.top_k) == (0.5, 1, 3, 4)
    assert "temperature (command line): no such key; did you mean generation.temperature?" in complaints_of(
        "evaluate", "temperature=0.5"
    )


@pytest.mark.parametrize(
    "place",
    [
        "hub/models/damo/nlp_gpt3_text-generation_1.3B", "hub/models/damo/nlp_gpt3_text-generation_1___3B",
        "hub/damo/nlp_gpt3_text-generation_1.3B", "damo/nlp_gpt3_text-generation_1___3B",
        "models/damo/nlp_gpt3_text-generation_1___3B",
        "hub/models--damo--nlp_gpt3_text-generation_1.3B/snapshots/master",
    ],
)  # fmt: skip
def test_what_modelscope_downloaded_is_found_by_its_name(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "damo/nlp_gpt3_text-generation_1.3B"
    for home, variable in ((tmp_path / "cache", str(tmp_path / "cache")), (tmp_path / "~/.cache/modelscope", "")):
        monkeypatch.setenv("HOME", str(tmp_path / "~"))
        monkeypatch.setenv("MODELSCOPE_CACHE", variable)
        assert model_folder(name) == Path(name)
        (complaint,) = missing_models(load_config("finetune", [f"train.init_from={name}"]))
        assert f"train.init_from={name}: no such model folder" in complaint
        assert str(home) in complaint
        assert f"modelscope download --model {name}" in complaint
        (home / place).mkdir(parents=True)
        assert model_folder(name) == home / place
        assert not list(missing_models(load_config("finetune", [f"train.init_from={name}"])))
        assert f"{name} is read from {home / place}" in caplog.text
    (tmp_path / name).mkdir(parents=True)  # one's own comes first
    assert model_folder(name) == Path(name)
