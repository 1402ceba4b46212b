"""Files and folders: bounded JSON, arrays checked against their header, digests, writing whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rtm_kernels.errors import InputError, printable, require

MAX_JSON_BYTES = 1 << 20
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
BROKEN = (ValueError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError, tokenize.TokenError)
"""What numpy raises on a header that is none."""
StrPath = str | os.PathLike[str]


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file of at most `limit` bytes. Raises `InputError`."""
    require(path.is_file(), printable(str(path)), "absent", "expected a file")
    return read_parsed(path, limit, json.loads, "JSON")


def read_parsed(
    path: Path, limit: int, parse: Callable[[bytes], Any], kind: str, broken: type[Exception] = ValueError
) -> Any:
    """What `parse` makes of a file of at most `limit` bytes; it raises ValueError or `broken` where that is no `kind`.

    Errors: `InputError`, also for a file that cannot be read.
    """
    where = printable(str(path))
    try:
        size = path.stat().st_size
        require(size <= limit, f"size of {where}", size, f"expected at most {limit} bytes")
        return parse(path.read_bytes())
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, broken) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: is not {kind}: {' '.join(str(error).split()):.200}") from None


def open_array(path: Path) -> np.ndarray:
    """The integers of a .npy file, mapped, after its size has been compared with its header. Nothing is unpickled."""
    where = printable(str(path))
    require(path.is_file(), where, "absent", "expected a file")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            require(version in HEADERS, f"{where}: version", version, "expected 1.0 or 2.0")
            shape, fortran, dtype = HEADERS[version](file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from None
    except BROKEN as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: is not a .npy array: {printable(str(error))[:200]}") from None
    require(dtype.kind in "iu" and not dtype.hasobject, f"{where}: dtype", str(dtype), "expected integers")
    require(not fortran, f"{where}: order", "Fortran", "expected C order")
    count = math.prod(shape)
    require(all(n >= 0 for n in shape), f"{where}: shape", shape, "expected sizes of at least 0")
    expected = start + count * dtype.itemsize
    require(size == expected, f"{where}: size", size, f"its header tells {expected} bytes")
    if not count:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def new_file(target: Path) -> Iterator[TextIO]:
    """A text file to fill, which becomes `target` at the end of the block; `target` is never half written.

    A link is followed. What is no file (a pipe, a device) is written itself.
    """
    if target.exists() and not target.is_file():
        with open(target, "w", encoding="utf-8") as file:
            yield file
        return
    target = target.resolve()
    aside = target.with_name(f".{target.name}.partial")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            yield file
        flush(aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole, or leave what was there."""
    with new_file(path) as file:
        file.write(text)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end of the block: `target` is complete, or as it was before.

    The folder is inside a hidden one beside `target` until its files are on disk. A folder that exists at `target` is
    moved aside first, and removed when the new one is in its place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    fresh, old = scratch / "new", scratch / "old"
    try:
        fresh.mkdir()
        yield fresh
        for path in (*fresh.rglob("*"), fresh):
            flush(path)
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(fresh, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
        flush(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Bring a file or folder to disk; Windows cannot open folders for that."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
