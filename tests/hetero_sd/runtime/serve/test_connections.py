"""Clients that connect and ask for nothing."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from hetero_sd.runtime.serve.limits import Limits

Serve = Callable[..., Any]
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("sent", [b"", _HEALTH, b"GET", _HEALTH + b"\r\n"])
def test_a_connection_without_a_request_is_closed(serve: Serve, to_the_end: Any, sent: bytes) -> None:
    """The last one has had a reply, and asks for nothing more."""
    with serve(limits=Limits(head_s=0.5)) as served:
        said = to_the_end(served.open_connection(sent))
        assert said.startswith(b"HTTP/1.1 200 ") == sent.endswith(b"\r\n\r\n")


def test_a_request_that_takes_longer_is_not_cut(serve: Serve, to_the_end: Any) -> None:
    """The negative control: the bound is for heads, not for answers."""
    with serve(limits=Limits(head_s=0.5)) as served:
        served.gate.shut()
        client = served.open_stream()
        served.wait_until(lambda: served.engine.snapshot().running == 1)
        assert to_the_end(served.open_connection(b"")) == b""
        served.gate.open()
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        client.close()


def test_too_many_connections_are_closed_at_once(serve: Serve, to_the_end: Any) -> None:
    with serve(limits=Limits(connections=2)) as served:
        kept = [served.open_connection(b"") for _ in range(2)]
        assert to_the_end(served.open_connection(b"")) == b""
        for client in kept:
            client.sendall(_HEALTH + b"Connection: close\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            client.close()


def test_what_is_no_http_is_refused(serve: Serve, to_the_end: Any) -> None:
    with serve() as served:
        said = to_the_end(served.open_connection(b"\x16\x03\x01 hello\r\n\r\n"))
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"Traceback" not in said
        assert served.ask("/health").status == 200


def test_clients_that_reset_their_connections_print_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(most_waiting=20) as served:
        for _ in range(20):
            client = served.open_stream(max_tokens=300)
            client.recv(64)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        served.wait_until(lambda: sum(served.engine.snapshot().outcomes.values()) == 20)
        assert served.complete().status == 200
    assert caplog.text == ""
    assert capfd.readouterr().err == ""
