"""Checkpoints that would run code when they are loaded, tried against every way in: refused, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modules.config.loader import load_config
from modules.data.encoding import open_documents
from modules.system.checksums import FILE_LIST, describe_files, write_file_list
from modules.tokenizer.tokenizer import load_tokenizer
from pipelines import pipeline
from pipelines.convert import convert
from pipelines.evaluate import evaluate
from pipelines.finetune import finetune
from pipelines.generate import generate
from pipelines.main import main
from pipelines.pretrain import pretrain
from pipelines.register import register
from pipelines.serve import serve
from tests.workflow.fuzz import make_folders

ROWS = {"src_txt": ["天生我材必有用", "黄河入海流"] * 10}
RATES = ["train.learning_rate=1e-4", "train.batch_size=1", "train.max_steps=1", "data.sequence_length=16"]


class Evil:
    """Whose loading leaves a folder behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_folders(folder)
    return folder


def in_state_dict(path: Path, evil: Evil) -> None:
    """Beside the tensors, where torch.load finds it."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, "note": evil}, path)


def as_pickle(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil))


def as_lightning(path: Path, evil: Evil) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": evil, "pytorch-lightning_version": "2.6.6"}, path)


def as_yaml(path: Path, evil: Evil) -> None:
    path.write_text(f"hidden_size: !!python/object/apply:os.mkdir ['{evil.canary}']\n")


PLANTED: dict[str, tuple[str, str, Callable[[Path, Evil], None]]] = {
    "ModelScope's .bin": ("modelscope", "pytorch_model.bin", in_state_dict),
    "Hugging Face's .bin": ("huggingface_bin", "pytorch_model.bin", in_state_dict),
    "a bare pickle": ("huggingface_bin", "pytorch_model.bin", as_pickle),
    "a Lightning file": ("huggingface_bin", "pytorch_model.bin", as_lightning),
    "a shard's .pt": ("megatron_tp2", "model/mp_rank_01_model_states.pt", in_state_dict),
    "a safetensors name": ("moyun", "model.safetensors", as_pickle),
    "golden": ("moyun", "golden.safetensors", as_pickle),
    "model.yaml": ("moyun", "model.yaml", as_yaml),
    "tokenizer.json": ("moyun", "tokenizer.json", as_pickle),
    "tokenizer_config.json": ("moyun", "tokenizer_config.json", as_pickle),
    "a checkpoint's .metadata": ("run/step=1.ckpt", ".metadata", as_pickle),
    "a checkpoint's part": ("run/step=1.ckpt", "__0_0.distcp", as_pickle),
    "an adapter": ("adapter", "adapter.safetensors", as_pickle),
    "adapter.yaml": ("adapter", "adapter.yaml", as_yaml),
}


def start(function: Callable[[Any], Any], stage: str, *arguments: str) -> Any:
    return function(load_config(stage, [*arguments, "tracking.log_system_metrics=false"]))


def train_from(place: str) -> Any:
    config = load_config("finetune", [f"train.init_from={place}", *RATES, "tracking.log_system_metrics=false"])
    return finetune(config, ROWS)


def resume_from(place: str) -> Any:
    arguments = ["model=tiny", f"train.resume_from={place}", *RATES[1:], "tracking.log_system_metrics=false"]
    return pretrain(load_config("pretrain", arguments), ROWS)


WITH_ROWS = ["data.path=rows.txt", "data.test_path=rows.txt", "ngram_floor=false"]
ENTRIES: dict[str, Callable[[str, str], Any]] = {
    "train.init_from": lambda place, good: train_from(place),
    "train.resume_from": lambda place, good: resume_from(place),
    "evaluate model": lambda place, good: start(evaluate, "evaluate", f"model={place}", *WITH_ROWS),
    "evaluate baseline": lambda place, good: start(
        evaluate, "evaluate", f"model={good}", f"baseline={place}", *WITH_ROWS
    ),
    "register": lambda place, good: start(register, "register", f"model={place}", *WITH_ROWS[:2]),
    "convert source": lambda place, good: start(convert, "convert", f"source={place}", "target=new"),
    "convert adapter": lambda place, good: start(
        convert, "convert", f"source={good}", f"adapter={place}", "target=new"
    ),
    "generate": lambda place, good: start(generate, "generate", f"model={place}", "prompt=春"),
    "serve": lambda place, good: start(serve, "serve", f"model={place}", "port=0"),
    "pipeline": lambda place, good: pipeline(model=place),
    "tokenizer.path": lambda place, good: (
        start(pretrain, "pretrain", "model=tiny", f"tokenizer.path={place}", "data.path=rows.txt", *RATES[1:])
        if not (Path(place) / "config.json").exists()  # whose tokenizer is sound, and the weights aren't looked at
        else pipeline(model=place)
    ),
}


THROUGH_TORCH = [name for name, (_, file, _) in PLANTED.items() if file.endswith((".bin", ".pt", ".distcp"))]


@pytest.mark.parametrize(
    ("planted", "forced"), [*((name, False) for name in PLANTED), *((name, True) for name in THROUGH_TORCH)]
)
def test_nothing_runs_whatever_is_opened(
    planted: str, forced: bool, sound: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (store / "rows.txt").write_text("\n".join(ROWS["src_txt"]))
    folder, file, plant = PLANTED[planted]
    kind = folder.partition("/")[0]
    shutil.copytree(sound / kind, store / kind)
    canary = store / "canary"
    plant(store / folder / file, Evil(canary))
    for entry, enter in ENTRIES.items():
        if entry == "tokenizer.path" and not file.startswith("tokenizer"):
            continue
        try:
            enter(str(store / folder), str(sound / "moyun"))
        except ValueError as error:
            refused = bool(str(error))
        else:
            refused = False
        assert refused, entry
        assert not canary.exists(), entry
        assert not (store / "new").exists(), entry


# --- an output_dir that somebody else has filled, and which training goes on in ---


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and in run/ what a run left after its first step."""
    place = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        go_on(place / "run", "train.max_steps=1")
    origin = place / "run" / "checkpoints" / "origin.json"
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"finished": False}))
    return place


