"""From an engine's events to a reply: whole, or as server-sent events; it ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from hetero_sd.runtime.serve.counts import TokenCounts
from hetero_sd.runtime.serve.engine import (
    ChoiceEnded,
    Ended,
    Engine,
    EngineEnding,
    Event,
    Failed,
    QueueFull,
    TextPiece,
)
from hetero_sd.runtime.serve.errors import ApiError, of_failure
from hetero_sd.runtime.serve.parameters import Asked
from hetero_sd.runtime.serve.replies import Reply, usage_of
from hetero_sd.runtime.serve.shown_tokens import ShownToken

_RETRY_AFTER_S = 1


class Answering(Response):
    """The reply to a request that was understood."""

    def __init__(self, engine: Engine, asked: Asked, model: str) -> None:
        """Ask the engine when the reply is sent."""
        super().__init__()
        self._engine, self._asked = engine, asked
        self._reply = Reply(model, asked.chat, asked.usage_in_stream)
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit, and send what comes until it ends or the client has left.

        Raises:
            ApiError: there is no answer, and nothing was sent.
        """
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        try:
            job = self._engine.submit(self._asked.generation, deliver)
        except QueueFull:
            message = "the queue is full: ask again later"
            raise ApiError(429, message, headers={"retry-after": str(_RETRY_AFTER_S)}) from None
        except EngineEnding:
            raise ApiError(503, "the server ends: ask again later") from None
        left = asyncio.ensure_future(_until_the_client_leaves(receive))
        work = asyncio.ensure_future(self._send(scope, receive, send))
        try:
            await asyncio.wait({left, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            job.cancel()
            for task in (left, work):
                task.cancel()
            await asyncio.gather(left, work, return_exceptions=True)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await self._events.get()
        if isinstance(first, Failed):
            raise of_failure(first)
        if self._asked.stream:
            await self._stream(send)
        else:
            await JSONResponse(await self._whole())(scope, receive, send)

    async def _whole(self) -> dict[str, Any]:
        texts = [""] * self._asked.generation.choices
        tokens: list[list[ShownToken] | None] = [[] if self._asked.logprobs else None for _ in texts]
        ended: list[ChoiceEnded] = []
        while not isinstance(event := await self._events.get(), Ended):
            if isinstance(event, Failed):
                raise of_failure(event)
            if isinstance(event, TextPiece):
                texts[event.choice] += event.text
                if (of_choice := tokens[event.choice]) is not None:
                    of_choice += event.tokens
            elif isinstance(event, ChoiceEnded):
                ended.append(event)
        ended.sort(key=lambda one: one.choice)
        usage = usage_of([one.counts for one in ended])
        return self._reply.whole(texts, [one.reason for one in ended], usage, tokens)

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        said: dict[int, int] = {}  # characters of each choice that has begun
        counts: dict[int, TokenCounts] = {}
        while not isinstance(event := await self._events.get(), Ended):
            if isinstance(event, Failed):
                await self._say(send, of_failure(event).to_json())
                break
            if isinstance(event, (TextPiece, ChoiceEnded)) and event.choice not in said:
                said[event.choice] = 0
                await self._say(send, self._reply.opening(event.choice))
            if isinstance(event, TextPiece):
                tokens = event.tokens if self._asked.logprobs else None
                await self._say(send, self._reply.piece(event.choice, event.text, tokens, said[event.choice]))
                said[event.choice] += len(event.text)
            elif isinstance(event, ChoiceEnded):
                counts[event.choice] = event.counts
                await self._say(send, self._reply.end(event.choice, event.reason))
        else:
            if self._asked.usage_in_stream:
                await self._say(send, self._reply.usage(usage_of([counts[choice] for choice in sorted(counts)])))
        await send(_body(b"data: [DONE]\n\n", more=False))

    async def _say(self, send: Send, what: Mapping[str, Any] | None) -> None:
        if what is not None:
            await send(_body(b"data: " + json.dumps(what).encode() + b"\n\n"))


def _body(content: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _until_the_client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
