"""Who may connect: loopback addresses, and the token that any other address needs."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from rtm_kernels.errors import require

VARIABLE = "RTM_TOKEN"


def is_loopback(host: str) -> bool:
    """Whether `host` is an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local_name(header: bytes) -> bool:
    """Whether a Host header, with or without a port, is a loopback name: no page of another site sent it."""
    text = header.decode("latin-1").lower()
    return (text[: text.find("]") + 1] or text.partition(":")[0]) in ("localhost", "127.0.0.1", "[::1]")


class Token:
    """What every request has to carry, as `Authorization: Bearer TOKEN`. Only its sha256 is kept.

    Errors: `InputError`, which does not repeat the text, unless it is 16 to 4096 visible ASCII characters.
    """

    def __init__(self, text: str) -> None:
        fits = 16 <= len(text) <= 4096 and all("!" <= character <= "~" for character in text)
        require(fits, "token", "...", "16 to 4096 printable ASCII characters without spaces")
        self._digest = hashlib.sha256(text.encode()).digest()

    @classmethod
    def find(cls, path: Path | None) -> Token | None:
        """The token of a file, or without one of the variable RTM_TOKEN; None where that is not set."""
        text = os.environ.get(VARIABLE) if path is None else path.read_text("utf-8", errors="replace").strip()
        return None if text is None else cls(text)

    def opens(self, authorization: bytes) -> bool:
        """Whether the header `Authorization` carries the token."""
        scheme, _, text = authorization.partition(b" ")
        equal = hmac.compare_digest(hashlib.sha256(text.strip()).digest(), self._digest)
        return scheme.lower() == b"bearer" and equal
