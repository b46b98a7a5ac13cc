"""benchmarks/serve_http.py: what a client counts of streamed answers, and that it starts and ends a server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LLAMA_SERVER = '''#!{python}
"""Stands for llama-server: says with each answer how it was started."""
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_message = lambda *_: None

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if asked["cache_prompt"] is False else 400)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        new = asked["max_tokens"] - ("short" in sys.argv)
        events = [{{"choices": [{{"text": f" {{i}}"}}]}} for i in range(new)]
        events += [{{"choices": [{{"text": ""}}]}}, {{"choices": [], "usage": {{"completion_tokens": new}}}}]
        body = "".join(f"data: {{json.dumps(event)}}\\n\\n" for event in events) + "data: [DONE]\\n\\n"
        for at in range(0, len(body), 50):  # no chunk is an event
            part = body[at : at + 50].encode()
            self.wfile.write(f"{{len(part):x}}\\r\\n".encode() + part + b"\\r\\n")
        self.wfile.write(b"0\\r\\n\\r\\n")
        self.close_connection = True

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert (options["-np"], options["-c"], options["-t"], options["-ctk"]) == ("3", "48", "2", "f16"), options
http.server.ThreadingHTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
'''


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_peer_is_started_asked_and_ended(tmp_path: Path) -> None:
    from serve_http import llama_server

    binary = tmp_path / "llama-server"
    binary.write_text(LLAMA_SERVER.format(python=sys.executable))
    binary.chmod(0o755)
    with llama_server(binary, tmp_path / "model.gguf", 3, 16, "float16", 2) as server:
        found = server.answer([[1, 2], [3], [4, 5]], 6)
        assert [len(times) for times in found.times] == [6, 6, 6]
        assert found.wall_s >= max(max(times) for times in found.times) - min(min(times) for times in found.times)
        assert found.gap_ms >= 0
        port = server.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    binary.write_text(LLAMA_SERVER.format(python=sys.executable).replace('"short" in sys.argv', "1"))
    with (
        llama_server(binary, tmp_path / "model.gguf", 3, 16, "float16", 2) as server,
        pytest.raises(SystemExit, match="wrote 5 tokens, not 6"),
    ):
        server.answer([[1]], 6)
    with pytest.raises(SystemExit, match="does not start"), llama_server(binary, tmp_path, 4, 16, "float16", 2):
        pass


@contextmanager
def refusing() -> Iterator[int]:
    """A server that refuses one request."""
    with socket.create_server(("127.0.0.1", 0)) as bound:

        def refuse() -> None:
            client, _ = bound.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + json.dumps("no").encode())

        thread = threading.Thread(target=refuse)
        thread.start()
        yield bound.getsockname()[1]
        thread.join()


def test_a_refusal_ends_the_benchmark() -> None:
    from serve_http import HttpServer

    with refusing() as port, pytest.raises(SystemExit, match='400 Bad Request: "no"'):
        HttpServer(port, {}).answer([[1]], 2)


def test_a_program_that_is_not_there_is_said_at_once() -> None:
    command = [sys.executable, "benchmarks/serve.py", "--llama-server", "/nowhere/llama-server"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "there is no such program" in done.stderr
