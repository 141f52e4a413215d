"""What must never be written down: passwords, tokens and keys, by the name of a key or by their place in a URL.

Nor what a configuration took from the environment, ${oc.env:NAME}: that stays written as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SECRET = r"password|passwd|token(?![a-z])|secret|api[_-]?key|access[_-]?key|credential"
SECRET_KEY = re.compile(SECRET, re.IGNORECASE)

SECRETS_IN_TEXT = (
    re.compile(r"(?<=://)(?:[^/@\s]*:\S+|[^/\s]+)(?=@)"),  # user:password or token, "/" and "@" in it too
    re.compile(r"(?<=:/)(?!/)[^/@\s]*:[^/\s]+(?=@)"),  # the same where a path has made one slash of two
    re.compile(rf"(?<=[?&;])((?:\w|-)*(?:{SECRET})\w*=)[^&;\s]+", re.IGNORECASE),
)

FROM_ENVIRONMENT: dict[str, str] = {}
"""Value → ${oc.env:NAME}, of all that this process's configurations looked up."""

SHORTEST = 4
"""Characters of such a value that is looked for inside of other texts; a shorter one would stand in many of them."""


def redact(tree: Mapping[str, Any], secret: bool = False) -> dict[str, Any]:
    """Without passwords: values of keys that sound like one, and what stands in URLs as user, password or token."""
    return {key: redact_value(value, secret or bool(SECRET_KEY.search(key))) for key, value in tree.items()}


def redact_value(value: Any, secret: bool = False) -> Any:
    if isinstance(value, Mapping):
        return redact(value, secret)
    if isinstance(value, (list, tuple)):
        return [redact_value(part, secret) for part in value]
    if not isinstance(value, str) or not value:
        return value
    return "(redacted)" if secret else redact_text(value)


def redact_text(text: str) -> str:
    for value in sorted(FROM_ENVIRONMENT, key=len, reverse=True):
        if len(value) >= SHORTEST or text == value:
            text = text.replace(value, FROM_ENVIRONMENT[value])
    *in_url, in_query = SECRETS_IN_TEXT
    for pattern in in_url:
        text = pattern.sub("(redacted)", text)
    return in_query.sub(r"\1(redacted)", text)


def first_line(error: BaseException, length: int = 300) -> str:
    """What an error says, short and without secrets: for a tag, or for a line on the terminal."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact_text(lines[0])[:length]
