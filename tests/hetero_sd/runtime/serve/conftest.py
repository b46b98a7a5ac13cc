"""A server in this process over toy models whose steps a test can hold back, and clients that misbehave."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import uvicorn
from page_check import find_browser
from starlette.types import ASGIApp

from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.model.protocol import CHOICE, Model, Models, Pending
from hetero_sd.runtime.serve.access import Access
from hetero_sd.runtime.serve.app import Server
from hetero_sd.runtime.serve.limits import Limits
from hetero_sd.runtime.serve.serve import ServeRequest, bind, http_thread
from hetero_sd.runtime.serve.session_engine import SessionEngine
from hetero_sd.runtime.session import Session

MODEL = "toy"


class Gated(Model):
    """A model whose steps wait for a permit while the gate is shut."""

    def __init__(self, model: Model) -> None:
        self._model, self.steps = model, 0
        self.vocab, self.context, self.name = model.vocab, model.context, model.name
        self._permits, self._open = threading.Semaphore(0), True

    def shut(self) -> None:
        self._open = False

    def permit(self, steps: int) -> None:
        self._permits.release(steps)

    def open(self) -> None:
        self._open = True
        self.permit(1)

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        if not self._open:
            assert self._permits.acquire(timeout=60)
        self.steps += 1
        return self._model.submit(ids, pos, outputs, last)


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """Of an error in OpenAI's form, which has nothing else."""
        found = self.json
        assert list(found) == ["error"]
        assert sorted(found["error"]) == ["code", "message", "param", "type"]
        assert "Traceback" not in self.text
        assert "\n" not in found["error"]["message"]
        error: dict[str, Any] = found["error"]
        return error


class Served:
    """A running server."""

    def __init__(self, port: int, engine: SessionEngine, gate: Gated, http: uvicorn.Server) -> None:
        self.port, self.engine, self.gate, self._http = port, engine, gate, http
        self.url = f"http://127.0.0.1:{port}"

    @property
    def connections(self) -> int:
        return len(self._http.server_state.connections)

    def ask(
        self, path: str, body: Any = None, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        connection.request(method or ("GET" if raw is None else "POST"), path, raw, sent)
        reply = connection.getresponse()
        found = Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode())
        connection.close()
        return found

    def complete(self, **body: Any) -> Reply:
        return self.ask("/v1/completions", {"prompt": "hello", "max_tokens": 8, **body})

    def open_stream(self, **body: Any) -> socket.socket:
        """A connection on which a streamed completion was asked for, and nothing read."""
        raw = json.dumps({"prompt": "hello", "max_tokens": 8, "stream": True, **body}).encode()
        return self.open_connection(_head("/v1/completions", len(raw)) + raw)

    def open_connection(self, sent: bytes) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(("127.0.0.1", self.port))
        client.sendall(sent)
        return client

    def wait_until(self, holds: Callable[[], object]) -> None:
        """Until another thread has done something; how long that takes decides nothing."""
        for _ in range(6000):
            if holds():
                return
            time.sleep(0.01)
        raise AssertionError("it never came")


def read_to_the_end(client: socket.socket) -> bytes:
    """What comes until the server ends the connection, in whichever way."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            said += part
    client.close()
    return said


def _head(path: str, length: int) -> bytes:
    kind = "Host: localhost\r\nContent-Type: application/json"
    return f"POST {path} HTTP/1.1\r\n{kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def open_files() -> list[str]:
    """Of this process, by number and name."""
    found = []
    for number in sorted(os.listdir("/proc/self/fd"), key=int):
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            found.append(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return found


@contextmanager
def serving(
    session: Session,
    most_waiting: int = 4,
    limits: Limits | None = None,
    token: str | None = None,
    defaults: Options | None = None,
    around: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> Iterator[Served]:
    """A server over a session, its engine on a thread of its own; at the end no thread and no open file is left."""
    before = {*threading.enumerate(), *open_files()}
    limits, gate = limits or Limits(), Gated(session.models.target)
    session.models = Models(gate, session.models.draft)
    request = ServeRequest("127.0.0.1", 0, token, most_waiting, MODEL, 1700000000, defaults or Options())
    engine = SessionEngine(session, most_waiting, limits.answer_s)
    server = Server(engine, MODEL, request.made_s, request.defaults, limits)
    bound = bind(request)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of its connections: an unread reply fills it soon
    port = bound.getsockname()[1]
    thread = threading.Thread(target=engine.run)
    with http_thread(around(server.app(Access(token, only_local=True))), bound, limits, engine.stop) as http:
        thread.start()
        try:
            yield Served(port, engine, gate, http)
        finally:
            engine.stop()
            gate.open()
            thread.join()
    assert {*threading.enumerate(), *open_files()} - before == set()


@pytest.fixture(scope="package")
def browser() -> str:
    """Chromium, which draws the page."""
    return find_browser()


@pytest.fixture(scope="session")
def to_the_end() -> Callable[[socket.socket], bytes]:
    return read_to_the_end


@pytest.fixture
def serve(letters: Callable[..., Session]) -> Callable[..., Any]:
    """Starts a server over a session of four letters: `with serve(...) as served`."""

    def start(drafts: bool = False, chats: bool = True, context: int = 400, **more: Any) -> Any:
        repeatable = FixedGamma(2) if drafts else None
        return serving(letters(context=context, drafts=drafts, chats=chats, repeatable=repeatable), **more)

    return start


@pytest.fixture(scope="package")
def session_letters(
    tmp_path_factory: pytest.TempPathFactory, tokenizers_by_kind: Any, table_model: Any
) -> Callable[..., Session]:
    """`letters` for tests that hypothesis runs many times."""
    from hetero_sd.runtime.decode.generate import Request
    from hetero_sd.runtime.model.kept_prefix import kept_prefixes
    from hetero_sd.runtime.model.protocol import Models
    from hetero_sd.runtime.text.tokenizer import FILES, Text

    folder = tmp_path_factory.mktemp("letters")
    tokenizers_by_kind["byte level"].save(str(folder / "tokenizer.json"))

    def make(chats: bool = True) -> Session:
        text = Text(lambda name: folder / name if name == FILES[0] else None)
        table = np.full((11, text.vocab), -9.0)
        table[:, 64:68] = np.random.default_rng(3).standard_normal((11, 4))
        return Session(kept_prefixes(Models(table_model(table, 400, "target"))), text, Request(4))

    return make
