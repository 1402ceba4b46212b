"""Log lines of the server, for a person or as JSON, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import traceback


class Lines(logging.Formatter):
    """One line per record: its message and the mapping that it carries as `fields`."""

    def __init__(self, as_json: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """JSON with `time` in seconds since 1970, or `time level message field=value ...`."""
        values = {name: value for name, value in getattr(record, "fields", {}).items() if value != ""}
        if record.exc_info and record.exc_info[1] is not None:
            last = traceback.extract_tb(record.exc_info[2])[-1]
            values["error"] = f"{type(record.exc_info[1]).__name__} in {last.name}:{last.lineno}"
        level, text = record.levelname.lower(), record.getMessage()
        if self.as_json:
            return json.dumps({"time": round(record.created, 3), "level": level, "event": text} | values)
        return " ".join([self.formatTime(record, self.datefmt), level, text, *(f"{k}={v}" for k, v in values.items())])


def configure(as_json: bool) -> None:
    """Send the log to standard error, uvicorn's and asyncio's only errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json))
    for name, level in (("rtm.serve", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
