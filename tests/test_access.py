"""One rule of addresses and tokens for everything that listens."""

from __future__ import annotations

import pytest

from rtm_kernels.access import Token, check_address, is_loopback
from rtm_kernels.errors import InputError

TEXT = "a-token-of-enough-characters"
TOKEN = Token.of(TEXT)


@pytest.mark.parametrize(
    ("headers", "opens"),
    [
        ([(b"authorization", f"Bearer {TEXT}".encode())], True),
        ([(b"host", b"x"), (b"authorization", f"bearer   {TEXT} ".encode())], True),
        ([], False),
        ([(b"authorization", b"")], False),
        ([(b"authorization", b"Bearer")], False),
        ([(b"authorization", TEXT.encode())], False),
        ([(b"authorization", f"Basic {TEXT}".encode())], False),
        ([(b"authorization", f"Bearer {TEXT}x".encode())], False),
        ([(b"authorization", f"Bearer {TEXT[:-1]}".encode())], False),
        ([(b"authorization", f"Bearer {TEXT}".encode())] * 2, False),
        ([(b"authorization", b"Bearer no"), (b"authorization", f"Bearer {TEXT}".encode())], False),
        ([(b"x-authorization", f"Bearer {TEXT}".encode())], False),
    ],
)
def test_what_opens(headers: list[tuple[bytes, bytes]], opens: bool) -> None:
    assert TOKEN.opens(headers) is opens


@pytest.mark.parametrize(
    "text", ["", "x" * 15, "x" * 4097, "with a space inside it", "é" * 20, "x" * 20 + "\n", "\0" * 20]
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InputError, match=r"token='\.\.\.' is not allowed: 16 to 4096 printable ASCII") as error:
        Token.of(text)
    assert not text or text not in str(error.value)


def test_where_it_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RTM_TOKEN", raising=False)
    assert Token.find(None) is None
    monkeypatch.setenv("RTM_TOKEN", "another-token-of-enough")
    (tmp_path / "token").write_text(f"{TEXT}\n")
    assert Token.find(tmp_path / "token") == TOKEN != Token.find(None) == Token.of("another-token-of-enough")
    for variable in ("", "short"):  # set, and no token: refused, not ignored
        monkeypatch.setenv("RTM_TOKEN", variable)
        with pytest.raises(InputError):
            Token.find(None)


def test_addresses_of_others_need_one() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert is_loopback(host)
        check_address(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.nip.io", "2130706433", ""):
        assert not is_loopback(host)
        check_address(host, TOKEN)
        with pytest.raises(InputError, match="needs a token"):
            check_address(host, None)
