"""HTTP connections that end where a client sends no request, or reads no reply."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from hetero_sd.runtime.serve.limits import Limits


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Uvicorn's connection with bounds of its own: that waits for heads and for readers as long as a client likes."""

    class BoundedProtocol(H11Protocol):
        """A connection that is closed where no request comes, and where a reply stays unread."""

        _waits: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Wait for a request, or close at once where there are too many connections."""
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._wait()

        def data_received(self, data: bytes) -> None:
            """Read; a part of a head is no request."""
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()

        def on_response_complete(self) -> None:
            """Wait for the next request."""
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """Wait no more."""
            self._stop_waiting()
            self._is_read()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            """The buffers to the client are full."""
            super().pause_writing()
            self._is_read()
            self._unread = self.loop.call_later(limits.write_s, self.transport.abort)

        def resume_writing(self) -> None:
            """It reads."""
            super().resume_writing()
            self._is_read()

        def _is_read(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _wait(self) -> None:
            self._stop_waiting()
            self._waits = self.loop.call_later(limits.head_s, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waits is not None:
                self._waits.cancel()
                self._waits = None

    return BoundedProtocol
