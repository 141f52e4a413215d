"""Which LoggedModel of the store, and which version of the registry, has written a text."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ...config.base import is_registered, model_folder
from ..outbox.store import is_refusal, why

logger = logging.getLogger("moyun.tracking")

MODEL_ID = re.compile(r"models:/(m-[0-9a-f]{32})/?")
REGISTERED = re.compile(r"models:/([^/@]+)(?:@[^/@]+|/(\d+))/?")

Links = tuple[str | None, str | None]
"""(the LoggedModel's id, the version's number), None where the store knows of none."""


class ModelLinks:
    """Of what a server serves. Each model is looked up once, before its first trace."""

    def __init__(self, place: str) -> None:
        """place: as the user named it."""
        self.place = place
        self.found: dict[str | None, Links] = {}

    def of(self, card: Mapping[str, Any]) -> Links:
        """card: the model's; a version that it tells is the one which answered, also after an alias has moved."""
        version = None if card.get("version") is None else str(card["version"])
        if version not in self.found:
            try:
                self.found[version] = self.look_up(version)
            except (MlflowException, OSError, ValueError) as error:
                if may_pass(error):
                    raise
                logger.warning("traces: the model %s isn't linked to them: %s", self.place, why(error))
                self.found[version] = None, version
        return self.found[version]

    def look_up(self, number: str | None) -> Links:
        if match := MODEL_ID.fullmatch(self.place):
            return match[1], None
        if match := REGISTERED.fullmatch(self.place):
            if not (number := number or match[2]):
                return None, None
            source = MlflowClient().get_model_version(match[1], number).source
            found = MODEL_ID.fullmatch(str(source))
            return found[1] if found else None, number
        if is_registered(self.place):  # a run's: runs:/RUN_ID/checkpoint-STEP
            return None, None
        from ..models.known_models import known_model  # which takes torch; a registered model is found without it

        model = known_model(self.place, model_folder(self.place))
        return str(model.model_id) if model else None, None


def may_pass(error: Exception) -> bool:
    """Whether the store is away; else it has no such version any more, or the folder isn't there to be compared."""
    known = isinstance(error, MlflowException | requests.RequestException)
    return known and not is_refusal(error) and getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST"
