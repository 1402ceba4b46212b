"""The process that reads a pickled checkpoint under resource limits and writes a safetensors file."""

from __future__ import annotations

import math
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor

REFUSED = 3
"""Exit code of a refusal, whose reason is the only line printed."""

MAX_MEMBERS = 10_000
MAX_TENSORS = 1024


class Refused(Exception):
    """A file is refused; the message says why."""


def check_archive(path: Path) -> None:
    """Refuse what is no torch file as `torch.save` writes it: each record stored once and uncompressed.

    So nothing that is read can be larger than the file is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise Refused("is truncated or not a torch file (torch.save since torch 1.6)") from error
    if len(members) > MAX_MEMBERS:
        raise Refused(f"is refused: {len(members)} records, more than the {MAX_MEMBERS} allowed")
    for name, count in Counter(member.filename for member in members).items():
        if count > 1:
            raise Refused(f"is refused: the record {name!r:.80} stands in it twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise Refused(f"is refused: the record {member.filename!r:.80} is compressed")
    declared, size = sum(member.file_size for member in members), path.stat().st_size
    if declared > size:
        raise Refused(f"is refused: its records declare {declared} bytes, the file has {size}")


def read_state(path: Path) -> dict[str, Tensor]:
    """The dense tensors of a checkpoint by name, on CPU, each with memory of its own.

    Errors: `Refused` for anything else than a state dict of dense tensors, alone or as `model_state`; for a tensor
    that is larger than its stored bytes (one value repeated); for tensors that share so many bytes that all of them
    together are more than twice the file.
    """
    check_archive(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise Refused("is refused: it holds more than tensors and plain containers") from error
    except Exception as error:  # whatever damage makes the reader raise
        if out_of_memory(error):
            raise
        raise Refused("is truncated or not a torch file (torch.save since torch 1.6)") from error
    if isinstance(content, Mapping) and isinstance(content.get("model_state"), Mapping):
        content = content["model_state"]
    if not isinstance(content, Mapping) or not content:
        raise Refused("holds no state dict")
    if len(content) > MAX_TENSORS:
        raise Refused(f"is refused: {len(content)} tensors, more than the {MAX_TENSORS} allowed")
    for name, value in content.items():
        check_tensor(name, value)
    total, size = sum(value.numel() * value.element_size() for value in content.values()), path.stat().st_size
    if total > 2 * size:
        raise Refused(f"is refused: its tensors have {total} bytes, the file {size}")
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in content.items()}


def check_tensor(name: object, value: object) -> None:
    """Refuse what is no tensor of plain numbers in memory, before anything reads its values."""
    known = isinstance(name, str) and isinstance(value, Tensor) and type(value) in (Tensor, torch.nn.Parameter)
    if not known or not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        raise Refused(f"is refused: {name!r:.80} is not a dense tensor")
    if value.device.type != "cpu" or value.dtype.is_complex:
        raise Refused(f"is refused: {name!r:.80} is not a dense tensor ({value.dtype} on {value.device})")
    stored = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > stored:
        raise Refused(f"is refused: {name!r:.80} has the shape {tuple(value.shape)}, but {stored} bytes are stored")


def out_of_memory(error: Exception) -> bool:
    """Whether Python or PyTorch could not allocate."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def limit(memory: int, seconds: int, written: int) -> None:
    """Let this process take `memory` bytes and `seconds` of processor time more than so far, and write `written`.

    Address space is limited on Linux alone, because other kernels do not keep that limit.
    """
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {
        resource.RLIMIT_CPU: math.ceil(used.ru_utime + used.ru_stime) + seconds,
        resource.RLIMIT_FSIZE: written,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + memory
    for what, value in limits.items():
        hard = resource.getrlimit(what)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # past its soft limit of processor time a process gets SIGXCPU, at the hard one SIGKILL, which names nothing
        later = allowed + 1 if what == resource.RLIMIT_CPU else allowed
        resource.setrlimit(what, (allowed, later if hard == resource.RLIM_INFINITY else min(later, hard)))


def main(source: str, target: str, memory: str, seconds: str, written: str) -> None:
    """Write the state dict of `source` to `target`; a refusal prints its reason and exits with `REFUSED`."""
    torch.set_num_threads(1)
    limit(int(memory), int(seconds), int(written))
    try:
        safetensors.save_file(read_state(Path(source)), target)
    except Refused as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = f"is refused: reading it takes more than {int(memory) >> 20} MiB of memory"
    else:
        return
    print(reason)
    raise SystemExit(REFUSED)


if __name__ == "__main__":
    main(*sys.argv[1:])
