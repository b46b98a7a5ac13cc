"""The token, and the names that lead to the server."""

from __future__ import annotations

import pytest

from hetero_sd.runtime.serve.access import Access, is_loopback
from hetero_sd.runtime.serve.errors import ApiError
from targets.errors import UserError


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_no_such_host() -> None:
    with pytest.raises(UserError, match="there is no such host"):
        is_loopback("no such host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "[::1]:8080", "[::1]", "127.0.0.2:1"])
def test_names_of_this_machine(host: str) -> None:
    Access(None, only_local=True).check("/v1/models", {"host": host})


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "", "[::2]:80", "localhost.evil", "10.0.0.1", "["]
)
def test_other_names_are_refused_where_only_this_machine_asks(host: str) -> None:
    with pytest.raises(ApiError) as caught:
        Access(None, only_local=True).check("/health", {"host": host})
    assert caught.value.status == 403
    Access(None, only_local=False).check("/health", {"host": host})


@pytest.mark.parametrize("given", ["Bearer secret", "bearer  secret"])
def test_the_token(given: str) -> None:
    Access("secret", only_local=False).check("/v1/models", {"authorization": given})


@pytest.mark.parametrize(
    "given", ["", "secret", "Bearer", "Bearer Secret", "Bearer secret1", "Basic secret", "Bearer é"]
)
def test_another_token_is_refused(given: str) -> None:
    access = Access("secret", only_local=False)
    for path in ("/v1/models", "/metrics", "/v1/chat/completions", "/health/"):
        with pytest.raises(ApiError) as caught:
            access.check(path, {"authorization": given})
        assert (caught.value.status, caught.value.headers) == (401, {"www-authenticate": "Bearer"})
        assert "secret" not in caught.value.message
    for path in ("/", "/health"):
        access.check(path, {"authorization": given})
