"""`run.py --serve`: the engine on the main thread, which loaded the models, and HTTP on a thread beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.decode.choose_policy import NGRAM
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.serve.access import Access, is_loopback
from hetero_sd.runtime.serve.app import Server
from hetero_sd.runtime.serve.batch_engine import BatchEngine, slots_at_a_time
from hetero_sd.runtime.serve.connections import bounded_protocol
from hetero_sd.runtime.serve.limits import Limits
from hetero_sd.runtime.serve.session_engine import SessionEngine
from hetero_sd.runtime.session import Session
from targets.errors import UserError

_CONNECTIONS_BESIDE = 47  # those of requests that wait or are answered


@dataclass(frozen=True)
class ServeRequest:
    """How a bundle is served.

    Attributes:
        host, port: that it listens on; port 0 takes a free one.
        token: that requests must carry, or None.
        most_waiting: requests that wait while as many are answered as can be at a time.
        model: its name.
        made_s: when the bundle was made, seconds since 1970.
        defaults: for what requests leave out.
        cpus: that HTTP may use, where the models are kept on a cluster of them; none leaves that to the system.
        keep_rows: of the KV cache, for texts that have no slot any more.
        between_tokens_s: that a text waits at most while prompts of others are read; None leaves that to the engine.
        drafters: of several that are answered at a time: MODEL is the draft model, where there is one, NGRAM what the
            texts and their slots' texts before had.
    """

    host: str
    port: int
    token: str | None
    most_waiting: int
    model: str
    made_s: int
    defaults: Options
    cpus: Sequence[int] = ()
    keep_rows: int = 0
    between_tokens_s: float | None = None
    drafters: Sequence[str] = (MODEL, NGRAM)


def bind(request: ServeRequest) -> socket.socket:
    """Take the address, before the models are loaded.

    Raises:
        UserError: it is in use or none of this machine, or others reach it and no token is asked for.
    """
    if request.token is None and not is_loopback(request.host):
        raise UserError(f"--host {request.host} is reached from other machines: give --token, too, or leave it out")
    bound = None
    try:
        family, kind, number, _, address = socket.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except (OSError, UnicodeError) as error:
        if bound is not None:
            bound.close()
        reason = getattr(error, "strerror", None) or "there is no such host"
        raise UserError(f"--host {request.host} --port {request.port}: {reason}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(session: Session, request: ServeRequest, bound: socket.socket, limits: Limits | None = None) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which end what is running; then no thread is left."""
    slots = slots_at_a_time(session)
    at_a_time = 1 if slots is None else slots.slots
    limits = limits or Limits(connections=request.most_waiting + at_a_time + _CONNECTIONS_BESIDE)
    engine: SessionEngine | BatchEngine
    if slots is None:
        engine = SessionEngine(session, request.most_waiting, limits.answer_s)
    else:
        bounds = request.most_waiting, limits.answer_s, request.keep_rows, request.between_tokens_s
        drafter = session.draft_slots if MODEL in request.drafters else None
        engine = BatchEngine(session, slots, *bounds, drafts=NGRAM in request.drafters, drafter=drafter)
    server = Server(engine, request.model, request.made_s, request.defaults, limits)
    access = Access(request.token, is_loopback(request.host))
    http = http_thread(server.app(access), bound, limits, engine.stop, request.cpus)
    with ending_signals(engine.stop), http:
        several = "" if slots is None else f", {at_a_time} requests at a time"
        said = f"run.py: {request.model} is served at {url_of(bound)}{several} (Ctrl-C ends it)"
        print(said, file=sys.stderr, flush=True)
        engine.run()


@contextmanager
def ending_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C or SIGTERM; the second one does what it does otherwise."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        stop()

    def restore() -> None:
        for number, handler in kept.items():
            signal.signal(number, handler)

    for number in kept:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()


@contextmanager
def http_thread(
    app: ASGIApp, bound: socket.socket, limits: Limits, ended: Callable[[], None], cpus: Sequence[int] = ()
) -> Iterator[uvicorn.Server]:
    """Serve an application on a thread of its own, on those CPUs, and join it; `ended` is called when it ends.

    Raises:
        Exception: the one that ended the thread.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=bounded_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=limits.ending_s,
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every client that resets its connection
    http = uvicorn.Server(config)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if cpus and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cpus)  # of this thread alone
            asyncio.run(http.serve(sockets=[bound]))
        except BaseException as error:
            failed.append(error)
        finally:
            ended()

    thread = threading.Thread(target=run, name="http")
    thread.start()
    try:
        yield http
    finally:
        http.should_exit = True
        thread.join()
        with contextlib.suppress(OSError):
            bound.close()
    if failed:
        raise failed[0]
