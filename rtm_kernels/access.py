"""Who may connect: loopback addresses, and the token that any other address needs."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
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
    """Whether a Host header, with or without a port, is a loopback name: it was not sent by a page of another site."""
    text = header.decode("latin-1").lower()
    return (text[: text.find("]") + 1] or text.partition(":")[0]) in ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Token:
    """What every request has to carry, as `Authorization: Bearer TOKEN`. Only its sha256 is kept."""

    digest: bytes

    @classmethod
    def of(cls, text: str) -> Token:
        """Errors: `InputError`, which does not repeat the text, unless it is 16 to 4096 visible ASCII characters."""
        fits = 16 <= len(text) <= 4096 and all("!" <= character <= "~" for character in text)
        require(fits, "token", "...", "16 to 4096 printable ASCII characters without spaces")
        return cls(hashlib.sha256(text.encode()).digest())

    @classmethod
    def find(cls, path: Path | None) -> Token | None:
        """The token of a file, or without one of the variable RTM_TOKEN; None where that is not set.

        Errors: as `of`, and `OSError` for the file.
        """
        if path is not None:
            return cls.of(path.read_text(encoding="utf-8", errors="replace").strip())
        return cls.of(os.environ[VARIABLE]) if VARIABLE in os.environ else None

    def opens(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the headers of a request, their names in lower case, carry the token exactly once."""
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, text = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        equal = hmac.compare_digest(hashlib.sha256(text.strip()).digest(), self.digest)
        return scheme.lower() == b"bearer" and equal


def check_address(host: str, token: Token | None) -> None:
    """Raise `InputError` for an address that others reach, unless a token guards it."""
    allowed = f"an address other than loopback needs a token (--token-file, or {VARIABLE})"
    require(is_loopback(host) or token is not None, "host", host, allowed)
