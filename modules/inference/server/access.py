"""Who may ask: by which names a server may be called, and the API key.

A page of another site can have its name point at this machine (DNS rebinding), and then counts as a page of this
server. Its requests are known by that name, which browsers send as Host.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...config.base import shown
from ...config.generation import ServeConfig
from .requests import RequestError

API_KEY = "MOYUN_API_KEY"
"""The variable of the environment that holds the API key, or several with names: unlike an argument, no other user of
the machine sees it."""

ApiKeys = bytes | Mapping[str, bytes]
"""One key, or name → key."""

KEY_ALONE, KEY_NAME = re.compile("[^=,]+=*"), re.compile(r"[\w.-]{1,60}", re.ASCII)
"""A key without a name (base64 ends with equals signs), and the name of one."""

LOOPBACK = frozenset(("127.0.0.1", "localhost", "[::1]"))

HOST = re.compile(r"(\[[0-9a-f:.]*\]|[^:\[\]]*?)\.?(?::\d*)?", re.IGNORECASE)
"""A Host header: a name or address, and perhaps a port."""


@dataclass(frozen=True)
class Access:
    """Whose requests are answered."""

    names: frozenset[str] | None = LOOPBACK
    """What the server may be called, in lower case; None: anything."""
    any_address: bool = False
    """Whether any IP address will do as well: it listens on every network, and no other site can have an address."""
    key: ApiKeys | None = None
    """The API key or keys; None: none is asked for."""

    @property
    def key_names(self) -> tuple[str, ...]:
        """Of keys that have any."""
        return tuple(self.key) if isinstance(self.key, Mapping) else ()

    def asker(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """The name of the key that a request has; "" of a key without a name, None where it has none of them."""
        given = [value for name, value in headers if name.lower() == b"authorization"]
        scheme, _, sent = (given[0] if len(given) == 1 else b"").partition(b" ")
        if self.key is None or scheme.lower() != b"bearer":
            return None
        asker = None
        for name, key in (self.key if isinstance(self.key, Mapping) else {"": self.key}).items():
            if hmac.compare_digest(sent.strip(), key):  # each of them: the time doesn't tell which one it was
                asker = name
        return asker

    def problem(self, headers: Iterable[tuple[bytes, bytes]], is_open: bool) -> RequestError | None:
        """Why a request is refused, if it is. is_open: it needs no key."""
        headers = [(name.lower(), value) for name, value in headers]
        for host in (value for name, value in headers if name == b"host"):  # no browser leaves it out
            if not self.knows(host.decode("latin-1")):
                what = f"Host {shown(host.decode('latin-1'))} isn't a name of this server"
                remedy = "names beside its address are given to it with allowed_hosts=[NAME] (docs/serving.md)"
                return RequestError(421, f"{what}; {remedy}", "Host", "host_not_allowed")
        if self.key is None or is_open or self.asker(headers) is not None:
            return None
        given = any(name == b"authorization" for name, _ in headers)
        what = "this API key isn't the server's" if given else "this server asks for its API key"
        return RequestError(401, f"{what}: send Authorization: Bearer KEY", "Authorization", "invalid_api_key")

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server."""
        if self.names is None:
            return True
        name = found[1].lower() if (found := HOST.fullmatch(host.strip())) else ""
        return name in self.names or (self.any_address and is_address(name))


def access_of(config: ServeConfig, address: str, key: ApiKeys | None) -> Access:
    """address: the one that the server listens on."""
    names = {spelt(name) for name in (config.host, address, *config.allowed_hosts)}
    any_name = config.allowed_hosts == ["*"]
    return Access(None if any_name else LOOPBACK | names, ipaddress.ip_address(address).is_unspecified, key)


def spelt(name: str) -> str:
    """A name or address as it stands in Host."""
    name = name.lower().rstrip(".")
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def read_key(environment: Mapping[str, str]) -> ApiKeys | None:
    """The API key, or those that have names (alice=KEY,bob=KEY); None where none is set.

    ValueError, without any of it, for what no client could send, what can be read in two ways, and what is empty:
    whoever set it meant to have a key.
    """
    key = environment.get(API_KEY)
    if key is not None and not re.fullmatch("[!-~]+", key):
        found = "is empty" if not key else "holds a space, a line end or a character beyond ASCII"
        raise ValueError(f"{API_KEY} {found}, which can't be an API key; unset it to serve without one")
    if key is None or KEY_ALONE.fullmatch(key):
        return None if key is None else key.encode()
    return named_keys(key.split(","))


def named_keys(parts: Sequence[str]) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for number, part in enumerate(parts, 1):
        name, _, key = part.partition("=")
        of = f"{API_KEY}: part {number} of {len(parts)} (by commas)"
        if not KEY_NAME.fullmatch(name) or not key.strip("="):
            raise ValueError(
                f"{of} isn't NAME=KEY: give several keys as alice=KEY1,bob=KEY2, or one alone, without commas and "
                "without equals signs but at its end"
            )
        if name in keys or key.encode() in keys.values():
            raise ValueError(
                f"{of} has {'the name' if name in keys else 'the key'} of an earlier one: each has its own"
            )
        keys[name] = key.encode()
    return keys


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
