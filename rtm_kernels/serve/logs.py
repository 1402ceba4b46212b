"""Log lines of the server, for a person or as JSON, on standard error."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import time
import traceback
from typing import TextIO

from rtm_kernels.errors import one_line

log = logging.getLogger("rtm.serve")

FIELDS = ("request_id", "route", "method", "status", "code", "seconds", "model", "puzzles", "worker", "held", "reason",
          "address")  # fmt: skip


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


class Stream(logging.StreamHandler):
    """Writes lines while somebody reads them."""

    def handleError(self, record: logging.LogRecord) -> None:
        """The reader is gone. Telling that on standard error would come back as a line to write."""


END = "\0\n"


def only_json() -> TextIO:
    """The standard error that was, for lines of JSON alone.

    What else is written to it from now on, by this process or one that it starts, a warning, a traceback or a word of
    a library, becomes a line with the event `stderr` and the text as its `reason`.
    """
    sys.stderr.flush()
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    thread = threading.Thread(target=pass_on, args=(reading,), daemon=True)
    thread.start()

    def finish() -> None:
        sys.stderr.flush()
        os.write(2, f"\n{END}".encode())
        thread.join(5)

    atexit.register(finish)
    return stream


def pass_on(reading: int) -> None:
    """Log every line of a pipe until `END`."""
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line == END:
                return
            if line.strip():
                log.warning("stderr", extra={"reason": one_line(line.strip())})


def configure(as_json: bool) -> None:
    """Send the server's log to standard error; uvicorn's own only when something is wrong."""
    handler = Stream(only_json()) if as_json else logging.StreamHandler()
    handler.setFormatter(Lines(as_json))
    for name, level in (("rtm.serve", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
