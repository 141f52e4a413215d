"""What people think of an answer (POST /v1/feedback)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ....config.base import shown
from ..requests import RequestError, bad, check_known, check_text, is_whole

if TYPE_CHECKING:
    from .transcript import AnswerRecord

VALUES = {"up": True, "down": False}


@dataclass(frozen=True)
class Rating:
    id: str
    """The answer's."""
    value: str
    """One of VALUES."""
    comment: str = ""
    correction: str | None = None
    """The text as it should have been."""
    index: int | None = None
    """Which of the answer's texts; None: its only one."""
    at: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        return len(self.comment) + len(self.correction or "")


def parse_feedback(body: Mapping[str, Any]) -> Rating:
    """Raises RequestError, naming the field, for what is no rating. As in OpenAI's interface, null is left out."""
    check_known(body, ("id", "value", "comment", "correction", "index"))
    given = {name: value for name, value in body.items() if value is not None}
    for name in ("id", "value"):
        if name not in given:
            raise bad(
                name, "is missing; a rating is {'id': …, 'value': 'up' or 'down'}, and comment, correction, index"
            )
    for name in given.keys() - {"index"}:
        check_text(name, given[name])
    if given["value"] not in VALUES:
        raise bad("value", f"must be up or down, not {shown(given['value'])}")
    if not given.get("correction", "a text").strip():
        raise bad("correction", "must be the text as it should have been, not an empty one")
    index = given.get("index")
    if index is not None and (not is_whole(index) or index < 0):
        raise bad("index", f"must be the number of a choice, from 0, not {shown(index)}")
    return Rating(**given)


class Recorder(Protocol):
    """Who is told of requests and ratings. Both calls come from the event loop, and return at once."""

    def answered(self, record: AnswerRecord) -> None: ...

    def rate(self, rating: Rating) -> None:
        """RequestError for a rating of what isn't known (404), or that can't be kept now (503)."""


def take_feedback(body: Mapping[str, Any], recorder: Recorder | None) -> dict[str, Any]:
    """The answer to a body of /v1/feedback."""
    rating = parse_feedback(body)
    if recorder is None:
        why = "this server keeps no answers, and so takes no feedback on them; start it with traces=1"
        raise RequestError(404, why, code="feedback_off")
    recorder.rate(rating)
    return {"id": rating.id, "object": "feedback", "value": rating.value}
