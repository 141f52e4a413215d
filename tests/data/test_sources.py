from __future__ import annotations

import gzip
import http.server
import logging
import threading
from pathlib import Path
from typing import ClassVar

import datasets
import pytest

from modules.data.quarantine import DataError
from modules.data.reading.finding import split_files
from modules.data.rows import load_rows
from modules.data.sources import has_split

ROWS = [{"src_txt": "a"}, {"src_txt": "b"}, {"src_txt": "c"}]


def test_folders_of_splits(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("src_txt\na\nb\nc\n")
    (tmp_path / "dev.jsonl.gz").write_bytes(gzip.compress(b'{"src_txt": "a"}\n{"src_txt": "b"}\n'))
    (tmp_path / "train.notes").write_text("not rows")
    assert split_files(tmp_path, "validation") == [tmp_path / "dev.jsonl.gz"]
    assert split_files(tmp_path, "test") == []
    assert load_rows(tmp_path).to_list() == ROWS
    assert load_rows(tmp_path, split="validation").to_list() == ROWS[:2]
    assert has_split(tmp_path, "validation")
    assert not has_split(tmp_path, "test")
    assert not has_split(tmp_path / "train.csv", "train")
    with pytest.raises(DataError, match=r"no file for split 'test'; it holds dev\.jsonl\.gz, train\.csv"):
        load_rows(tmp_path, split="test")
    (tmp_path / "valid.jsonl").write_text("")
    with pytest.raises(DataError, match=r"more than one file for split 'validation': dev\.jsonl\.gz, valid"):
        load_rows(tmp_path, split="validation")
    with pytest.raises(DataError, match=r"train\.csv has no splits, so no 'validation'; give a folder"):
        load_rows(tmp_path / "train.csv", split="validation")


def test_saved_dataset_dict_is_a_folder_of_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "validation": rows.select([2])}).save_to_disk(tmp_path)
    assert load_rows(tmp_path, split="validation").to_list() == [ROWS[2]]
    assert has_split(tmp_path, "validation")


def test_what_is_no_path_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str) -> datasets.DatasetDict:
        asked.append(name)
        if name == "poet/absent":
            raise ConnectionError("no network\ndetails")
        rows = datasets.Dataset.from_list(ROWS)
        return datasets.DatasetDict({"train": rows, "dev": rows.select([0]), "test": rows.select([1])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("modules.data.sources.HfApi.dataset_info", lambda *_, **__: None)
    assert load_rows("poet/poems", split="test").to_list() == ROWS[1:2]
    assert load_rows("poet/poems", split="validation").to_list() == ROWS[:1]
    assert load_rows("poet/poems").to_list() == ROWS
    assert has_split("poet/poems", "validation")
    assert not has_split("poet/poems", "extra")
    with pytest.raises(DataError, match="hub dataset poet/poems has no split 'extra'; it has train, dev, test"):
        load_rows("poet/poems", split="extra")
    refusal = r"is neither a file nor a reachable hub dataset \({}\); check"
    with pytest.raises(DataError, match="poet/absent " + refusal.format("no network")):
        load_rows("poet/absent")
    for name in ("absent.csv", "./absent", "a/b/c", Path("poet/poems")):
        with pytest.raises(DataError, match=refusal.format("no such path")):
            load_rows(name)
    assert asked == ["poet/poems", "poet/absent"]


class AwayHub(http.server.BaseHTTPRequestHandler):
    """Which huggingface_hub's own calls would ask six times."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(503)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_a_hub_that_is_away_is_asked_once_and_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), AwayHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        with pytest.raises(DataError, match=r"minecsv is neither .*\(no such path, and of the hub: .*503.*\); check"):
            load_rows("minecsv")
        hub.shutdown()
    assert AwayHub.asked == ["/api/datasets/minecsv"]
    assert caplog.messages == []
    assert not datasets.config.HF_HUB_OFFLINE
