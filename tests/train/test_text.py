"""Text recipes: the corpus, the stream, a run that resumes to the same bits, FLOPs as PyTorch counts them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.text.measure import measure
from rtm_kernels.text.model import TextModel
from rtm_kernels.text.words import splitter
from rtm_kernels.train import corpus
from rtm_kernels.train.configure import load_recipe, override, save_recipe
from rtm_kernels.train.corpus import TextStream, find_corpus
from rtm_kernels.train.telemetry import read_csv
from rtm_kernels.train.text_loop import TextTrainer
from rtm_kernels.train.text_recipe import TEXT_SMALL, TextRecipe
from tests.cli.conftest import invoke, refused
from tests.text.support import BACKBONES

TEXT = "".join(f"def function_{n}(a, b):\n    return a + {n} * b  # é\n\n" for n in range(2000))


@pytest.fixture(autouse=True)
def plain_splitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words without the package: runs of letters, or single characters, of at most `most` bytes."""

    def plain(most: int):
        return lambda text: [
            word.encode()[i : i + most]
            for word in re.findall(r" ?\w+|\W", text)
            for i in range(0, len(word.encode()), most)
        ]

    monkeypatch.setattr(corpus, "splitter", plain)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine texts, one of them twice, one hidden, a file that is no text."""
    root = tmp_path / "text"
    (root / "deep").mkdir(parents=True)
    for n in range(9):
        (root / "deep" / f"{n}.py").write_text(TEXT[n * 900 : n * 900 + 700 + n], encoding="utf-8")
    (root / "again.py").write_bytes((root / "deep" / "3.py").read_bytes())
    (root / ".hidden").write_text("hidden")
    (root / "image").write_bytes(b"\xff\xfe\x00")
    return root


def tiny(data: Path, kind: str = "rins", **changes: object) -> TextRecipe:
    backbone = replace(BACKBONES[kind], forward_dtype="float32")
    model = replace(
        TEXT_SMALL.model, backbone=backbone, byte_size=16, byte_heads=2, byte_inner=16, max_bytes=8, byte_row=16
    )
    options = {"steps": 4, "batch_size": 3, "eval_every": 2, "eval_bytes": 300, "held_out": 0.3, **changes}
    return replace(TEXT_SMALL, model=model, data=str(data), **options)  # type: ignore[arg-type]


def test_documents_are_counted_once_and_held_out_by_their_content(folder: Path) -> None:
    found = find_corpus(str(folder), 0.3)
    assert (len(found.train) + len(found.held_out), found.unread, found.repeated) == (9, 1, 1)
    keys = {document.key for document in found.train}
    assert found.held_out and not keys & {document.key for document in found.held_out}
    (folder / "more.py").write_text("more\n")
    kept = {document.key for document in find_corpus(str(folder), 0.3).held_out}
    assert {document.key for document in found.held_out} <= kept
    (folder / "deep" / "0.py").write_text("changed")
    with pytest.raises(InputError, match="changed"):
        [document.content() for document in [*found.train, *found.held_out]]


def test_a_long_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(TEXT, encoding="utf-8")
    found = find_corpus(str(tmp_path / "one.txt"), 0.3)
    parts = sorted([*found.train, *found.held_out], key=lambda document: document.begin)
    assert b"".join(part.content() for part in parts) == TEXT.encode() and len(parts) == 2
    assert all(part.content().endswith(b"\n") and part.end - part.begin <= 1 << 16 for part in parts)


@pytest.mark.parametrize("data", ["nothing", "."])
def test_a_corpus_that_is_not_there_is_refused(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"data='{data}'"):
        find_corpus(data, 0.1)


def test_a_stream_gives_words_of_its_documents_and_goes_on_from_its_state(folder: Path) -> None:
    recipe = tiny(folder)
    stream = TextStream(recipe)
    first = [stream.batch() for _ in range(5)]
    saved = stream.state()
    after = [stream.batch() for _ in range(5)]
    other = TextStream(recipe)
    other.load_state(saved)
    for (one, _), (two, _) in zip(after, [other.batch() for _ in range(5)], strict=True):
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("symbols", "targets", "first"))
    changed = json.loads(saved) | {"corpus": "another"}
    with pytest.raises(InputError, match="not the one at the begin"):
        other.load_state(json.dumps(changed))
    assert first[0][0].first.shape == (3, 12) and first[0][1] == (first[0][0].symbols != 256).sum()
    documents = [document.content() for document in other.corpus.train]
    begun, ended = set(), 0
    for packed, _ in (other.batch() for _ in range(150)):
        targets = packed.targets.flatten()
        words = [bytes(targets[i : i + 9].tolist()[: targets[i:].tolist().index(256)]) if targets[i] < 256 else b""
                 for i in packed.starts.tolist()]  # fmt: skip
        for row in range(3):
            own, starts = words[12 * row : 12 * row + 12], packed.first[row].nonzero().flatten().tolist()
            for i, j in zip(starts, [*starts[1:], 12], strict=True):
                part, ended = b"".join(own[i:j]), ended + (own[j - 1] == b"")
                where = [d for d in documents if (d.endswith(part) if own[j - 1] == b"" else part in d)]
                assert where and (i == 0 or any(d.startswith(part) for d in where))
                begun |= {documents.index(d) for d in where if len(where) == 1}
    assert len(begun) == len(documents) and ended > 10


@pytest.mark.parametrize("kind", ["rins", "rtm"])
def test_training_flops_are_those_that_pytorch_counts(folder: Path, kind: str) -> None:
    trainer = TextTrainer(tiny(folder, kind, keep=1.0, optimizer="adam_atan2"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others go uncounted
        trainer.step()
    assert trainer.work()[1] == pytest.approx(counter.get_total_flops(), rel=0.06)


def test_flops_of_words_that_halt_are_saved_and_counted(folder: Path) -> None:
    recipe = tiny(folder, "rtm")
    torch.manual_seed(0)
    model = TextModel(recipe.model).eval()
    torch.nn.init.normal_(model.q_head.weight, std=0.6)
    stream = TextStream(recipe)
    texts = [[*stream.split(text), b""] for text in stream.corpus.sample(1000)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others go uncounted
        found = measure(model, texts)
    assert 1 < found.rounds < recipe.model.rounds
    assert found.flops_per_byte * found.bytes == pytest.approx(counter.get_total_flops(), rel=0.1)
    deep = measure(TextModel(replace(recipe.model, min_rounds=4)).eval(), texts)
    assert deep.rounds == 4 and deep.flops_per_byte > found.flops_per_byte


def test_a_run_that_was_cut_gives_the_same_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_recipe(tiny(folder, "rtm"), tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == tiny(folder, "rtm")
    monkeypatch.setattr("rtm_kernels.train.configure.RECIPES", {"text-small": (tiny(folder), "")})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = invoke("train", "text-small", "--out", whole, "--json")
    assert result.exit_code == 0, result.stderr
    codes = [invoke("train", "text-small", "--out", cut, "--minutes", "0").exit_code for _ in range(4)]
    assert codes == [75, 75, 75, 0]
    for name in ("model.safetensors", "config.json"):
        assert (whole / "model" / name).read_bytes() == (cut / "model" / name).read_bytes()
    summary, rows = json.loads(result.stdout), read_csv(whole / "metrics.csv")
    assert [found["rounds"] for found in summary["by_rounds"]] == [1, 2]
    assert summary["best"]["bits_per_byte"] == min(row["test_bits_per_byte"] for row in rows[1::2])
    assert (whole / "curve.png").exists() and summary["bytes_per_second"] > 0
    page = tmp_path / "t.html"
    text = invoke("generate", "", "--model", whole / "model", "--max-bytes", "20", "--json", "--trace", page)
    assert text.exit_code == 0 and '{"words":[["' in page.read_text()
    assert len(json.loads(text.stdout)["words"]) > 0
    refused(
        invoke("solve", "--model", whole / "model"),
        "missing config field(s) seq_len, vocab_size: this is no ModelConfig",
    )
    refused(invoke("generate", "x", "--model", "sudoku"), "missing config field(s) backbone: this is no TextConfig")
    refused(invoke("generate", "x", "--model", whole / "model", "--device", "cuda:99"), "is not here")


def test_text_overrides_are_checked() -> None:
    changed = override(TEXT_SMALL, ["steps=7", "model.backbone.H_cycles=3", "data=notes"])
    assert (changed.steps, changed.model.rounds, changed.data) == (7, 3, "notes")
    with pytest.raises(InputError, match="causal"):
        override(TEXT_SMALL, ["model.backbone.causal=false"])


def test_the_splitter_is_that_of_hat() -> None:
    try:
        split = splitter(8)
    except BackendUnavailable as error:
        assert "rtm-kernels[text]" in str(error)
        pytest.skip("the package hat-splitter is not installed")
    assert split("def foo(self):\n") == [b"def", b" foo(", b"self):", b"\n"]
    assert split("aB_c  \t\n12.5 é") == [b"a", b"B_", b"c", b"  ", b"\t", b"\n", b"12.", b"5", b" \xc3\xa9"]
    assert b"".join(split(TEXT)) == TEXT.encode() and max(map(len, split("x" * 30))) == 8
