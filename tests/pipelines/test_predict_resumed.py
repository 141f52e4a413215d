"""predict is broken off and started again: nothing is answered twice, and nothing is mixed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from modules.data.quarantine import DataError
from modules.inference.prediction.journal import Journal
from modules.inference.text_generator import TextGenerator
from modules.system.process_locks import take_lock
from modules.system.signals import Stopped
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.predictions import FEW, TEXTS, jsonl, read, run, small_model
from tests.tracking.test_tracking import all_runs


@pytest.fixture
def model(store: Path, tokenizer: Tokenizer) -> Path:
    return small_model(store / "model", tokenizer)


# --- interrupted, and gone on ---


class Killed(BaseException):
    """Ends the process in a test as SIGKILL would, with nothing cleaned up but locks."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The next attempt ends after so many batches; 0: none more does."""
    original = TextGenerator.write_ids

    def set_limit(batches: int) -> None:
        calls = iter(range(batches))

        def write_ids(self: TextGenerator, *arguments: Any) -> Any:
            if batches and next(calls, None) is None:
                raise Killed
            return original(self, *arguments)

        monkeypatch.setattr(TextGenerator, "write_ids", write_ids)

    return set_limit


@pytest.fixture
def rows(model: Path, store: Path, small_windows: None) -> Path:
    return jsonl(store / "rows.jsonl", [{"src_txt": text, "n": n} for n, text in enumerate([*TEXTS, ""] * 2)])


@pytest.mark.parametrize(
    ("batches", "torn"), [(1, b""), (2, b'[17, "half of a li'), (3, b"\0\0\0\0"), (5, b""), (7, b"[")]
)
def test_an_interrupted_attempt_is_gone_on_with_and_the_file_is_the_same(
    rows: Path, store: Path, killed_after: Callable[[int], None], batches: int, torn: bytes
) -> None:
    run(*FEW, "target=whole.jsonl")
    killed_after(batches)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    assert not (store / "out.jsonl").exists()
    journal = Journal(store / "out.jsonl")
    with journal.answers.open("ab") as stream:
        stream.write(torn)
    answered = {row for row, _, _ in journal.lines()}
    asked: list[int] = []
    killed_after(0)
    original = TextGenerator.write_ids

    def counting(self: TextGenerator, prompts: Any, config: Any) -> Any:
        asked.extend([0] * len(prompts))
        return original(self, prompts, config)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TextGenerator, "write_ids", counting)
        found = run(*FEW, "target=out.jsonl")
    assert (store / "out.jsonl").read_bytes() == (store / "whole.jsonl").read_bytes()
    with_text = {row for row in range(18) if row % 9 != 8}
    assert len(asked) == len(with_text - answered)  # nothing is answered twice
    assert found.written.rows == 18
    assert not list(store.glob(".out*"))


def test_what_is_gone_on_with_is_one_run(rows: Path, store: Path, killed_after: Callable[[int], None]) -> None:
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    (before,) = all_runs()
    killed_after(0)
    found = run(*FEW, "target=out.jsonl")
    (after,) = all_runs()
    assert before.info.run_id == after.info.run_id == found.run_id
    assert (before.info.status, after.info.status) == ("FAILED", "FINISHED")
    assert len(MlflowClient().get_run(found.run_id).inputs.dataset_inputs) == 1
    MlflowClient().delete_run(found.run_id)
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=other.jsonl")
    (other,) = all_runs()
    MlflowClient().delete_run(other.info.run_id)
    killed_after(0)
    assert run(*FEW, "target=other.jsonl").run_id not in (found.run_id, other.info.run_id)  # its run is gone
    assert (store / "other.jsonl").read_bytes() == (store / "out.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("top_p=0.5", "generation.top_p was 0.9, and is 0.5"),
        ("seed=7", "generation.seed was 42, and is 7"),
        ("column=answer", 'column was "text", and is "answer"'),
        ("model", "the model's weights changed"),
        ("template", "the model's tokenizer or prompt template changed"),
        ("rows", "the source's rows changed"),
    ],
)
def test_what_was_begun_otherwise_is_refused_and_begun_anew_by_force(
    rows: Path, store: Path, tokenizer: Tokenizer, killed_after: Callable[[int], None], change: str, said: str
) -> None:
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    killed_after(0)
    arguments = [*FEW, "target=out.jsonl"]
    if change in ("model", "template"):
        asked = tokenizer.with_prompt_template("{src_txt}：" if change == "template" else None)
        small_model(store / "another", asked, seed=9 if change == "model" else 0)
        arguments += ["model=another"]
    elif change == "rows":
        with rows.open("a", encoding="utf-8") as stream:
            stream.write('{"src_txt": "新"}\n')
    else:
        arguments += [change]
    with pytest.raises(ValueError, match="target=out.jsonl was begun otherwise: ") as caught:
        run(*arguments)
    assert said in str(caught.value)
    assert "another target, or force=true" in str(caught.value)
    assert len(all_runs()) == 1
    run(*arguments, "force=true")
    run(*arguments, "target=fresh.jsonl")
    assert (store / "out.jsonl").read_bytes() == (store / "fresh.jsonl").read_bytes()


