"""What killed processes leave half written goes with the next start, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules.system.atomic import draft_of, new_folder, remove_abandoned, write_json
from modules.system.jsonl import write_rows
from modules.training.resume import claimed
from tests.helpers.models import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from modules.system.atomic import new_folder
from modules.system.jsonl import write_rows
folder = Path(sys.argv[1])
def rows():
    with new_folder(folder / "model", "a model folder") as draft:
        (draft / "weights").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    yield {}
write_rows(folder / "rows.jsonl.gz", rows())
"""


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    mine, foreign = draft_of(tmp_path / "mine"), tmp_path / ".theirs.tmp"
    elsewhere = tmp_path / ".model.another-machine-1.tmp"
    for path in (mine, foreign, elsewhere):
        path.mkdir()
    for start in range(3):
        if start:
            subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
        kept = {mine.name, foreign.name, elsewhere.name}
        assert len(hidden(tmp_path)) == len(kept) + (2 if start else 0)  # rows and model of one process, not of two
    write_json(tmp_path / "manifest.json", {})
    assert set(hidden(tmp_path)) == kept


def test_a_run_of_its_own_folder_removes_drafts_of_any_machine(tmp_path: Path) -> None:
    (tmp_path / ".quarantine.jsonl.another-machine-7.tmp").touch()
    with claimed(str(tmp_path), "auto") as before:
        assert before is None
        assert hidden(tmp_path) == []


def test_a_folder_with_somebodys_hidden_file_isnt_empty(tmp_path: Path) -> None:
    (tmp_path / ".download.tmp").touch()
    with pytest.raises(ValueError, match=r"isn't empty: it holds \.download\.tmp"), claimed(str(tmp_path), "auto"):
        pass
    assert hidden(tmp_path) == [".download.tmp"]


def test_a_draft_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model", "a model folder") as draft:
        assert draft == draft_of(tmp_path / "model")
        assert str(os.getpid()) in draft.name
        write_rows(tmp_path / "rows.jsonl.gz", [{}])
        remove_abandoned(tmp_path)
        assert draft.is_dir()
    assert hidden(tmp_path) == []
