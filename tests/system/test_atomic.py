"""What killed processes leave half written goes with the next start, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from modules.system.atomic import (
    draft_of,
    new_file,
    new_folder,
    publish_folder,
    remove_abandoned,
    remove_folder,
    write_json,
    write_link,
    write_text,
)
from modules.system.jsonl import write_jsonl
from modules.training.checkpoints.resume import claimed
from tests.helpers.models import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from modules.system.atomic import new_folder
from modules.system.jsonl import write_jsonl
folder = Path(sys.argv[1])
def rows():
    with new_folder(folder / "model", "a model folder") as draft:
        (draft / "weights").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    yield {}
write_jsonl(folder / "rows.jsonl.gz", rows())
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
        write_jsonl(tmp_path / "rows.jsonl.gz", [{}])
        remove_abandoned(tmp_path)
        assert draft.is_dir()
    assert hidden(tmp_path) == []


def fail_after(stream: IO[bytes]) -> None:
    stream.write(b"half")
    raise ValueError("half written")


def test_a_file_keeps_what_it_was_when_writing_fails(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "card.md", "whole")
    with pytest.raises(ValueError, match="half"), new_file(tmp_path / "a" / "card.md") as stream:
        fail_after(stream)
    assert (tmp_path / "a" / "card.md").read_text() == "whole"
    assert hidden(tmp_path / "a") == []


def test_a_draft_takes_the_place_of_a_folder_and_a_link_that_of_another(tmp_path: Path) -> None:
    for content in ("first", "second"):
        draft = draft_of(tmp_path / content)
        (draft / "below").mkdir(parents=True)
        (draft / "below" / "part").write_text(content)
        publish_folder(draft, tmp_path / "step", replace=True)
        write_link(tmp_path / "last", "step")
    assert (tmp_path / "last" / "below" / "part").read_text() == "second"
    remove_folder(tmp_path / "step")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_everything_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, the folders that they lie in, and at last the folder that the new name is in."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(os.readlink(f"/proc/self/fd/{number}")).name))
    write_text(tmp_path / "card.md", "whole")
    assert synced == [draft_of(tmp_path / "card.md").name, tmp_path.name]
    synced.clear()
    with new_folder(tmp_path / "model", "a model folder") as draft:
        (draft / "part").touch()
    assert synced == ["part", draft.name, tmp_path.name]


def make_twice(folder: Path) -> None:
    with new_folder(folder, "a model folder") as draft:
        (draft / "weights").write_text("mine")
        with new_folder(folder.with_name("other"), "a model folder") as other:
            (other / "weights").write_text("theirs")
        folder.with_name("other").rename(folder)


def test_a_folder_that_came_meanwhile_stays(tmp_path: Path) -> None:
    """Two processes may make the same folder at once; whoever is second gets an error and removes nothing."""
    with pytest.raises(OSError, match="not empty"):
        make_twice(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "theirs"
    assert not hidden(tmp_path)
