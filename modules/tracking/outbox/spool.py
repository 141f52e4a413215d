"""A run's local log: everything that is to reach the tracking store stands here first, in order.

A folder of log.jsonl (one record a line, only ever appended to), files/ (artifacts), sent.json (how far the store has
got), refused.jsonl (what it wouldn't take), run.json (which run of which store) and lock. It imports nothing of
MLflow. A line is handed to the operating system at once, which keeps it if the process is killed; sync_to_disk is for
power failures, and tells where a full disk has kept lines back.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...system.atomic import new_file
from ...system.process_locks import InUseError, take_lock

logger = logging.getLogger("moyun.tracking")

PRIVATE = 0o600
REFUSED_FILE = "refused.jsonl"
LOCK = "lock"

CHUNK = 1 << 20
"""Bytes read at once."""

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # floats by repr: they come back exactly


class SpoolInUseError(ValueError):
    """Another process writes to the run."""

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(f"{folder} is in use: process {owner} writes to this run; let it end, or stop it")
        self.owner = owner
        """Its number."""


@dataclass(frozen=True)
class Record:
    number: int
    """Its line in the log, from 0."""
    end: int
    """Byte at which the next one begins."""
    fields: dict[str, Any]
    """kind, t (milliseconds since 1970), and what the kind needs."""

    @property
    def kind(self) -> str:
        return str(self.fields["kind"])


class Spool:
    """A run's local log, open for writing by this process alone."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes the folder, and cuts off what a crash left of a last line. Raises SpoolInUseError."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self.lock = take_lock(self.folder / LOCK, str(os.getpid()), PRIVATE)
        except InUseError as owner:
            raise SpoolInUseError(self.folder, str(owner) or "?") from None
        for name in ("sent.json", "run.json", REFUSED_FILE):  # drafts of earlier versions, which a kill left behind
            (self.folder / f"{name}.new").unlink(missing_ok=True)
        self.log = os.open(self.folder / "log.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE)
        size, self.records = whole_lines(self.log)
        os.ftruncate(self.log, size)
        # A signal's handler that raises in the middle leaves a line in this buffer or in the file, never in both.
        self.writer = open(self.log, "ab", buffering=CHUNK, closefd=False)  # noqa: SIM115
        self.overflow: list[bytes] = []
        """Lines for which a full disk leaves no room in the buffer either."""
        self.trouble = ""
        """Why lines wait in memory; empty while all are in the file."""
        self.appending = threading.Lock()
        mark = self.read_json("sent.json", {"offset": 0, "records": 0, "refused": 0})
        # A power failure may have taken more of the log than of the mark.
        self.sent: int = min(mark["offset"], size)
        self.sent_records: int = min(mark["records"], self.records)
        self.refused: int = mark["refused"]
        self.closed = False

    @property
    def pending(self) -> int:
        """Records that the store hasn't got yet."""
        return max(0, self.records - self.sent_records)

    @property
    def written(self) -> int:
        """Bytes in the log."""
        with self.appending:  # and so not while it is being closed
            return 0 if self.closed else os.fstat(self.log).st_size

    @property
    def behind(self) -> bool:
        """Whether there is something to send."""
        return self.written > self.sent

    def append(self, kind: str, **fields: Any) -> int:
        """Adds a record and returns its number. On a full disk it doesn't raise: the line waits in memory for space."""
        line = encode({"kind": kind, "t": int(time.time() * 1000), **fields}).encode() + b"\n"
        with self.appending:
            number = self.records
            try:
                self.write(line)
                self.records += 1
            except BaseException:  # a signal's handler, before the line was written or after
                with suppress(OSError):
                    self.writer.flush()
                self.records = whole_lines(self.log)[1] + len(self.overflow)
                raise
        return number

    def write(self, line: bytes) -> None:
        try:
            while self.overflow:
                self.writer.write(self.overflow[0])
                del self.overflow[0]
            self.writer.write(line)
            line = b""
            self.writer.flush()
            self.trouble = ""
        except OSError as error:
            self.overflow += [line] if line else []
            if not self.trouble:
                logger.warning("tracking: %s can't be written (%s); kept in memory for now", self.folder, error)
            self.trouble = error.strerror or str(error)

    def new_file(self, name: str) -> Path:
        """A new path for a file that a record will name."""
        with self.appending:
            count = sum(1 for _ in (self.folder / "files").glob("*"))
            place = self.folder / "files" / f"{count:06d}"
            place.mkdir(parents=True, mode=0o700)
        return place / name

    def read(self, start: int, number: int, size: int = CHUNK) -> list[Record]:
        """The records from byte `start` on, as many as `size` bytes hold; the first one's number is `number`."""
        with self.appending:  # and so not while it is being closed
            chunk = b"" if self.closed else os.pread(self.log, size, start)
        lines = chunk.split(b"\n")[:-1]
        if not lines and len(chunk) == size:
            return self.read(start, number, 2 * size)
        records: list[Record] = []
        for line in lines:
            start += len(line) + 1
            records.append(Record(number + len(records), start, decode_record(line)))
        return records

    def mark_sent(self, record: Record, refused: Sequence[tuple[Record, str]] = ()) -> None:
        """Notes that the store has everything up to this record; what it refuses is kept in refused.jsonl."""
        if self.closed:
            return  # by now another process may be sending the rest
        if refused:
            with open(self.folder / REFUSED_FILE, "ab", opener=partial(os.open, mode=PRIVATE)) as file:
                file.writelines(map(refused_line, refused))
        mark = {"offset": record.end, "records": record.number + 1, "refused": self.refused + len(refused)}
        with suppress(OSError):  # a full disk: what a later process then sends once more changes nothing
            self.write_json("sent.json", mark)
        self.sent, self.sent_records, self.refused = mark["offset"], mark["records"], mark["refused"]

    def refused_before(self) -> list[Record]:
        """The records in refused.jsonl; of a record that the store took in parts, the parts that it refused."""
        found: list[Record] = []
        for line in (self.folder / REFUSED_FILE).read_bytes().splitlines() if has_refused(self.folder) else ():
            with suppress(ValueError):  # a crash tore it: then its record wasn't marked, and comes again
                entry = json.loads(line)
                found.append(Record(entry["number"], entry.get("end", 0), entry["record"]))
        return found

    def keep_refused(self, refused: Sequence[tuple[Record, str]]) -> None:
        """Writes refused.jsonl anew."""
        self.write_file(REFUSED_FILE, b"".join(map(refused_line, refused)))
        self.refused = len(refused)
        self.write_json("sent.json", {"offset": self.sent, "records": self.sent_records, "refused": self.refused})

    def all(self) -> Iterator[Record]:
        """Every record, from the first."""
        start = number = 0
        while records := self.read(start, number):
            yield from records
            start, number = records[-1].end, records[-1].number + 1

    def last(self, kind: str) -> dict[str, Any] | None:
        """What the newest record of a kind says; None where there is none."""
        found = None
        for record in self.all():
            found = record.fields if record.kind == kind else found
        return found and {name: value for name, value in found.items() if name not in ("kind", "t")}

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """Metric → (step, value) of all that was ever logged."""
        found: dict[str, list[tuple[int, float]]] = {}
        for record in self.all():
            if record.kind == "metrics":
                for name, value in record.fields["values"].items():
                    found.setdefault(name, []).append((record.fields["step"], value))
        return found

    def read_json(self, name: str, default: dict[str, Any]) -> dict[str, Any]:
        try:
            return default | json.loads((self.folder / name).read_bytes())
        except (FileNotFoundError, ValueError):
            return default

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write_file(name, encode(content).encode())

    def write_file(self, name: str, content: bytes) -> None:
        """Writes the whole file or, where that fails, nothing."""
        with new_file(self.folder / name, PRIVATE) as file:
            file.write(content)

    def sync_to_disk(self) -> None:
        """Makes all records so far survive a power failure: before a checkpoint or the end of a run tells of them.

        Raises ValueError where some are in memory alone, as on a full disk.
        """
        with self.appending:
            self.write(b"")
            try:
                os.fsync(self.log)
                trouble = self.trouble
            except OSError as error:
                trouble = error.strerror or str(error)
        if trouble:
            raise ValueError(
                f"{self.folder / 'log.jsonl'} can't be written ({trouble}), and without it what the run logs would be "
                "lost. Make room or give the right to write there (tracking.spool_dir), then start the same command "
                "again: training goes on from its last checkpoint"
            )

    def close(self) -> None:
        with self.appending:
            if self.closed:
                return
            self.closed = True
            try:
                self.writer.close()
            except OSError as error:
                logger.warning("tracking: the end of %s couldn't be written: %s", self.folder / "log.jsonl", error)
                self.records = whole_lines(self.log)[1]
            os.close(self.log)
        self.lock.release()


def whole_lines(file: int) -> tuple[int, int]:
    """(bytes, lines) of a file up to its last newline."""
    size = lines = offset = 0
    while chunk := os.pread(file, CHUNK, offset):
        lines += chunk.count(b"\n")
        if b"\n" in chunk:
            size = offset + chunk.rindex(b"\n") + 1
        offset += len(chunk)
    return size, lines


def unsent(folder: Path) -> bool:
    """Whether a run's log holds records that the store hasn't got; doesn't need its lock."""
    try:
        size = (folder / "log.jsonl").stat().st_size
        return bool(json.loads((folder / "sent.json").read_bytes())["offset"] < size)
    except (OSError, ValueError):
        return (folder / "log.jsonl").exists()


def has_refused(folder: Path) -> bool:
    """Whether the store has refused records of a run."""
    try:
        return (folder / REFUSED_FILE).stat().st_size > 0
    except FileNotFoundError:
        return False


def refused_line(refused: tuple[Record, str]) -> bytes:
    record, reason = refused
    return encode({"number": record.number, "end": record.end, "why": reason, "record": record.fields}).encode() + b"\n"


def last_record(folder: Path) -> dict[str, Any]:
    """The fields of a log's last record, read from its last 4 KB; "unreadable" for a longer one, which is no status."""
    with open(folder / "log.jsonl", "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        return decode_record((file.read().splitlines() or [b""])[-1])


def decode_record(line: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        fields = json.loads(line)
        if isinstance(fields, dict) and "kind" in fields:
            return fields
    return {"kind": "unreadable", "line": line.decode(errors="replace")}
