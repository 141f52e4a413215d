"""Sending what a run's local log still holds, after the process that wrote it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...system.redaction import redact_text
from ..run_lifecycle import END, GONE
from .delivery import Delivery, LogModel
from .spool import Spool, SpoolInUseError, has_refused, last_record, unsent
from .store import why


@dataclass(frozen=True)
class Sent:
    """What became of one run's log."""

    run_id: str
    sent: int
    """Records that went now."""
    left: int
    """Records that still wait."""
    note: str
    process: str = ""
    """Id of the process that still writes to the run, and sends it itself."""

    def __str__(self) -> str:
        if self.process:
            return f"still written to by process {self.process}, which sends it"
        return f"{self.sent:,} sent, {self.left:,} left{': ' if self.note else ''}{self.note}"


def waits(folder: Path) -> bool:
    """Whether a run's log holds something that the store hasn't got, or no end."""
    return unsent(folder) or has_refused(folder) or last_record(folder).get("kind") != "status"


def send_rest(folder: Path, uri: str, log_model: LogModel) -> Sent:
    """Sends what waits in a run's log (models by log_model); a run whose process is gone is ended as KILLED."""
    try:
        spool = Spool(folder)
    except SpoolInUseError as error:
        return Sent(folder.name, 0, 0, "", error.owner)
    waited, taken = spool.pending, 0
    note = ""
    try:
        if last_record(folder).get("kind") != "status":  # killed, or it would hold the lock
            spool.append("tags", values={END: GONE})
            if checkpoints := spool.last("checkpoints"):
                spool.append("checkpoints", **checkpoints | {"ended": True})
            spool.append("status", status="KILLED")
        delivery = Delivery(spool, folder.name, uri, log_model)
        taken = delivery.retry_refused()
        while delivery.step():
            pass
    except Exception as error:
        made_in = spool.read_json("run.json", {"store": "?"})["store"]
        note = why(error) + (f" (the run was made in {made_in})" if made_in != redact_text(uri) else "")
    finally:
        spool.close()
    if spool.refused:
        note += f"{'; ' if note else ''}{spool.refused:,} refused, see {folder / 'refused.jsonl'}"
    return Sent(folder.name, taken + max(0, waited - spool.pending), spool.pending, note)
