"""Who may ask: by which names a server may be called, and the API key.

A page of another site can have its name point at this machine (DNS rebinding), and then counts as a page of this
server. Its requests are known by that name, which browsers send as Host.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...config.base import shown
from ...config.generation import ServeConfig
from .requests import RequestError

API_KEY = "MOYUN_API_KEY"
"""The variable of the environment that holds the API key: unlike an argument, no other user of the machine sees it."""

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
    key: bytes | None = None
    """The API key; None: it isn't asked for."""

    def problem(self, headers: Iterable[tuple[bytes, bytes]], is_open: bool) -> RequestError | None:
        """Why a request is refused, if it is. is_open: it needs no key."""
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value)
        for host in found.get(b"host", []):  # no browser leaves it out
            if not self.knows(host.decode("latin-1")):
                what = f"Host {shown(host.decode('latin-1'))} isn't a name of this server"
                remedy = "names beside its address are given to it with allowed_hosts=[NAME] (docs/serving.md)"
                return RequestError(421, f"{what}; {remedy}", "Host", "host_not_allowed")
        if self.key is None or is_open:
            return None
        given = found.get(b"authorization", [])
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.key):
            return None
        what = "this API key isn't the server's" if given else "this server asks for its API key"
        return RequestError(401, f"{what}: send Authorization: Bearer KEY", "Authorization", "invalid_api_key")

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server."""
        if self.names is None:
            return True
        name = found[1].lower() if (found := HOST.fullmatch(host.strip())) else ""
        return name in self.names or (self.any_address and is_address(name))


def access_of(config: ServeConfig, address: str, key: bytes | None) -> Access:
    """address: the one that the server listens on."""
    names = {spelt(name) for name in (config.host, address, *config.allowed_hosts)}
    any_name = config.allowed_hosts == ["*"]
    return Access(None if any_name else LOOPBACK | names, ipaddress.ip_address(address).is_unspecified, key)


def spelt(name: str) -> str:
    """A name or address as it stands in Host."""
    name = name.lower().rstrip(".")
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def read_key(environment: Mapping[str, str]) -> bytes | None:
    """The API key, None where it isn't set. ValueError for one that no client could send, or that is empty: whoever set
    it meant to have one."""
    key = environment.get(API_KEY)
    if key is not None and not re.fullmatch("[!-~]+", key):
        found = "is empty" if not key else "holds a space, a line end or a character beyond ASCII"
        raise ValueError(f"{API_KEY} {found}, which can't be an API key; unset it to serve without one")
    return None if key is None else key.encode()


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