def go_on(folder: Path, *arguments: str) -> Any:
    arguments = ("model=tiny", "model.num_hidden_layers=1", f"output_dir={folder}", *RATES[1:], *arguments)
    return pretrain(load_config("pretrain", [*arguments, "tracking.log_system_metrics=false"]), ROWS)


def at_the_start(path: Path, evil: Evil) -> None:
    """In place of the first tensor, as long as what it was."""
    content = pickle.dumps(evil)
    path.write_bytes(content + path.read_bytes()[len(content) :])


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("file", "plant"),
    [
        ("progress.pt", as_pickle),
        ("progress.pt", in_state_dict),
        ("progress.pt", as_lightning),
        (".metadata", as_pickle),
        ("__0_0.distcp", as_pickle),
        ("__0_0.distcp", at_the_start),
    ],
)
def test_nothing_runs_where_a_run_goes_on(
    file: str,
    plant: Callable[[Path, Evil], None],
    forced: bool,
    interrupted: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """files.json is no protection: whoever changed the checkpoint wrote the list anew."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    shutil.copytree(interrupted, store, symlinks=True, dirs_exist_ok=True)
    checkpoint = store / "run" / "checkpoints" / "step=1.ckpt"
    plant(checkpoint / file, Evil(store / "canary"))
    write_file_list(checkpoint, describe_files(path for path in checkpoint.iterdir() if path.name != FILE_LIST))
    with pytest.raises(ValueError, match=rf"step=1\.ckpt.*{re.escape(file) if file != '__0_0.distcp' else ''}"):
        go_on(store / "run", "train.max_steps=2", "train.allow_changed=[train.max_steps]")
    assert not (store / "canary").exists()


def test_the_run_would_go_on(interrupted: Path, store: Path) -> None:
    """Or the test above would prove nothing."""
    shutil.copytree(interrupted, store, symlinks=True, dirs_exist_ok=True)
    assert go_on(store / "run", "train.max_steps=2", "train.allow_changed=[train.max_steps]")
    assert (store / "run" / "checkpoints" / "step=2.ckpt").is_dir()


def test_the_canary_would_be_seen(tmp_path: Path, sound: Path) -> None:
    canary = tmp_path / "canary"
    shutil.copy(sound / "modelscope" / "pytorch_model.bin", tmp_path / "a.bin")
    for plant in (in_state_dict, as_pickle, as_lightning):
        plant(tmp_path / "a.bin", Evil(canary))
        load = (
            pickle.loads if plant is as_pickle else lambda content: torch.load(tmp_path / "a.bin", weights_only=False)
        )
        load((tmp_path / "a.bin").read_bytes())
        canary.rmdir()
        shutil.copy(sound / "modelscope" / "pytorch_model.bin", tmp_path / "a.bin")


@pytest.mark.parametrize("place", ["https://host/model", "http://host/last.ckpt", "s3://bucket/model", "file:///model"])
def test_nothing_is_fetched_from_a_url(place: str, store: Path, sound: Path) -> None:
    (store / "rows.txt").write_text("\n".join(ROWS["src_txt"]))
    for entry, enter in ENTRIES.items():
        if entry == "tokenizer.path":
            continue
        with pytest.raises(ValueError, match=r"\S"):
            enter(place, str(sound / "moyun"))


def test_a_cached_array_is_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text('{"rows": 1, "rows_cut": 0, "rows_split": 0}')
    evil = np.array([Evil(tmp_path / "canary")], dtype=object)
    for name in ("ids", "offsets", "prompt_lengths", "characters", "ended"):
        np.save(tmp_path / f"{name}.npy", evil, allow_pickle=True)
    with pytest.raises(ValueError, match="[Oo]bject"):
        open_documents(tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("command", ["main", "pretrain"])
def test_a_size_by_file_makes_no_objects(command: str, store: Path) -> None:
    as_yaml(store / "size.yaml", Evil(store / "canary"))
    function = {"main": main, "pretrain": pretrain}[command]
    with pytest.raises(ValueError, match=r"size\.yaml"):
        start(function, command, f"model={store / 'size.yaml'}")
    assert not (store / "canary").exists()


def test_a_vocabulary_is_text_alone(tmp_path: Path, sound: Path) -> None:
    folder = Path(shutil.copytree(sound / "modelscope", tmp_path / "model"))
    as_pickle(folder / "vocab.txt", Evil(tmp_path / "canary"))
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        load_tokenizer(folder)
    assert not (tmp_path / "canary").exists()


def test_a_packed_archive_of_weights_is_not_unfolded(store: Path, sound: Path) -> None:
    folder = Path(shutil.copytree(sound / "modelscope", store / "model"))
    with zipfile.ZipFile(folder / "pytorch_model.bin") as plain:
        parts = {info.filename: plain.read(info) for info in plain.infolist()}
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content + b"\x00" * (100_000_000 if name.endswith("data.pkl") else 0))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged: .*data\.pkl is packed"):
        start(convert, "convert", f"source={folder}", "target=new")