def test_parameters_may_change_as_long_as_nothing_is_answered(rows: Path, store: Path) -> None:
    journal = Journal(store / "out.jsonl")
    with journal.claimed():
        journal.begin({"seed": 7}, "0" * 32)
        (store / "kept").write_bytes((journal.folder / "about.json").read_bytes())
    assert not journal.folder.exists()
    journal.folder.mkdir()  # as a kill leaves it
    (store / "kept").rename(journal.folder / "about.json")
    run(*FEW, "target=out.jsonl")
    assert len(read(store / "out.jsonl")) == 18


def test_smaller_batches_may_go_on(rows: Path, store: Path, killed_after: Callable[[int], None]) -> None:
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl")
    killed_after(0)
    run(*FEW, "target=out.jsonl", "max_batch_tokens=1")
    run(*FEW, "target=whole.jsonl")
    assert read(store / "out.jsonl") == read(store / "whole.jsonl")


def test_a_finished_target_is_replaced_by_force_alone(rows: Path, store: Path) -> None:
    (store / "out.jsonl").write_text("somebody's\n")
    with pytest.raises(ValueError, match="target=out.jsonl exists already, and nothing is overwritten.*force=true"):
        run(*FEW, "target=out.jsonl")
    assert (store / "out.jsonl").read_text() == "somebody's\n"
    run(*FEW, "target=out.jsonl", "force=true")
    assert len(read(store / "out.jsonl")) == 18


def test_a_forced_attempt_that_was_killed_goes_on_and_leaves_the_old_target_until_then(
    rows: Path, store: Path, killed_after: Callable[[int], None]
) -> None:
    (store / "out.jsonl").write_text("somebody's\n")
    killed_after(2)
    with pytest.raises(Killed):
        run(*FEW, "target=out.jsonl", "force=true")
    assert (store / "out.jsonl").read_text() == "somebody's\n"
    killed_after(0)
    with pytest.raises(ValueError, match="exists already"):
        run(*FEW, "target=out.jsonl")
    run(*FEW, "target=out.jsonl", "force=true")
    assert len(all_runs()) == 1
    assert len(read(store / "out.jsonl")) == 18


def test_a_kill_after_the_target_is_written_is_no_finished_target_of_somebody_else(
    rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.predict.log_written", killed)
        with pytest.raises(Killed):
            run(*FEW, "target=out.jsonl")
    written = (store / "out.jsonl").read_bytes()
    found = run(*FEW, "target=out.jsonl")
    assert (store / "out.jsonl").read_bytes() == written
    assert MlflowClient().get_run(found.run_id).data.metrics["predict/rows"] == 18
    assert not list(store.glob(".out*"))


def test_two_processes_cannot_have_one_target(rows: Path, store: Path) -> None:
    folder = Journal(store / "out.jsonl").folder
    folder.mkdir()
    lock = take_lock(folder / ".lock", "process 1 on another")
    with pytest.raises(ValueError, match="target=out.jsonl is in use by process 1 on another: choose another, or wait"):
        run(*FEW, "target=out.jsonl")
    lock.release()
    run(*FEW, "target=out.jsonl")


def test_a_full_disk_is_said_and_gone_on_from(rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the answers find no room, in the middle of a line, or the target."""
    for where in ("write_all", "sha256_of"):
        with monkeypatch.context() as patched:

            def full(stream: Any, content: bytes = b"") -> None:
                if content:
                    stream.write(content[: len(content) // 2])
                raise OSError(28, "No space left on device", str(store / "out.jsonl"))

            patched.setattr(f"modules.inference.prediction.journal.{where}", full)
            with pytest.raises(OSError, match="No space left"):
                run(*FEW, "target=out.jsonl")
        assert not (store / "out.jsonl").exists()
    run(*FEW, "target=out.jsonl")
    run(*FEW, "target=whole.jsonl")
    assert (store / "out.jsonl").read_bytes() == (store / "whole.jsonl").read_bytes()


def test_a_signal_says_that_the_same_command_goes_on(rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise Stopped(15)

    monkeypatch.setattr(TextGenerator, "write_ids", stopped)
    with pytest.raises(Stopped) as caught:
        run(*FEW, "target=out.jsonl")
    assert caught.value.code == 143
    assert caught.value.message == "stopped; what is answered stays, and the same command goes on with out.jsonl"
    assert [run.info.status for run in all_runs()] == ["KILLED"]


def test_a_source_that_changes_meanwhile_makes_no_target(
    rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextGenerator.write_ids

    def write_ids(self: TextGenerator, *arguments: Any) -> Any:
        with rows.open("a", encoding="utf-8") as stream:
            stream.write('{"src_txt": "新"}\n')
        return original(self, *arguments)

    monkeypatch.setattr(TextGenerator, "write_ids", write_ids)
    with pytest.raises(DataError, match="source=rows.jsonl changed while it was read: nothing was written"):
        run(*FEW, "target=out.jsonl")
    assert not (store / "out.jsonl").exists()


def test_a_link_stays_a_link(rows: Path, store: Path) -> None:
    (store / "elsewhere").mkdir()
    (store / "out.jsonl").symlink_to("elsewhere/answers.jsonl")
    run(*FEW, "target=out.jsonl")
    assert os.readlink(store / "out.jsonl") == "elsewhere/answers.jsonl"
    assert len(read(store / "elsewhere" / "answers.jsonl")) == 18
