"""TextModel: causality over splits, words and rounds; segments; words that halt; the same word by word."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from rtm_kernels.errors import InputError
from rtm_kernels.text.config import TextConfig
from rtm_kernels.text.model import TextModel, symbol_loss
from rtm_kernels.text.packing import IGNORED
from rtm_kernels.text.state import WordState
from tests.text.support import BACKBONES, draw_words, packed_of, text_model

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("kind", BACKBONES)
def test_changing_a_byte_changes_no_logit_before_it(kind: str, rounds: int) -> None:
    """Over random splits: nothing before the byte, everything from it to the end of its document, no other document."""
    model, rng = text_model(kind), random.Random(rounds)
    for _ in range(4):
        documents = [draw_words(rng, rng.randint(1, 7)) for _ in range(3)]
        which = rng.randrange(3)
        word = rng.randrange(len(documents[which]))
        byte = rng.randrange(len(documents[which][word]))
        before = packed_of(model, *documents)
        changed = bytearray(documents[which][word])
        changed[byte] ^= 1 + rng.randrange(255)
        documents[which][word] = bytes(changed)
        after = packed_of(model, *documents)
        moved = (before.symbols != after.symbols).flatten().nonzero().item()
        (one, _), (two, _) = (model(packed, rounds) for packed in (before, after))
        logits = [t.detach().flatten(0, 1)[before.targets.flatten() != IGNORED] for t in (one, two)]
        place = (before.targets.flatten()[:moved] != IGNORED).sum().item()
        end = place + (len(changed) - byte) + sum(len(w) + 1 for w in documents[which][word + 1 :])
        assert torch.equal(logits[0][:place], logits[1][:place]) and torch.equal(logits[0][end:], logits[1][end:])
        assert (logits[0][place:end] != logits[1][place:end]).any(1).all()


def test_documents_give_what_each_gives_alone() -> None:
    model, rng = text_model("rtm"), random.Random(5)
    documents = [draw_words(rng, n) for n in (3, 8, 12, 2)]
    packed = packed_of(model, *documents)
    together = model(packed)[0][packed.targets != IGNORED]
    alone = [packed_of(model, document) for document in documents]
    apart = torch.cat([model(one)[0][one.targets != IGNORED] for one in alone])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)  # RoPE at other positions, its tables in float32


def test_words_are_packed_without_waste() -> None:
    model, rng = text_model("rins", byte_row=64), random.Random(1)
    documents = [draw_words(rng, 12) for _ in range(40)]
    packed = packed_of(model, *documents)
    size = sum(len(word) + 1 for document in documents for word in document)
    assert (packed.words >= 0).sum() == size and packed.symbols.numel() < 1.08 * size
    assert packed.segments.shape == (40, 12)


def test_a_document_longer_than_a_row_begins_again_and_a_text_end_is_a_word_without_bytes() -> None:
    model = text_model("rins")
    packed = packed_of(model, [b"ab"] * 13 + [b""], [b"c"] * 11)
    assert packed.first.sum(1).tolist()[0] == 1 and packed.segments.shape == (3, 12)
    assert packed.first[1].nonzero().flatten()[0] == 0
    targets = packed.targets[packed.targets != IGNORED].tolist()
    assert targets == [97, 98, 256] * 13 + [257] + [99, 256] * 11


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("kind", BACKBONES)
def test_word_by_word_the_backbone_gives_the_same(kind: str, rounds: int) -> None:
    model, g = text_model(kind), torch.Generator().manual_seed(2)
    x = torch.randn(3, 9, 16, generator=g, dtype=torch.float64)
    segments = torch.tensor([[1] * 9, [1] * 4 + [2] * 5, [1] + [2] * 8])
    whole = model.think(x, segments, rounds)
    for parts in ([9], [1] * 9, [4, 3, 2]):
        state, found = WordState(model, 3, rounds), []
        for part, own in zip(x.split(parts, 1), segments.split(parts, 1), strict=True):
            found.append(state.extend(part, own))
        torch.testing.assert_close(torch.cat([f.y for f in found], 1), whole.y.detach(), **CLOSE)
        if whole.halting is not None:
            steps = torch.cat([f.halting.steps for f in found if f.halting is not None], 1)
            assert torch.equal(steps, whole.halting.steps)
    if whole.halting is not None and rounds == 5:
        assert len(set(whole.halting.steps.flatten().tolist())) > 2, "words must halt at different rounds"
    if whole.halting is None and rounds > 1:
        assert not torch.allclose(whole.y, model.think(x, segments, 1).y)


def test_the_floor_and_the_cap_of_rounds_hold() -> None:
    x = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for floor, cap in ((1, 4), (3, 4), (4, 4)):
        found = text_model("rtm", min_rounds=floor).think(x, torch.ones(1, 20), cap)
        assert found.halting is not None
        assert found.halting.steps.min() >= floor and found.halting.steps.max() <= cap
        torch.testing.assert_close(found.halting.accumulated, torch.ones(1, 20, dtype=torch.float64), check_dtype=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byte_heads": 3}, "byte_heads=3"),
        ({"byte_row": 6}, "byte_row=6"),
        ({"backbone": replace(BACKBONES["rins"], causal=False)}, "backbone.causal=False"),
        ({"backbone": replace(BACKBONES["rins"], halting="cumulative_token")}, "carries no state"),
        ({"min_rounds": 99}, "min_rounds=99"),
    ],
)
def test_a_config_that_is_no_text_model_is_refused(changes: dict[str, object], message: str) -> None:
    options = {"backbone": BACKBONES["rins"], "byte_size": 16, "byte_heads": 2, "max_bytes": 6, **changes}
    with pytest.raises(InputError, match=message):
        TextConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["rins", "rtm"])
def test_the_fused_ops_compute_the_same(kind: str) -> None:
    """Values and gradients of the Triton ops, interpreted, against the reference."""
    pytest.importorskip("triton")
    model = text_model(kind)
    fused = TextModel(model.config, impl="triton").double()
    fused.load_state_dict(model.state_dict())
    packed = packed_of(model, draw_words(random.Random(0), 4), draw_words(random.Random(1), 3))
    found = []
    for one in (model, fused):
        logits, _ = one(packed)
        loss = symbol_loss(logits, packed.targets).sum()
        gradients = torch.autograd.grad(loss, [*one.parameters()], allow_unused=True)
        found.append([logits.detach(), *(g for g in gradients if g is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for right, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
