"""Who may ask: the token, and the names that this server is called by."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Mapping

from hetero_sd.runtime.serve.errors import ApiError
from targets.errors import UserError

OPEN_PATHS = ("/", "/health")  # the page, which knows nothing itself, and whether the server runs


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or a name.

    Raises:
        UserError: there is no such host.
    """
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: there is no such host: give an address of this machine") from None
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


class Access:
    """Admits requests by their headers."""

    def __init__(self, token: str | None, only_local: bool) -> None:
        """Keep the rules.

        Args:
            token: that requests must carry; None where none is asked for.
            only_local: the server listens on this machine alone, so that no other name leads to it: a page of another
                site that had its name point here must not be answered.
        """
        self._token = None if token is None else token.encode()
        self._only_local = only_local

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Refuse a request that may not be answered.

        Raises:
            ApiError: it lacks the token, or was sent to another name.
        """
        if self._only_local and not _is_this_machine(headers.get("host", "")):
            raise ApiError(403, "this server answers to localhost and to loopback addresses alone")
        if self._token is None or path in OPEN_PATHS:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._token):
            message = "the token is missing or wrong: send it as `Authorization: Bearer TOKEN`"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _is_this_machine(host: str) -> bool:
    """Whether the header names this machine: localhost, or a loopback address."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
