"""Hostile checkpoints: refused with one line, in a process whose limits hold, before anything large is allocated."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.interop import checkpoint, from_official, load_official_checkpoint
from rtm_kernels.interop.unpickle import Refused, read_state
from rtm_kernels.model import RecursiveReasoner
from tests.interop.test_official import official

MEMORY_ALLOWED = 64 << 20
"""Growth of this process that no refused file of a few kilobytes may cause."""


class Calls:
    """A pickle that calls a function when it is loaded as pickles are."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive at `path` again with the content of each record changed."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


def sizes_raised(name: str, content: bytes) -> bytes:
    """258 elements, in storage and shape alike, declared as 2^31 - 1."""
    return content.replace(b"M\x02\x01", b"J\xff\xff\xff\x7f") if name.endswith("data.pkl") else content


def raised_storage(path: Path) -> None:
    torch.save({"w": torch.ones(258)}, path)
    rewritten(path, sizes_raised)


def compressed(path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 24)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20


def overlapping(path: Path) -> None:
    """Many records that are one range of the file, as in zip bombs that no ratio gives away."""
    torch.save({"w": torch.zeros(1 << 16)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        first = max(archive.infolist(), key=lambda info: info.file_size)
        for i in range(100):
            again = copy.copy(first)
            again.filename = f"archive/data/{i + 10}"
            archive.filelist.append(again)
        archive.writestr("archive/note", b"")


def doubled(path: Path) -> None:
    torch.save({"w": torch.zeros(8)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.infolist()[0].filename, b"other")


SAVED: dict[str, tuple[Callable[[], object], str]] = {
    "expanded": (lambda: torch.zeros(1).expand(1 << 40), r"has the shape \(1099511627776,\), but 4 bytes are stored"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "'w' is not a dense tensor"),
    "meta": (lambda: torch.empty(1 << 40, device="meta"), "'w' is not a dense tensor"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "'w' is not a dense tensor"),
    "shared": (lambda: dict.fromkeys(map(str, range(1000)), torch.ones(1 << 16)), "its tensors have 262144000 bytes"),
    "too many": (lambda: {f"w{i}": torch.ones(1) for i in range(1025)}, "1025 tensors, more than the 1024"),
    "no tensor": (lambda: {"w": torch.ones(1), "note": 3}, "'note' is not a dense tensor"),
    "no state": (lambda: [1, 2], "holds no state dict"),
    "built": (lambda: Calls(torch.zeros, 1 << 40), "more than tensors and plain containers"),
}
"""What is saved, a tensor under the name w, and why it is refused."""

FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "raised storage": (raised_storage, "not a torch file|bytes are stored|tensors have"),
    "compressed": (compressed, "is compressed"),
    "overlapping": (overlapping, "records declare"),
    "doubled": (doubled, "stands in it twice"),
    "old format": (
        lambda path: torch.save({"w": torch.zeros(8)}, path, _use_new_zipfile_serialization=False),
        "not a torch file",
    ),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"w": [1.0, 2.0]})), "not a torch file"),
    "empty": (lambda path: path.write_bytes(b""), "is truncated or not a torch file"),
}


@pytest.mark.parametrize("name", [*SAVED, *FILES])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:torch.quantize_per_tensor")
def test_hostile_files_are_refused_and_cost_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "step_1"
    if name in SAVED:
        make, message = SAVED[name]
        content = make()
        torch.save(content if isinstance(content, (dict, list)) else {"w": content}, path)
    else:
        write, message = FILES[name]
        write(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=message) as refusal:
        read_state(path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert "\n" not in str(refusal.value) and grown < MEMORY_ALLOWED


def test_damage_is_refused_or_changes_numbers_alone(tmp_path: Path) -> None:
    """300 truncations and flipped bits, of a seed."""
    _, state = official()
    path = tmp_path / "step_1"
    torch.save(state, path)
    whole = path.read_bytes()
    rng, refused = random.Random(5), 0
    for i in range(300):
        content = bytearray(whole)
        if i % 3 == 0:
            del content[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.choice((1, 1, 8))):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            loaded = read_state(path)
        except Refused:
            refused += 1
        else:
            assert all(type(value) is torch.Tensor and value.is_contiguous() for value in loaded.values())
    assert refused >= 100  # every truncation


def test_no_code_runs_in_the_reader_either(tmp_path: Path) -> None:
    _, state = official()
    torch.save(state | {"evil": Calls(os.mkdir, str(tmp_path / "ran"))}, tmp_path / "step_1")
    with pytest.raises(InputError, match="is refused: it holds more than tensors and plain containers"):
        load_official_checkpoint(tmp_path / "step_1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a limit on address space")
def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(1 << 22)}, tmp_path / "step_1")
    monkeypatch.setattr(checkpoint, "MEMORY", -(3 << 24))
    with pytest.raises(InputError, match="reading it takes more than 16 MiB of memory"):
        load_official_checkpoint(tmp_path / "step_1")


