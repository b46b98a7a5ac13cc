"""What one client may take of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds; a client that reaches one is answered with an error, or its connection is closed.

    Attributes:
        body_bytes: of a request.
        head_s: from the connection, or the reply before, until the head of a request is there.
        body_s: for the body after it.
        write_s: that a client may leave a reply unread when the buffers to it are full.
        answer_s: for all choices of a request, from its turn.
        connections: at a time.
        ending_s: for replies that are being sent when the server ends.
    """

    body_bytes: int = 1 << 20
    head_s: float = 10.0
    body_s: float = 10.0
    write_s: float = 30.0
    answer_s: float = 600.0
    connections: int = 64
    ending_s: int = 5
