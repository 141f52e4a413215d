"""Nothing that a command prints or logs holds a secret, whoever writes it: a library's message or a traceback too."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from modules.system.redaction import hide_values, redact_text


class RedactedStream:
    """A stream to which secrets are written as (redacted)."""

    def __init__(self, stream: Any, redact: Callable[[str], str]) -> None:
        self.stream = stream
        self.redact = redact

    def write(self, text: str) -> int:
        self.stream.write(self.redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def redacted(value: Any) -> Any:
    """The same value unless there is a secret in what it says."""
    said = redact_text(text := str(value))
    return value if said == text else said


class RedactedRecord(logging.LogRecord):
    """Redacted where it is made: libraries' handlers hold streams of before."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.msg = redacted(self.msg)
        if isinstance(self.args, tuple):
            self.args = tuple(map(redacted, self.args))
        elif isinstance(self.args, Mapping):
            self.args = {name: redacted(value) for name, value in self.args.items()}
        if self.exc_info and self.exc_info[0]:
            self.exc_text = redact_text("".join(traceback.format_exception(*self.exc_info))).rstrip()


def redact_output() -> None:
    """From now on, for as long as the process lives: what it writes last may be the traceback of its end."""
    if sys.stderr and not isinstance(sys.stderr, RedactedStream):
        sys.stderr = RedactedStream(sys.stderr, redact_text)
    if sys.stdout and not isinstance(sys.stdout, RedactedStream):
        sys.stdout = RedactedStream(sys.stdout, hide_values)  # a model's text may have what only looks like a secret
    logging.setLogRecordFactory(RedactedRecord)
