"""Where a server's model is, as its own process asks: with secrets kept and libraries silent, as any stage has them."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modules.config.base import TrackingConfig
from modules.inference.server.model_process.messages import Source
from modules.system.redaction import FROM_ENVIRONMENT

from .. import find_model
from .command_line import OBJECTS_BETWEEN_COLLECTIONS, quieten_libraries
from .redacted_output import redact_output


@dataclass(frozen=True)
class GivenModel(Source):
    """A model folder or a models:/ URI."""

    model: str
    tracking: TrackingConfig
    secrets: Mapping[str, str]
    """What the server's configuration looked up in the environment."""

    def newest(self) -> str | None:
        name, number, alias = self.parts()
        if not alias:
            return number or None
        from modules.tracking.outbox.store import is_there
        from modules.tracking.outbox.store_check import require_store
        from modules.tracking.registry import version_with_alias
        from modules.tracking.stage_run import connect

        if is_there(uri := connect(self.tracking)):  # to ask would make it
            require_store(uri)
        found = version_with_alias(name, alias)
        return str(found.version) if found else None

    def find(self, version: str | None) -> Path:
        place = f"models:/{self.parts()[0]}/{version}" if version else self.model
        return find_model(place, self.tracking)

    def parts(self) -> tuple[str, str, str]:
        """Name, number and alias of a registered model, as far as they are given."""
        found = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))/?", self.model, re.ASCII)
        name, number, alias = found.groups("") if found else ("", "", "")
        return name, number, alias

    def settle(self) -> None:
        FROM_ENVIRONMENT.update(self.secrets)
        redact_output()
        quieten_libraries()
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
