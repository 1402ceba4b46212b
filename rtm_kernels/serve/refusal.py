"""Refusals: every error has the same form."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that is answered with `status` and an error of `code`, and with `retry_after` seconds where given."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def body(self, request_id: str) -> bytes:
        """`{"error": {"code", "message", "request_id"}}`."""
        return json.dumps({"error": {"code": self.code, "message": self.message, "request_id": request_id}}).encode()

    def headers(self) -> dict[str, str]:
        """The headers that go with the body."""
        found = {"content-type": "application/json"}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def unavailable(code: str, message: str, retry_after: int = 1) -> Refused:
    """503: nothing is wrong with the request, and later it may be taken."""
    return Refused(503, code, message, retry_after)
