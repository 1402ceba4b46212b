"""Log lines of the server, for a person or as JSON, on standard error."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import traceback

from rtm_kernels.errors import one_line

log = logging.getLogger("rtm.serve")

FIELDS = ("request_id", "route", "method", "status", "code", "seconds", "model", "puzzles", "reason", "address")


class Lines(logging.Formatter):
    """One line per record: its message and the known extra fields, in this order."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """JSON with `time` in seconds since 1970, or `time level message field=value ...`."""
        values = {name: getattr(record, name) for name in FIELDS if getattr(record, name, "") != ""}
        if record.exc_info and record.exc_info[1] is not None:
            last = traceback.extract_tb(record.exc_info[2])[-1]
            values["error"] = f"{type(record.exc_info[1]).__name__} in {last.name}:{last.lineno}"
        if self.as_json:
            head = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
            return json.dumps(head | values)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        said = " ".join(f"{name}={value}" for name, value in values.items())
        return f"{clock} {record.levelname.lower()} {record.getMessage()} {said}".rstrip()


class AsEvents(io.TextIOBase):
    """A standard error whose every line becomes a log line with the event `stderr` and the text as its `reason`."""

    begun = ""

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`."""
        *lines, self.begun = (self.begun + text).split("\n")
        for line in filter(str.strip, lines):
            log.warning("stderr", extra={"reason": one_line(line.strip())})
        return len(text)


def configure(as_json: bool) -> None:
    """Send the server's log to standard error, with `as_json` also what Python code writes there; uvicorn's own and
    asyncio's only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json))
    if as_json:
        sys.stderr = AsEvents()
    for name, level in (("rtm.serve", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
