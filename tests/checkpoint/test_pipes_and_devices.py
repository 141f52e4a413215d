"""A pipe would be waited for and a device read for ever: each file of a folder is refused at once if it is one."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.checkpoint.adapter import read_adapter
from modules.checkpoint.loading import load_verified, open_verified, verify_model
from modules.checkpoint.model_folder import read_provenance
from modules.data.corpora.manifest import read_manifest
from modules.data.quarantine import DataError
from modules.data.rows import load_rows
from modules.model.decoder import Decoder
from modules.system.checksums import FILE_LIST, damage, describe_files, sha256_of, write_file_list
from modules.system.paths import expanded
from modules.tokenizer.tokenizer import Tokenizer, load_tokenizer
from modules.training.checkpoints.run_manifest import MANIFEST, read_run_manifest
from tests.helpers.models import save_model


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's address may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def loop(path: Path) -> None:
    path.symlink_to(path)


KINDS = [pipe, device, unix_socket, loop]


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """What would wait for ever fails instead."""

    def fail(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path, decoder: Decoder, tokenizer: Tokenizer) -> Path:
    return save_model(tmp_path / "model", decoder, tokenizer, {"run_id": "abc"})


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("load", [load_verified, open_verified, verify_model])
@pytest.mark.parametrize(
    "name", ["model.yaml", "model.safetensors", "golden.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_of_a_model_folder(
    folder: Path, name: str, load: Callable[[Path], object], make: Callable[[Path], None]
) -> None:
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(ValueError, match=r"\S") as caught:
        load(folder)
    assert name in str(caught.value) or name == "tokenizer_config.json"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", KINDS)
def test_of_what_lies_beside(tmp_path: Path, make: Callable[[Path], None]) -> None:
    for name in ("run.yaml", "manifest.json", MANIFEST, "adapter.yaml", "adapter.safetensors", "vocab.txt"):
        make(tmp_path / name)
    assert read_provenance(tmp_path) == {} == read_manifest(tmp_path)
    assert read_run_manifest(tmp_path) is None
    with pytest.raises(ValueError, match=r"adapter\.safetensors"):
        read_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"run\.yaml: (no regular file but a|its links lead in a circle)"):
        sha256_of(tmp_path / "run.yaml")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", ["a.txt", FILE_LIST])
def test_of_a_folder_with_a_list_of_its_files(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    (tmp_path / "a.txt").touch()
    write_file_list(tmp_path, describe_files([tmp_path / "a.txt"]))
    assert damage(tmp_path) is None
    (tmp_path / name).unlink()
    make(tmp_path / name)
    assert damage(tmp_path)


@pytest.mark.parametrize("make", [pipe, device, unix_socket])
def test_of_rows(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "train.csv")
    for place in (tmp_path, tmp_path / "train.csv"):
        with pytest.raises(DataError, match=r"train\.csv: no regular file"):
            load_rows(place, split="train", cache=tmp_path / "cache")


@pytest.mark.parametrize("make", KINDS)
def test_of_a_saved_dataset(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    table = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "a", "_format_type": None}
    (tmp_path / "state.json").write_text(json.dumps(table))
    make(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(DataError, match="not a complete saved Dataset"):
        load_rows(tmp_path, cache=tmp_path / "cache")


def test_a_users_name_that_is_not_there_stays_a_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~nobody-of-that-name/x") == "~nobody-of-that-name/x"
    with pytest.raises(DataError, match="~nobody-of-that-name/x is neither a file nor"):
        load_rows("~nobody-of-that-name/x", cache=tmp_path / "cache")
    assert load_tokenizer("~/model").fingerprint == load_tokenizer(folder).fingerprint
