"""What is answered already, in a folder beside the target: `.TARGET.predict`, until the target is whole.

about.json says of what model, rows and parameters the answers are; answers.jsonl has a line for each, synced to disk
batch by batch, window after window. Whatever ends the process, the same command goes on behind the last whole line.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ...system.atomic import flush_to_disk, naming, new_file, place_to_write, write_json
from ...system.bounded_read import read_json_object
from ...system.checksums import sha256_of
from ...system.process_locks import InUseError, is_locked, take_lock
from .answering import RowAnswer

ABOUT, ANSWERS, LOCK, DRAFT = "about.json", "answers.jsonl", ".lock", "target"


class Journal:
    """The answers to a target's rows so far. Nothing is written before it is `claimed`."""

    def __init__(self, target: Path) -> None:
        self.named, self.target = target, place_to_write(target)
        self.folder = self.target.with_name(f".{self.target.name}.predict")
        self.answers = self.folder / ANSWERS
        self.finished = False
        """Whether the target is whole and the folder of no more use."""

    @property
    def about(self) -> dict[str, Any]:
        """made_of and run_id, and `output`, the SHA-256 of what the target is to be; {} where nothing is begun."""
        return read_json_object(self.folder / ABOUT)

    @property
    def has_answers(self) -> bool:
        return self.answers.exists() and self.answers.stat().st_size > 0

    def write_about(self, **facts: Any) -> None:
        write_json(self.folder / ABOUT, {**self.about, **facts})

    def require_free(self, force: bool) -> None:
        """ValueError where the target is somebody's: a folder, in use, or there already and not to be replaced."""
        if self.target.is_dir():
            raise ValueError(f"target={self.named} is a folder: name a file")
        if (self.folder / LOCK).exists() and is_locked(self.folder / LOCK):
            raise self.in_use((self.folder / LOCK).read_text(encoding="utf-8").strip())
        if self.target.exists() and not force and not self.is_written():
            raise ValueError(
                f"target={self.named} exists already, and nothing is overwritten: choose another, or force=true to "
                "replace it"
            )

    def in_use(self, owner: str) -> ValueError:
        return ValueError(f"target={self.named} is in use by {owner or 'another process'}: choose another, or wait")

    def is_written(self) -> bool:
        """Whether the target is what a killed process made of the journal, all but to end itself."""
        output = self.about.get("output")
        return output is not None and self.target.is_file() and sha256_of(self.target) == output

    def require_same(self, made_of: Mapping[str, Any], force: bool) -> bool:
        """Whether there are answers to go on from. ValueError where they are of something else, unless by `force`."""
        if not (about := self.about):
            return False
        before = about["made_of"]
        changed = [name for name in {**before, **made_of} if before.get(name) != made_of.get(name)]
        if changed and not force and self.has_answers:
            raise ValueError(
                f"target={self.named} was begun otherwise: {'; '.join(change(n, before, made_of) for n in changed)}. "
                "Give what was given then, another target, or force=true to begin anew"
            )
        return not changed

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Locks the folder for this process; it is removed in the end if the target is whole, or nothing answered."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = take_lock(self.folder / LOCK, f"process {os.getpid()} on {os.uname().nodename}")
        except InUseError as error:
            raise self.in_use(str(error)) from None
        try:
            yield
        finally:
            if self.finished or not self.has_answers:
                shutil.rmtree(self.folder)
            lock.release()

    def begin(self, made_of: Mapping[str, Any], run_id: str) -> None:
        """Says what the answers are of; those of anything else are thrown away."""
        if self.about.get("made_of") != made_of:
            (self.folder / ABOUT).unlink(missing_ok=True)
            self.answers.unlink(missing_ok=True)
        self.write_about(made_of=made_of, run_id=run_id)

    def lines(self) -> Iterator[tuple[int, RowAnswer, int]]:
        """(row, answer, where its line ends) of each whole line; a torn one, and all behind it, doesn't count."""
        end = 0
        if self.answers.exists():
            with self.answers.open("rb") as stream:
                for line in stream:
                    try:
                        row, *answer = json.loads(line)
                        found = RowAnswer(*answer)
                    except (ValueError, TypeError):
                        return
                    if not line.endswith(b"\n"):
                        return
                    end += len(line)
                    yield row, found, end

    @contextmanager
    def appending(self) -> Iterator[Callable[[Mapping[int, RowAnswer]], None]]:
        """Yields what adds answers, which are on the disk when it returns."""
        end = max((end for _, _, end in self.lines()), default=0)
        with naming(self.answers), self.answers.open("ab", buffering=0) as stream:
            stream.truncate(end)

            def append(answers: Mapping[int, RowAnswer]) -> None:
                lines = [json.dumps([row, *asdict(answer).values()]) for row, answer in answers.items()]
                write_all(stream, ("\n".join(lines) + "\n").encode())
                os.fsync(stream.fileno())

            yield append

    def finish(self, write: Callable[[IO[bytes]], None]) -> str:
        """Puts what `write` writes in the target's place, whole or not at all; returns its SHA-256.

        That is noted before: whoever is killed in between knows the target again.
        """
        draft = self.folder / DRAFT
        with new_file(draft) as stream:
            write(stream)
        digest = sha256_of(draft)
        self.write_about(output=digest)
        draft.replace(self.target)
        flush_to_disk(self.target.parent)
        return digest


def write_all(stream: IO[bytes], content: bytes) -> None:
    """An unbuffered stream may take a part alone; that it takes no more, as on a full disk, it says the next time."""
    while content:
        content = content[stream.write(content) :]


def change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What was and what is; of what is no key of the configuration, a hash, just that it differs."""
    if " " in name:  # and no key
        return f"the {name} changed"
    return f"{name} was {json.dumps(before.get(name), ensure_ascii=False)}, and is " + json.dumps(
        now.get(name), ensure_ascii=False
    )


class Answered:
    """The journal's answers, window by window, beside the rows that they are to."""

    def __init__(self, journal: Journal) -> None:
        self.lines = ((row, answer) for row, answer, _ in journal.lines())
        self.ahead: tuple[int, RowAnswer] | None = None

    def up_to(self, end: int) -> dict[int, RowAnswer]:
        """Row → answer, of those rows before `end` that weren't given yet."""
        found: dict[int, RowAnswer] = {}
        while line := self.ahead or next(self.lines, None):
            self.ahead = line if line[0] >= end else None
            if self.ahead:
                break
            found[line[0]] = line[1]
        return found
