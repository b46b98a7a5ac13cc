"""Our server and llama.cpp's own over loopback: the same requests to both, by one client, in turn (serve.py).

Requests are streamed from /v1/completions with prompts of token ids, greedy, all of them at once; what a client waits
for is what counts. llama.cpp's server (llama-server of its sources, which the user builds) has as many slots, the same
threads and KV caches, keeps no prompt between requests and samples with its cheapest chain; the rest is its default.
Run as a program it is our server for a bundle without a tokenizer: the text of a token is its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from serve_requests import NEW, PROMPT, load_session

_START_S, _ANSWER_S = 120.0, 600.0
_KV = {"float32": "f32", "float16": "f16"}
_CHEAPEST = {
    "samplers": ["top_k"],
    "top_k": 1,
    "ignore_eos": True,
    "cache_prompt": False,
}  # what llama.cpp is told more


@dataclass(frozen=True)
class Streamed:
    """Answers to requests that were sent at once: seconds until the last one, and when each token of each came."""

    wall_s: float
    times: list[list[float]]

    @property
    def gap_ms(self) -> float:
        """Between two tokens of a text, the median."""
        return 1e3 * statistics.median(b - a for text in self.times for a, b in pairwise(text))


@dataclass(frozen=True)
class HttpServer:
    """A server that runs, and what requests say to it alone."""

    port: int
    more: Mapping[str, Any]

    def answer(self, prompts: Sequence[Sequence[int]], new: int) -> Streamed:
        """So many tokens after each prompt.

        Raises:
            SystemExit: the server refuses, or an answer has another length.
        """
        begin = time.perf_counter()
        times = asyncio.run(asyncio.wait_for(self._all(prompts, new), _ANSWER_S))
        return Streamed(time.perf_counter() - begin, times)

    async def _all(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[float]]:
        return [*await asyncio.gather(*(self._one(prompt, new) for prompt in prompts))]

    async def _one(self, prompt: Sequence[int], new: int) -> list[float]:
        asked = {"prompt": [*prompt], "max_tokens": new, "temperature": 0, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        body = json.dumps(asked | self.more).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        status = (await reader.readline()).decode().strip()
        while await reader.readline() not in (b"\r\n", b""):
            pass
        if " 200 " not in f"{status} ":
            raise SystemExit(f"a server answers {status}: {(await reader.read(500)).decode(errors='replace')}")
        times, made = list[float](), 0
        async for event in _events(reader):
            now = time.perf_counter()
            times += [now] * any(choice.get("text") for choice in event.get("choices", ()))
            made = (event.get("usage") or {}).get("completion_tokens", made)
        writer.close()
        if made != new:
            raise SystemExit(f"a server wrote {made} tokens, not {new}")
        return times


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events of a chunked reply, up to its end or [DONE]."""
    rest = b""
    while size := int((await reader.readline()).strip() or b"0", 16):
        rest += await reader.readexactly(size)
        await reader.readline()
        *whole, rest = rest.split(b"\n\n")
        for event in whole:
            data = event.strip().removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if data.startswith(b"{"):
                yield json.loads(data)


@contextmanager
def own_server(bundle: Path) -> Iterator[HttpServer]:
    """Ours, on a bundle with slots, in a process of its own with this one's environment."""
    command = [sys.executable, str(Path(__file__).resolve()), str(bundle)]
    with _ended(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said = line
            if found := re.search(r"is served at http://127\.0\.0\.1:(\d+)", line):
                yield HttpServer(int(found[1]), {})
                return
        raise SystemExit(f"our server does not start: {said.strip()}")


@contextmanager
def llama_server(binary: Path, gguf: Path, slots: int, context: int, kv: str, threads: int) -> Iterator[HttpServer]:
    """llama.cpp's, on a GGUF file with a vocabulary, with so many slots of `context` tokens each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(binary), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port), "-np", str(slots)]
    command += ["-c", str(context * slots), "-t", str(threads), "-tb", str(threads), "-ctk", _KV[kv], "-ctv", _KV[kv]]
    with _ended(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)) as process:
        end = time.monotonic() + _START_S
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)} does not start")
            time.sleep(0.2)
        yield HttpServer(port, _CHEAPEST)


def _healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200)
    return False


@contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def over_http(ours: HttpServer, theirs: HttpServer, vocab: int, requests: int, repeats: int) -> list[dict[str, float]]:
    """The same requests to both servers, in turn."""
    found = []
    for repeat in range(repeats + 1):
        rng = np.random.default_rng(200 + repeat)
        prompts = [rng.integers(3, vocab, PROMPT).tolist() for _ in range(requests)]
        mine, other = (server.answer(prompts, NEW) for server in (ours, theirs))
        if repeat:
            found.append(
                {
                    "ours_tokens_per_s": requests * NEW / mine.wall_s,
                    "llama_server_tokens_per_s": requests * NEW / other.wall_s,
                    "ours_gap_ms": mine.gap_ms,
                    "llama_server_gap_ms": other.gap_ms,
                }
            )
    return found


def main() -> None:
    """Serve the bundle of the command line on a free port."""
    from hetero_sd.runtime.serve.serve import ServeRequest, bind, serve

    folder = Path(sys.argv[1])
    request = ServeRequest("127.0.0.1", 0, None, 64, "bundle", 0, {})
    with bind(request) as bound:
        serve(load_session(folder), request, bound)


if __name__ == "__main__":
    main()
