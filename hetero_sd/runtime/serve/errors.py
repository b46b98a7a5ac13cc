"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetero_sd.runtime.serve.engine import ENDING, PROMPT_TOO_LONG, REFUSED, TOOK_TOO_LONG, Failed

_INVALID, _SERVER, _LIMIT, _AUTHENTICATION = (
    "invalid_request_error",
    "server_error",
    "rate_limit_error",
    "authentication_error",
)
_STATUS = {REFUSED: 400, PROMPT_TOO_LONG: 400, ENDING: 503, TOOK_TOO_LONG: 504}
_TYPES = {401: _AUTHENTICATION, 429: _LIMIT}


class ApiError(Exception):
    """What a client is told in place of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say it with an HTTP status; `parameter` is the one that is wrong, `code` OpenAI's word for it."""
        super().__init__(message)
        self.status, self.message, self.parameter, self.code = status, message, parameter, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """The body of the reply."""
        kind = _TYPES.get(self.status, _SERVER if self.status >= 500 else _INVALID)
        said = {"message": self.message, "type": kind, "param": self.parameter, "code": self.code}
        return {"error": said}


def of_failure(failed: Failed) -> ApiError:
    """What is told of an engine's failure."""
    code = "context_length_exceeded" if failed.kind == PROMPT_TOO_LONG else None
    return ApiError(_STATUS.get(failed.kind, 500), failed.message, code=code)