def test_processor_time_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million values that are no tensors: harmless, but long."""
    torch.save({"w": torch.ones(2)}, tmp_path / "step_1")
    long = b"\x80\x02(" + b"K\x01" * 10_000_000 + b"t."
    rewritten(tmp_path / "step_1", lambda name, content: long if name.endswith("data.pkl") else content)
    monkeypatch.setattr(checkpoint, "SECONDS", 1)
    monkeypatch.setattr(checkpoint, "MEMORY", 1 << 30)
    with pytest.raises(InputError, match=r"takes more than 1 s of processor time|not read after 10 s"):
        load_official_checkpoint(tmp_path / "step_1")


def test_what_is_written_is_limited(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1 << 16)}, tmp_path / "step_1")
    arguments = [str(tmp_path / "step_1"), str(tmp_path / "out"), str(1 << 30), "60", "4096"]
    done = subprocess.run(
        [sys.executable, "-c", checkpoint.READER, checkpoint.unpickle.__file__, *arguments],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    assert not (tmp_path / "out").exists() or (tmp_path / "out").stat().st_size <= 4096


def test_a_system_without_limits_says_where_to_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = checkpoint.importlib.util.find_spec
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None if name == "resource" else find(name))
    with pytest.raises(BackendUnavailable, match=r"on Linux or macOS \(rtm convert\)"):
        load_official_checkpoint(tmp_path / "step_1")


def test_convert(tmp_path: Path) -> None:
    """A run folder as the official training leaves it becomes a folder that loads to the same weights."""
    yaml = pytest.importorskip("yaml")
    config, state = official()
    run, out = tmp_path / "run", tmp_path / "model"
    run.mkdir()
    torch.save(state, run / "step_65100")
    saved = {k: v for k, v in config.items() if k not in ("seq_len", "vocab_size", "num_puzzle_identifiers")}
    (run / "all_config.yaml").write_text(yaml.safe_dump({"arch": saved, "lr": 1e-4, "data_paths": ["x"]}))
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    (data / "train" / "dataset.json").write_text(json.dumps({name: config[name] for name in config.keys() - saved}))
    command = ["convert", str(run / "step_65100"), str(out)]

    def rtm(*options: str) -> object:
        return CliRunner().invoke(app, [*command, *options], catch_exceptions=False)

    lacking = rtm()
    assert lacking.exit_code == 2 and "holds no vocab_size, seq_len, num_puzzle_identifiers" in lacking.stderr
    done = rtm("--data", str(data), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["arch"] == "trm"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    expected, found = from_official("trm", config, state), RecursiveReasoner.from_pretrained(out)
    assert found.config == expected.config
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.state_dict().items())
    again = rtm("--data", str(data))
    assert again.exit_code == 2 and "is not empty" in again.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", '{"name": "os@system"}', "module of name='os' is not allowed: expected one of trm"),
        ("c.json", "[1]", "'list' is not allowed: expected fields of a model by name"),
        ("c.json", "{}", "expected module@Class; or give the architecture"),
        ("c.json", "x" * 70_000, "expected at most 65536"),
        ("c.yaml", "a: !!python/object/apply:os.mkdir [ran]", "is not YAML"),
        ("c.yaml", "a: [" * 15_000, "is not YAML"),
        ("c.yaml", "a: &a [*a]", "expected module@Class"),
        ("c.yaml", "x" * 70_000, "expected at most 65536"),
    ],
)
def test_hostile_configs(name: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    done = CliRunner().invoke(app, ["convert", "step_1", "out", "--config", name], catch_exceptions=False)
    assert done.exit_code == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
