"""The paths of the server; whatever goes wrong in them is told in OpenAI's form, without a traceback."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.internal_error import report
from hetero_sd.runtime.serve.access import Access
from hetero_sd.runtime.serve.answering import Answering
from hetero_sd.runtime.serve.engine import Engine
from hetero_sd.runtime.serve.errors import ApiError
from hetero_sd.runtime.serve.limits import Limits
from hetero_sd.runtime.serve.metrics import CONTENT_TYPE, metrics_text
from hetero_sd.runtime.serve.parameters import parse_body, parse_request

PAGE = Path(__file__).with_name("page.html")
_FAULT = ApiError(500, "the server failed on this request; what it printed says more")
_SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}


class Server:
    """What the paths have in common."""

    def __init__(self, engine: Engine, model: str, made_s: int, defaults: Options, limits: Limits) -> None:
        """Answer with an engine.

        Args:
            engine: makes the text.
            model: its name.
            made_s: when the bundle was made, seconds since 1970.
            defaults: for what requests leave out.
            limits: of what clients may take.
        """
        self._engine, self._model, self._made_s = engine, model, made_s
        self._defaults, self._limits = defaults, limits
        self._page = PAGE.read_text("utf-8")
        self._policy = _content_policy(self._page)

    def app(self, access: Access) -> ASGIApp:
        """All of it, for an ASGI server."""
        routes = [
            Route("/", self._show_page),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name}", self._one_model),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        told = {ApiError: _tell, HTTPException: _tell_http, Exception: _tell_fault}
        return Guard(Starlette(routes=routes, exception_handlers=told), access)  # type: ignore[arg-type]

    async def _show_page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers={**_SAFE, "content-security-policy": self._policy})

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        text = metrics_text(self._engine.snapshot())
        return PlainTextResponse(text, headers={"content-type": CONTENT_TYPE})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self._model:
            raise ApiError(404, f"there is no such model: this server has {self._model!r}", "model", "model_not_found")
        return JSONResponse(self._card())

    def _card(self) -> dict[str, object]:
        return {"id": self._model, "object": "model", "created": self._made_s, "owned_by": "hetero-sd"}

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, chat: bool) -> Response:
        body = parse_body(await read_body(request, self._limits))
        asked = parse_request(body, chat, self._model, self._defaults)
        return Answering(self._engine, asked, self._model)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        ApiError: it is no JSON, too large, or comes too slowly.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another site cannot send without asking first
        raise ApiError(415, "the body is not announced as JSON: send `Content-Type: application/json`")
    too_large = ApiError(413, f"the body has more than {limits.body_bytes} bytes", headers={"connection": "close"})
    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit() or int(announced[:20]) > limits.body_bytes:
        raise too_large

    async def read() -> bytes:
        found = bytearray()
        async for part in request.stream():
            found += part
            if len(found) > limits.body_bytes:
                raise too_large
        return bytes(found)

    try:
        return await asyncio.wait_for(read(), limits.body_s)
    except asyncio.TimeoutError:
        message = f"the body did not come within {limits.body_s:g} s"
        raise ApiError(408, message, headers={"connection": "close"}) from None


class Guard:
    """An ASGI application around another: it admits requests, and no exception leaves it."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Admit to `app` what `access` lets pass."""
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        reply: Response | None = None
        try:
            request = Request(scope)
            self._access.check(request.url.path, request.headers)
            await self._app(scope, receive, watched)
        except ApiError as error:
            reply = _said(error)
        except ClientDisconnect:
            return  # nobody reads
        except Exception as error:
            report("run.py", "answering a request", error)
            reply = _said(_FAULT)
        if reply is not None and not begun:
            await reply(scope, receive, send)


async def _tell(request: Request, error: ApiError) -> Response:
    return _said(error)


async def _tell_fault(request: Request, error: Exception) -> Response:
    return _said(_FAULT)


async def _tell_http(request: Request, error: HTTPException) -> Response:
    message = {404: "there is no such path", 405: "this path does not take that method"}.get(error.status_code)
    return _said(ApiError(error.status_code, message or error.detail, headers=error.headers))


def _said(error: ApiError) -> Response:
    return JSONResponse(error.to_json(), status_code=error.status, headers=error.headers)


def _content_policy(page: str) -> str:
    """What a browser may do for the page: run its own script, ask this server, and nothing else."""
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[1].encode() if script else b"").digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
