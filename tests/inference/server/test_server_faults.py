"""A model that isn't what was saved is neither served nor registered nor loaded; a sound one always is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
import torch
from mlflow.pyfunc.scoring_server import invocations
from safetensors.torch import load_file, save_file

from modules.checkpoint.weights import CheckpointError
from modules.config.loader import load_config
from modules.inference.server.lifecycle import Lifecycle
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from modules.tracking.models.exported_model import log_model
from modules.tracking.stage_run import connect
from pipelines.register import register
from tests.helpers.models import make_config, make_decoder, save_model
from tests.helpers.server_tools import address_in, process


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    decoder = make_decoder(make_config(tokenizer.vocab_size, max_position_embeddings=2000))
    return save_model(folder, decoder, tokenizer.with_prompt_template("问：{src_txt}\n"), {})


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "model")


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def change_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    first, second = [token for token in vocab if len(token) == 1][-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def change_the_end_of_text(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"end_of_text": "。"}, ensure_ascii=False), encoding="utf-8")


def change_the_prompt(folder: Path) -> None:
    load_tokenizer(folder).with_prompt_template("问：{src_txt}").save(folder)


def change_the_number_format(folder: Path) -> None:
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FAULTS = [flip_a_byte, change_the_tokenizer, change_the_end_of_text, change_the_prompt, change_the_number_format]


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_changed_model_is_not_served(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    config = load_config("serve", [f"model={folder}", "port=0"])
    with pytest.raises(CheckpointError, match=f"{folder}: .*differs") as caught:
        Lifecycle(config, folder, "x").run(lambda address: pytest.fail("it says that it is ready"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_changed_model_is_not_registered(folder: Path, store: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=f"{folder}: .*differs"):
        register(load_config("register", [f"model={folder}", "tracking.log_system_metrics=false"]))


@pytest.fixture(scope="module")
def logged(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as the registry hands it out."""
    place = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        connect(folder=place)
        with mlflow.start_run(experiment_id="0"):  # not the one that an earlier test made active
            uri = log_model(saved)
        return Path(mlflow.artifacts.download_artifacts(uri))


def test_a_changed_model_is_not_loaded_from_the_registry(logged: Path, tmp_path: Path) -> None:
    for damage in (None, *FAULTS):
        copy = shutil.copytree(logged, tmp_path / (damage.__name__ if damage else "sound"))
        (model,) = copy.glob("artifacts/*/model.yaml")
        if damage is None:
            assert len(mlflow.pyfunc.load_model(str(copy)).predict("春", params={"max_new_tokens": 1})) == 1
            continue
        damage(model.parent)
        with pytest.raises(CheckpointError, match="differs"):
            mlflow.pyfunc.load_model(str(copy))


@pytest.mark.server
def test_a_refusal_is_one_line_and_exit_code_1(folder: Path, tmp_path: Path) -> None:
    flip_a_byte(folder)
    with process(folder, tmp_path / "log") as started:
        assert started.wait(60) == 1
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line == f"serve: {folder}: model.safetensors differs from what was saved; copy the folder again"


@pytest.mark.server
def test_mlflows_own_server_gives_the_same_answers(logged: Path, saved: Path, tmp_path: Path) -> None:
    """`mlflow models serve` is mlflow.pyfunc.scoring_server around the model that the registry hands out."""
    model = mlflow.pyfunc.load_model(str(logged))
    forms: list[dict[str, Any]] = [
        {"inputs": {"src_txt": ["白日依山尽，", "春"], "id": [1, 2]}},
        {"inputs": ["春"]},
        {"instances": [{"src_txt": "春"}]},
        {"dataframe_records": [{"src_txt": "春", "id": 3}]},
        {"dataframe_split": {"columns": ["id", "src_txt"], "data": [[1, "春"]]}},
    ]
    params = {"params": {"max_new_tokens": 12, "temperature": 0.8, "top_k": 40, "seed": 2, "stop": ["。"]}}
    with process(saved, tmp_path / "log") as started:
        url = address_in(started)
        for form in forms:
            body = json.dumps(form | params).encode()
            expected = invocations(body, "application/json", model, model.metadata.get_input_schema())
            found = httpx.post(f"{url}/invocations", content=body, headers={"Content-Type": "application/json"})
            assert (found.status_code, found.json()) == (expected.status, json.loads(expected.response))
