"""What must never be written down: passwords, tokens and keys, by the name of a key, by their place in a text, or
because a variable of the environment with such a name holds them, in whatever form a library writes them.

Nor what a configuration took from the environment, ${oc.env:NAME}: that stays written as it was.
"""

from __future__ import annotations

import html
import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

SECRET = (
    r"password|passwd|passphrase|token(?![a-z])|secret|api[_-]?key|access[_-]?key|private[_-]?key|credential|cookie"
    r"|authorization"
)
SECRET_KEY = re.compile(SECRET, re.IGNORECASE)
NO_SECRET = re.compile(r"(file|path|dir|ur[li]|helper)$", re.IGNORECASE)
"""How a variable's name ends that sounds secret, but says where something is."""

SECRETS_IN_TEXT = (
    re.compile(r"(?<=://)(?:[^/@\s]*:\S+|[^/\s]+)(?=@)"),  # user:password or token, "/" and "@" in it too
    re.compile(r"(?<=:/)(?!/)[^/@\s]*:[^/\s]+(?=@)"),  # the same where a path has made one slash of two
    re.compile(r"(?<=Bearer )[\w.~+/=-]{8,}"),
    re.compile(  # in a header; a word of a sentence has neither digits nor capitals in its middle, a number no letters
        r"(?:(?i:(?<=\bbasic )|(?<=\bbearer )|(?<=\btoken )))(?=[\w.~+/-]*[A-Za-z])(?=[\w.~+/-]*(?:[\d=]|[a-z][A-Z]))"
        r"[\w.~+/-]{8,}(?:\s?=){0,2}"
    ),
    re.compile(r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,})\b"),  # by their look
    re.compile(
        rf"(?<=[?&;\s])((?:\w|-)*(?:{SECRET}|signature|(?<=[?&])sig)\w*=)(?:'[^']*'|[^&;\s]+)",
        re.IGNORECASE,
    ),
    re.compile(r"(\b(?:authorization|cookie)\b[\"']?\s*:\s*[\"']?)[^\"'\r\n]+", re.IGNORECASE),
)

FROM_ENVIRONMENT: dict[str, str] = {}
"""Value → ${oc.env:NAME}, of all that this process's configurations looked up."""

SHORTEST = 4
"""Characters of such a value that is looked for inside of other texts; a shorter one would stand in many of them."""

LONG = 8
"""Characters from which on a secret can't well be a part of a longer word; or a line or a piece of it by chance."""

ENDS = r"[\w+/-]*(?:\s?=){0,2}"
"""What may follow in base64: the secret's last bits stand in one character with what comes after it."""

LIKE_A_TOKEN = 16
"""Characters from which on what stands alone before the @ of a URL is taken for a token and not for a name."""

KEYS_WITH_NAMES = re.compile(r"(?:^|,)[\w.-]+=([^,]+)", re.ASCII)
"""Each of several in one variable, alice=KEY,bob=KEY."""

COMMON = ("true", "false", "none", "null")


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
    text = hide_values(text)
    *whole, in_query, in_header = SECRETS_IN_TEXT
    for pattern in whole:
        text = pattern.sub("(redacted)", text)
    return in_header.sub(r"\1(redacted)", in_query.sub(r"\1(redacted)", text))


def hide_values(text: str) -> str:
    """Without what the environment holds that is secret; all else stays, as in a text that a model wrote."""
    for value in sorted(FROM_ENVIRONMENT, key=len, reverse=True):
        if len(value) >= SHORTEST or text == value:
            text = text.replace(value, FROM_ENVIRONMENT[value])
    pattern = pattern_of(tuple(os.environ.items()))
    return pattern.sub("(redacted)", text) if pattern else text


def secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    """The secrets among the environment's values, and before them what basic authentication makes of two."""
    for name, value in environment.items():
        if SECRET_KEY.search(name) and not NO_SECRET.search(name):
            for other in ("USERNAME", "USER"):
                if user := environment.get(re.sub("password|passwd|token", other, name, flags=re.IGNORECASE)):
                    yield f"{user}:{value.strip()}"
            yield value
            yield from KEYS_WITH_NAMES.findall(value)
        for userinfo in re.findall(r"://([^/\s]+)@", value) if "://" in value else ():
            if ":" in userinfo or len(userinfo) >= LIKE_A_TOKEN:  # a bare name is none: ssh://root@host
                yield userinfo
                yield userinfo.partition(":")[2]


@lru_cache(maxsize=4)
def pattern_of(environment: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Finds the environment's secrets, in any of their forms. Kept, as every text that is printed is looked through."""
    secrets = list(secrets_of(dict(environment)))
    forms = {form for secret in secrets for form in forms_of(secret)}
    forms = {form for form in forms if len(form) >= SHORTEST and form.lower() not in COMMON}
    found = [
        re.escape(form) if len(form) >= LONG else rf"(?<!\w){re.escape(form)}(?!\w)"
        for form in sorted(forms, key=len, reverse=True)
    ]
    encoded = {form for secret in secrets for text in texts_of(secret) for form in base64_of(text)} - {""}
    found += [re.escape(form) + ENDS for form in sorted(encoded, key=len, reverse=True)]
    return re.compile("|".join(found)) if found else None


def forms_of(secret: str) -> Iterator[str]:
    """A secret as it is, stripped, by lines, decoded, and as it stands in a URL, in code, in JSON or in HTML."""
    for text in texts_of(secret):
        quoted = {quote(text), quote(text, safe=""), quote_plus(text)}
        yield from (text, *quoted, *(re.sub("%..", lambda code: code[0].lower(), each) for each in quoted))
        raw = text.encode(errors="surrogateescape")
        # Python escapes one kind of quotes or the other, by what else stands beside the secret; and twice in a repr.
        escaped = {repr(text)[1:-1], repr(f"'{text}")[2:-1], repr(f"'\"{text}")[4:-1], repr(raw)[2:-1]}
        yield from (*escaped, *(repr(each)[1:-1] for each in escaped))
        yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text))
        yield text.encode("unicode_escape").decode()


def texts_of(secret: str) -> set[str]:
    """A secret as it is, stripped, decoded and by lines."""
    whole = {secret, secret.strip(), unquote(secret).strip()}
    lines = {line.strip() for text in whole for line in text.splitlines()}
    return whole | {line for line in lines if len(line) >= LONG}


def base64_of(text: str) -> Iterator[str]:
    """What stands in any longer text's base64 for the secret in it: it may begin at each of three places."""
    secret = text.encode(errors="surrogateescape")
    for before in range(3):
        first, last = (before * 8 + 5) // 6, (before + len(secret)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            if last - first >= LONG:
                yield encode(b"\0" * before + secret)[first:last].decode()


def first_line(error: BaseException | str, length: int = 300) -> str:
    """What an error says, short and without secrets: for a tag, or for a line on the terminal."""
    lines = redact_text(str(error)).strip().splitlines() or [type(error).__name__]
    line = lines[0]
    return line if len(line) <= length else f"{line[:length].rpartition(' ')[0] or line[:length]} …"
