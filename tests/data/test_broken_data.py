"""tests/files/broken holds a file for each fault; messages.txt says what becomes of it: the message, or the rows.

python -m tests.data.test_broken_data writes messages.txt anew; read its diff before you commit it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules.data.quarantine import DataError
from modules.data.reading import json_values
from modules.data.rows import load_rows
from tests.helpers.models import ROOT

FOLDER = ROOT / "tests" / "files" / "broken"
MESSAGES = FOLDER / "messages.txt"
HEAD = "=== "


def outcome(path: Path) -> str:
    """The rows as JSON, or the message, without the way to this folder."""
    try:
        rows = load_rows(path)
    except DataError as error:
        return str(error).replace(f"{FOLDER}{os.sep}", "")
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def faults() -> list[Path]:
    return sorted(path for path in FOLDER.iterdir() if path != MESSAGES)


def golden() -> dict[str, str]:
    parts = MESSAGES.read_text(encoding="utf-8").split(HEAD)[1:]
    return {name: message.strip("\n") for name, _, message in (part.partition("\n") for part in parts)}


def test_every_fault_has_its_message() -> None:
    assert golden().keys() == {path.name for path in faults()}


@pytest.mark.parametrize("path", faults(), ids=lambda path: path.name)
def test_broken_input_is_named_with_its_place_and_remedy(path: Path) -> None:
    assert outcome(path) == golden()[path.name]


def test_one_line_of_50_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"src_txt": "a"}\n{"src_txt": "' + b"x" * 50_000_000 + b'"}\n')
    with pytest.raises(DataError, match=r"long\.jsonl:2: line over 10 MB; split it into several rows"):
        load_rows(path)


def test_a_json_file_too_large_to_be_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('[{"src_txt": "a"}]')
    with pytest.raises(DataError, match=r"a\.json: over .* as \.jsonl"):
        load_rows(tmp_path / "a.json")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError, match=r"pipe\.csv: no regular file"):
            load_rows(tmp_path / "pipe.csv", cache=cache)
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"gone\.csv is neither a file nor"):
        load_rows(tmp_path / "gone.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder has no file for split 'train'; it holds nothing"):
        load_rows(tmp_path / "folder")


@pytest.mark.parametrize("name", ["value-missing.csv", "gbk.jsonl", "truncated.parquet"])
def test_the_command_says_the_same_and_nothing_else(name: str, store: Path) -> None:
    command = [sys.executable, "-m", "pipelines.prepare", f"source={FOLDER / name}", "output_dir=out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*command, "tracking.log_system_metrics=false"], env=environment, capture_output=True)
    said = ended.stderr.decode().replace(f"{FOLDER}{os.sep}", "").strip("\n")
    expected = golden()[name].replace("data.bad_rows", "bad_rows")  # as prepare's own key is called
    assert (ended.returncode, said) == (1, f"prepare: {expected}")
    assert not (store / "out").exists()


if __name__ == "__main__":
    written = [f"{HEAD}{path.name}\n{outcome(path)}\n" for path in faults()]
    MESSAGES.write_text("\n".join(written), encoding="utf-8", errors="backslashreplace")
