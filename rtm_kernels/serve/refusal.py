"""Errors: every refusal has the same JSON form, and one function names the arguments at fault."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from rtm_kernels.errors import one_line

MAX_FAULTS = 5
"""Faults that one message names."""


class Refused(Exception):
    """A request that is answered with `status` and an error of `code`; `headers` go with it."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self, request_id: str) -> JSONResponse:
        """`{"error": {"code", "message", "request_id"}}`."""
        error = {"code": self.code, "message": self.message, "request_id": request_id}
        return JSONResponse({"error": error}, self.status, self.headers)


def unavailable(code: str, message: str, retry_after: int = 1) -> Refused:
    """503: the request is sound, and may be sent again in `retry_after` seconds."""
    return Refused(503, code, message, {"retry-after": str(retry_after)})


def explained(faults: list[Any]) -> str:
    """One line with each argument at fault and what is wrong with it, of the errors that pydantic lists; at most 5."""
    parts = [f"{'.'.join(map(str, f['loc']))[:80] or 'arguments'}: {f['msg']}"[:200] for f in faults[:MAX_FAULTS]]
    more = [f"{len(faults) - MAX_FAULTS} more faults"] if len(faults) > MAX_FAULTS else []
    return one_line("; ".join(parts + more))
