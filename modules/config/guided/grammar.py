"""JSON schemas and regular expressions as grammars of llguidance's, and what is wrong with one.

llguidance limits its own work, but not all of it: an allOf of thirty patterns takes it minutes and all memory. So each
schema is first compiled in a process of its own, with limits that the system keeps; this file is its script, too.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

KEYS = ("json_schema", "regex")
"""Generation parameters that are compiled to a grammar."""

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 20_000,
    "max_items_in_row": 8_000,  # 2,000 are too few for 500 optional keys
}
"""llguidance's: its own defaults let a token take 15 ms, and a text half a gigabyte."""

WHITESPACE = " ?"
"""Between JSON's signs: any that the schema doesn't ask for would let a small model write blanks to the end."""

SECONDS, BYTES = 1, 2**31
"""Of processor time and memory, for compiling; a schema of 500 optional keys takes 0.05 s."""

PATIENCE = 30
"""Seconds that the process may take on a machine that is busy otherwise."""

LONGEST = 65_536
"""Characters."""

ONE_AT_A_TIME = threading.Lock()

PARTS = 500
"""Of a schema, that are tried for where it is wrong."""


def compiled(tokenizer: Any, key: str, text: str) -> Any:
    """llguidance's matcher, at the beginning of a text. ValueError with llguidance's reason where there is none.

    tokenizer: an LLTokenizer.
    """
    from llguidance import LLMatcher, LLParserLimits

    if key == "regex":
        grammar = LLMatcher.grammar_from_regex(text)
    else:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE})
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS, verbose_errors=False))
    if reason := matcher.get_error():
        raise ValueError(reason)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError("no text keeps it")
    return matcher


def fault_of(key: str, text: str) -> str | None:
    """What is wrong with a schema or an expression, to stand after its key; None where texts can be held to it."""
    package = find_spec("llguidance")
    if package is None or package.origin is None:
        return "needs llguidance, which is not installed: pip install 'moyun[guided]'"
    if not text or len(text) > LONGEST:
        return f"has {len(text):,} characters; there may be 1 to {LONGEST:,}"
    try:
        return found_fault(key, text, str(Path(package.origin).parents[1]))
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which no text can"
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").split("\n")
        return f"couldn't be tried: {next(filter(None, reversed(said)), str(error))}"


@functools.lru_cache(256)
def found_fault(key: str, text: str, packages: str) -> str | None:
    """`fault_of` a text of allowed length. packages: the folder that llguidance is in.

    Raises OSError or CalledProcessError where it can't be told; that isn't kept, and the next call tries again.
    """
    if key == "json_schema" and (fault := no_object(text)):
        return f'{fault}; give a JSON schema, e.g. {{"type": "object"}}'
    command = [sys.executable, "-I", __file__, packages, key]
    try:
        with ONE_AT_A_TIME:  # of a server's threads
            tried = subprocess.run(command, input=text.encode(), capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:  # kept: a server asks a second time where others wait
        return f"couldn't be tried within {PATIENCE} s on this machine; simplify it, or start anew when less runs here"
    if tried.stdout:
        return f"can't be kept: {tried.stdout.decode()}"
    if tried.returncode > 0 and b"MemoryError" not in tried.stderr:  # below 0: the system has ended it
        tried.check_returncode()
    too_much = f"is too complex: to compile it takes over {SECONDS} s, or {BYTES >> 30} GB; simplify it"
    return too_much if tried.returncode else None


def no_object(text: str) -> str | None:
    """Why a text isn't a JSON object; None where it is one."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"isn't JSON ({error})" if isinstance(error, ValueError) else "is nested too deep"
    return None if isinstance(content, dict) else "isn't a JSON object"


def refusal(key: str, text: str) -> Iterator[str]:
    """llguidance's reason to refuse a schema or an expression, then where in it; nothing where it takes it."""
    if not (reason := reason_of(key, text)):
        return
    said = re.search(r"^error: (.+)", reason, re.MULTILINE) or re.search(r"\(in regex\): (.+)", reason)
    yield (said[1] if said else reason.splitlines()[0])[:300]
    if key == "regex":
        caret = re.search(r"^    ( *)\^", reason, re.MULTILINE)
        yield f" (at character {len(caret[1]) + 1})" if caret and "\n" not in text else ""
    else:
        yield next(wrong_parts(json.loads(text), reason), "")


def reason_of(key: str, text: str) -> str:
    from llguidance import LLTokenizer

    try:
        compiled(LLTokenizer("byte"), key, text)
    except ValueError as error:
        return str(error) or "llguidance doesn't take it"
    return ""


def wrong_parts(schema: Any, reason: str) -> Iterator[str]:
    """Where the parts of a schema stand that are refused for the same reason by themselves, the innermost first."""
    parts = sorted(parts_of(schema), key=lambda part: -len(part[0]))[:PARTS]
    for path, part in parts:
        if path and reason_of("json_schema", json.dumps(part)) == reason:
            yield f" (at {'.'.join(map(str, path))})"


def parts_of(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """All objects in a schema, with the keys that lead there."""
    if isinstance(value, dict):
        yield path, value
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from parts_of(part, (*path, key))


if __name__ == "__main__":
    import resource

    for limit, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, BYTES)):
        hard = resource.getrlimit(limit)[1]  # which can't be raised
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    sys.path.append(sys.argv[1])
    for part in refusal(sys.argv[2], sys.stdin.buffer.read().decode()):
        os.write(1, part.encode(errors="replace"))  # at once: the search for its place may be ended at any time
