"""What the model's process of a server does before it loads the model: the same that a stage's own process does."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

from modules.config.base import TrackingConfig
from modules.system.redaction import FROM_ENVIRONMENT

from .. import find_model
from .command_line import OBJECTS_BETWEEN_COLLECTIONS, quieten_libraries
from .redacted_output import redact_output


def find_served(model: str, tracking: TrackingConfig, secrets: Mapping[str, str]) -> Path:
    """find_model, in a process whose output holds no secret. secrets: what the server's has looked up."""
    FROM_ENVIRONMENT.update(secrets)
    redact_output()
    quieten_libraries()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    return find_model(model, tracking)
