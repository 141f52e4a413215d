"""What runs couldn't send to the tracking store, sent now: `python -m pipelines.sync`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from modules.config.base import TrackingConfig
from modules.config.commands import SyncConfig
from modules.system.redaction import redact_text
from modules.tracking.outbox.delivery import Delivery
from modules.tracking.outbox.spool import Spool, SpoolInUseError, has_refused, last_record, unsent
from modules.tracking.outbox.store import is_there, require_store, why
from modules.tracking.registry import log_model_once
from modules.tracking.run_lifecycle import END, GONE
from modules.tracking.stage_run import connect

from .cli.command_line import run_stage, show


@dataclass(frozen=True)
class Sent:
    run_id: str
    sent: int
    """Records that went now."""
    left: int
    """Records that still wait, and nobody sends them."""
    note: str
    process: str = ""
    """That writes to the run and sends it."""

    def __str__(self) -> str:
        if self.process:
            return f"still written to by process {self.process}, which sends it"
        return f"{self.sent:,} sent, {self.left:,} left{': ' if self.note else ''}{self.note}"


def sync(config: SyncConfig) -> list[Sent]:
    """Sends what waits. ValueError if the store doesn't answer, or something is left, or a given folder isn't there."""
    root = Path(config.tracking.spool_dir)
    if not root.is_dir() and config.tracking.spool_dir != TrackingConfig.spool_dir:
        raise ValueError(
            f"tracking.spool_dir={root} isn't a folder here: start sync where the runs were started, or name theirs"
        )
    logs = sorted(root.glob("*/log.jsonl"), key=lambda log: log.stat().st_mtime)
    folders = [log.parent for log in logs if waits(log.parent)]
    if not folders:
        show("sync", {str(root): f"nothing waits ({len(logs):,} runs)"})
        return []
    uri = connect(config.tracking)
    if not is_there(uri):
        raise ValueError(
            f"there is no tracking store {redact_text(uri)}: name the runs' own with tracking.tracking_uri=… or "
            "MLFLOW_TRACKING_URI, or start sync where they were started"
        )
    require_store(uri)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    results = [send_rest(folder, uri) for folder in folders]
    show(f"sync: to {redact_text(uri)}", {result.run_id: str(result) for result in results})
    left = sum(result.left for result in results)
    if left:
        records = "1 record is" if left == 1 else f"{left:,} records are"
        raise ValueError(f"{records} left; nothing is lost, run it again when what is said above is mended")
    return results


def waits(folder: Path) -> bool:
    return unsent(folder) or has_refused(folder) or last_record(folder).get("kind") != "status"


def send_rest(folder: Path, uri: str) -> Sent:
    try:
        spool = Spool(folder)
    except SpoolInUseError as error:
        return Sent(folder.name, 0, 0, "", error.owner)
    waited, taken = spool.pending, 0
    note = ""
    try:
        if last_record(folder).get("kind") != "status":  # killed, or it would hold the lock
            spool.append("tags", values={END: GONE})
            spool.append("status", status="KILLED")
        delivery = Delivery(spool, folder.name, uri, log_model_once)
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


if __name__ == "__main__":
    run_stage("sync", sync)
