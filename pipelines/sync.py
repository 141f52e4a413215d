"""What runs couldn't send to the tracking store, sent now: `python -m pipelines.sync`."""

from __future__ import annotations

import os
from pathlib import Path

from modules.config.base import TrackingConfig
from modules.config.commands import SyncConfig
from modules.system.redaction import redact_text
from modules.tracking.models.exported_model import log_model_once
from modules.tracking.outbox.resend import Sent, send_rest, waits
from modules.tracking.outbox.store import is_there
from modules.tracking.outbox.store_check import require_store
from modules.tracking.stage_run import connected

from .cli.command_line import run_stage
from .cli.printing import show


def sync(config: SyncConfig) -> list[Sent]:
    """Sends what waits. ValueError if the store doesn't answer, or something is left, or a given folder isn't there."""
    root = Path(config.tracking.spool_dir)
    if not root.is_dir() and config.tracking.spool_dir != TrackingConfig.spool_dir:
        raise ValueError(
            f"tracking.spool_dir={root} isn't a folder here: start sync where the runs were started, or name theirs"
        )
    logs = sorted(filter(Path.is_file, root.glob("*/log.jsonl")), key=lambda log: log.stat().st_mtime)
    folders = [log.parent for log in logs if waits(log.parent)]
    if not folders:
        show("sync", {str(root): f"nothing waits ({len(logs):,} runs)"})
        return []
    with connected(config.tracking) as uri:
        return send_all(uri, folders)


def send_all(uri: str, folders: list[Path]) -> list[Sent]:
    if not is_there(uri):
        raise ValueError(
            f"there is no tracking store {redact_text(uri)}: name the runs' own with tracking.tracking_uri=… or "
            "MLFLOW_TRACKING_URI, or start sync where they were started"
        )
    require_store(uri)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    results = [send_rest(folder, uri, log_model_once) for folder in folders]
    show(f"sync: to {redact_text(uri)}", {result.run_id: str(result) for result in results})
    left = sum(result.left for result in results)
    if left:
        records = "1 record is" if left == 1 else f"{left:,} records are"
        raise ValueError(f"{records} left; nothing is lost, run it again when what is said above is mended")
    return results


if __name__ == "__main__":
    run_stage("sync", sync)
