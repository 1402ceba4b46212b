"""Saved models: the round trip, atomic writing, and one clear line for every way a folder can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtm_kernels import hub, pretrained
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import RecursiveReasoner
from tests.small_models import ARCHS, make


def small(**changes) -> RecursiveReasoner:
    return make(**{"seq_len": 5, "mixer": "mlp", **changes})


@pytest.fixture
def saved(tmp_path):
    """A folder with a small saved model."""
    return small().save_pretrained(tmp_path / "model")


def refused(folder, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        RecursiveReasoner.from_pretrained(folder)
    assert "\n" not in str(error.value)


def rehash(folder) -> None:
    """Make the manifest agree with the files as they are, as someone who tampers would."""
    digests = {name: pretrained.hashlib.sha256((folder / name).read_bytes()).hexdigest()
               for name in (pretrained.WEIGHTS, pretrained.CONFIG)}  # fmt: skip
    (folder / pretrained.MANIFEST).write_text(json.dumps({"sha256": digests}))


@pytest.mark.parametrize(
    ("arch", "dtype"), [*((arch, "float32") for arch in ARCHS), ("trm", "bfloat16"), ("rsm", "float64")]
)
def test_round_trip(arch: str, dtype: str, tmp_path) -> None:
    model = make(arch, forward_dtype=dtype)
    folder = model.save_pretrained(tmp_path / "deep" / "model")
    assert sorted(os.listdir(folder)) == ["config.json", "manifest.json", "model.safetensors"]
    again = RecursiveReasoner.from_pretrained(folder, impl="reference")
    assert again.config == model.config and not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value) and again.state_dict()[key].dtype == value.dtype
    if model.config.tied_lm_head:
        assert again.lm_head.weight is again.embed_tokens.embedding_weight
        assert "lm_head.weight" not in load_file(folder / pretrained.WEIGHTS)
    assert {layer.impl for layer in again.modules() if hasattr(layer, "impl")} == {"reference"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_to_float32(saved, dtype) -> None:
    weights = saved / pretrained.WEIGHTS
    state = {key: value.to(dtype) for key, value in load_file(weights).items()}
    save_file(state, weights)
    rehash(saved)
    model = RecursiveReasoner.from_pretrained(saved)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(model.state_dict()[key], value.float()) for key, value in state.items())


def test_existing_folders_are_replaced_only_on_request(saved) -> None:
    other = small(seq_len=6)
    with pytest.raises(InputError, match=r"model' .*|it is not empty \(overwrite=True replaces it\)"):
        other.save_pretrained(saved)
    assert RecursiveReasoner.from_pretrained(saved).config.seq_len == 5
    other.save_pretrained(saved, overwrite=True)
    assert RecursiveReasoner.from_pretrained(saved).config.seq_len == 6
    assert os.listdir(saved.parent) == ["model"]
    (saved.parent / "empty").mkdir()
    other.save_pretrained(saved.parent / "empty")
    (saved.parent / "file").write_text("x")
    with pytest.raises(InputError, match="it is a file"):
        other.save_pretrained(saved.parent / "file", overwrite=True)


@pytest.mark.parametrize("call", range(6))
def test_a_failing_disk_leaves_the_old_folder_whole(saved, monkeypatch, call: int) -> None:
    """Every fsync and rename fails in turn; the folder is the old or the new one, and nothing lies around."""
    other, calls = small(seq_len=6), []

    def failing(original):
        def run(*args):
            calls.append(args)
            if len(calls) == call + 1:
                raise OSError(28, "No space left on device")
            return original(*args)

        return run

    monkeypatch.setattr(pretrained.os, "fsync", failing(os.fsync))
    monkeypatch.setattr(pretrained.os, "rename", failing(os.rename))
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(saved, overwrite=True)
    monkeypatch.undo()
    assert RecursiveReasoner.from_pretrained(saved).config.seq_len == 5
    assert os.listdir(saved.parent) == ["model"]


def test_non_finite_weights_are_neither_saved_nor_loaded(saved) -> None:
    model = small()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"the model: lm_head\.weight holds values that are not finite"):
        model.save_pretrained(saved.parent / "other")
    assert os.listdir(saved.parent) == ["model"]
    state = load_file(saved / pretrained.WEIGHTS)
    state["H_init"][3] = torch.nan
    save_file(state, saved / pretrained.WEIGHTS)
    rehash(saved)
    refused(saved, "H_init holds values that are not finite")


def test_unknown_names_list_the_known_ones(saved, monkeypatch) -> None:
    refused("sudok", r"unknown model 'sudok'; bundled: .*; or give an existing folder or a hub id owner/name")
    refused(saved.parent / "nowhere", "unknown model")
    monkeypatch.setattr(pretrained, "MODELS", saved.parent)
    shutil.copytree(saved, saved.parent / "another")
    assert pretrained.known_models() == ("another", "model")
    refused("sudok", "bundled: another, model;")
    assert RecursiveReasoner.from_pretrained("model").config.seq_len == 5
    monkeypatch.chdir("/")
    refused("../model", "unknown model")


def test_hub_ids_without_huggingface_hub(saved, monkeypatch) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"'owner/name' is no folder here.*needs the package huggingface_hub"):
        RecursiveReasoner.from_pretrained("owner/name")
    with pytest.raises(BackendUnavailable, match=r"pushing to 'owner/name' needs .*pip install 'rtm-kernels\[hub\]'"):
        small().push_to_hub("owner/name")
    monkeypatch.undo()
    for options in ({"push_to_hub": True}, {"push_to_hub": True, "repo_id": "name"}):
        with pytest.raises(InputError, match=r"repo_id=.* is not allowed: owner/name"):
            small().save_pretrained(saved.parent / "new", **options)
    with pytest.raises(InputError, match=r"push_to_hub=False is not allowed: True, where its options are given"):
        small().save_pretrained(saved.parent / "new", private=True)
    assert os.listdir(saved.parent) == ["model"]


@pytest.mark.parametrize("name", [pretrained.WEIGHTS, pretrained.CONFIG, pretrained.MANIFEST])
def test_missing_files(saved, name: str) -> None:
    (saved / name).unlink()
    refused(saved, f"{name}: cannot be read: No such file or directory")


def write_header(folder, header: object, body: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / pretrained.WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    rehash(folder)


def read_header(folder) -> tuple[dict, bytes]:
    content = (folder / pretrained.WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_hostile_headers_with_a_matching_manifest(saved) -> None:
    header, body = read_header(saved)
    first, second = list(header)[:2]

    def changed(**fields) -> dict:
        return {**header, first: {**header[first], **fields}}

    moved = {"data_offsets": [n + 4 for n in header[second]["data_offsets"]]}
    hostile = {
        "not a valid safetensors file": [
            b"{", b"[" * 100_000, changed(shape=[1 << 40]), changed(data_offsets=[0, 1 << 50]), changed(dtype="I8"), {},
            {**header, second: header[second] | moved},
        ],
        "missing '": [{("other" if name == first else name): entry for name, entry in header.items()}],
        "unexpected 'evil": [{**header, "evil\n": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}],
        "has shape": [changed(shape=[*header[first]["shape"][::-1], 1])],
        "has dtype": [changed(dtype="I32")],
        "more than the 1024 allowed": [
            header | {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(1025)}
        ],
    }  # fmt: skip
    for message, headers in hostile.items():
        for bad in headers:
            write_header(saved, bad, body)
            refused(saved, message)
    write_header(saved, b" " * (pretrained.MAX_HEADER + 1), body)
    refused(saved, "header of 1048577 bytes is not at most 1048576")
    (saved / pretrained.WEIGHTS).write_bytes(struct.pack("<Q", 1 << 63) + b"{}")
    refused(saved, "header of 9223372036854775808 bytes is not at most")


def test_hostile_configs(saved) -> None:
    path = saved / pretrained.CONFIG
    good = json.loads(path.read_text())
    for bad, message in (
        ("{", "config.json: is not JSON"),
        ("[1]", "config.json: expected a JSON object"),
        (" " * (1 << 17), "expected at most 65536 bytes"),
        (good | {"surprise": 1}, "unknown config field"),
        ({k: v for k, v in good.items() if k != "seq_len"}, "missing config field"),
        (good | {"hidden_size": 1 << 40}, "hidden_size="),
        (good | {"hidden_size": 1 << 20, "vocab_size": 1 << 20, "num_heads": 1}, "has shape"),
        (good | {"arch": ["trm"]}, "arch="),
        (good | {"arch": "trm_singlez"}, "unexpected 'H_init'"),
    ):
        path.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        rehash(saved)
        refused(saved, message)


def test_manifest_must_name_both_files(saved) -> None:
    path = saved / pretrained.MANIFEST
    for bad, message in (("{}", "no sha256 table"), ('{"sha256": {}}', "config.json: sha256 differs")):
        path.write_text(bad)
        refused(saved, message)
    config = saved / pretrained.CONFIG
    rehash(saved)
    config.write_text(config.read_text() + " ")
    refused(saved, r"config\.json: sha256 differs from manifest\.json; the file was altered or damaged")
