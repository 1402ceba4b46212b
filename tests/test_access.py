"""One rule of addresses and tokens for everything that listens."""

from __future__ import annotations

import pytest

from rtm_kernels.access import Token, is_loopback
from rtm_kernels.errors import InputError

TEXT = "a-token-of-enough-characters"


@pytest.mark.parametrize(
    ("header", "opens"),
    [
        (f"Bearer {TEXT}", True), (f"bearer   {TEXT} ", True), ("", False), ("Bearer", False), (TEXT, False),
        (f"Basic {TEXT}", False), (f"Bearer {TEXT}x", False), (f"Bearer {TEXT[:-1]}", False),
    ],
)  # fmt: skip
def test_what_opens(header: str, opens: bool) -> None:
    assert Token(TEXT).opens(header.encode()) is opens


@pytest.mark.parametrize("text", ["", "x" * 15, "x" * 4097, "with a space inside it", "é" * 20, "x" * 20 + "\n"])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InputError, match=r"token='\.\.\.' is not allowed: 16 to 4096 printable ASCII") as error:
        Token(text)
    assert not text or text not in str(error.value)


def test_where_it_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RTM_TOKEN", raising=False)
    assert Token.find(None) is None
    monkeypatch.setenv("RTM_TOKEN", "another-token-of-enough")
    (tmp_path / "token").write_text(f"{TEXT}\n")
    from_file, from_variable = Token.find(tmp_path / "token"), Token.find(None)
    assert from_file is not None and from_file.opens(f"Bearer {TEXT}".encode())
    assert from_variable is not None and from_variable.opens(b"Bearer another-token-of-enough")
    for variable in ("", "short"):  # set, and no token: refused, not ignored
        monkeypatch.setenv("RTM_TOKEN", variable)
        with pytest.raises(InputError):
            Token.find(None)


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.nip.io", "")))
