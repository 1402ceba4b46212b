"""Generation: state that is kept equals recomputation; greedy, drawn, stopped, streamed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.errors import InputError
from rtm_kernels.text.config import BOUNDARY, TEXT_END
from rtm_kernels.text.generate import Writer, choose, generate
from tests.text.support import BACKBONES, draw_words, packed_of, text_model


@pytest.mark.parametrize("kind", BACKBONES)
def test_kept_state_is_recomputation_bit_for_bit_and_the_whole_pass(kind: str) -> None:
    """After each symbol: the logits of the kept state, of a state that is built anew, and of the pass over all."""
    model, words = text_model(kind), draw_words(random.Random(4), 5)
    packed = packed_of(model, words)
    wanted = model(packed, 3)[0].detach()[packed.targets >= 0]
    kept, before, found = Writer(model, 3), [], []
    for word in words:
        for symbol in (*word, BOUNDARY):
            anew = Writer(model, 3)
            anew.read(before)
            for own in kept.word:
                anew.write(own)
            assert torch.equal(kept.logits, anew.logits)
            found.append(kept.logits.double())
            kept.write(symbol)
        before.append(word)
    possible = torch.stack(found) > -math.inf
    torch.testing.assert_close(torch.stack(found)[possible], wanted[possible], rtol=0, atol=1e-5)
    assert [word for word, _ in kept.words] == words
    assert all(1 <= rounds <= 3 for _, rounds in kept.words)


def test_what_cannot_come_next_is_ruled_out() -> None:
    writer = Writer(text_model("rins", max_bytes=2))
    assert writer.logits[BOUNDARY] == -math.inf < writer.logits[TEXT_END]
    with pytest.raises(InputError, match="symbol=256"):
        writer.write(BOUNDARY)
    writer.write(97)
    assert writer.logits[TEXT_END] == -math.inf < writer.logits[BOUNDARY]
    writer.write(98)
    assert int((writer.logits > -math.inf).sum()) == 1 and writer.logits.argmax() == BOUNDARY


def test_symbols_are_drawn_from_the_likeliest() -> None:
    logits, rng = torch.tensor([0.4, 0.1, 0.3, 0.2]).log(), torch.Generator().manual_seed(0)
    assert choose(logits, 0.0, 1.0, rng) == 0
    drawn = [choose(logits, 1.0, 0.6, rng) for _ in range(200)]
    assert set(drawn) == {0, 2} and 90 < drawn.count(0) < 140
    assert {choose(logits, 2.0, 1.0, rng) for _ in range(100)} == {0, 1, 2, 3}


def test_pieces_are_the_text_up_to_a_stop_string() -> None:
    model = text_model("rtm")
    pieces = list(generate(model, "", max_bytes=40, temperature=1.0, seed=3))
    text = b"".join(pieces)
    assert len(text) <= 40 and len(pieces) > 1
    ascii_only = next(i for i in range(5, len(text)) if text[i] < 128)
    stop = bytes(text[ascii_only : ascii_only + 1]).decode()
    cut = b"".join(generate(model, "", max_bytes=40, temperature=1.0, seed=3, stop=[stop, "no such text"]))
    assert cut == text[: text.index(stop.encode())]
    with pytest.raises(InputError, match="UTF-8"):
        list(generate(model, "\udcff"))
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"max_bytes": -1}, {"stop": [""]}, {"rounds": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            list(generate(model, "", **bad))  # type: ignore[arg-type]


def test_a_prompt_is_read_word_by_word_and_its_last_word_is_open() -> None:
    pytest.importorskip("hat_splitter")
    model, prompt = text_model("rins"), "def f(x):\n    ret"
    writer = Writer(model)
    assert list(generate(model, prompt, max_bytes=0, writer=writer)) == [b""]
    assert bytes(writer.word) == b"ret" and b"".join(word for word, _ in writer.words) + writer.word == prompt.encode()


def test_the_prompt_on_standard_input(tmp_path: Path) -> None:
    pytest.importorskip("hat_splitter")
    text_model("rins").float().save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["generate", "-", "--model", str(tmp_path), "--max-bytes", "2", "--json"], "a b\n")
    assert result.exit_code == 0 and json.loads(result.stdout)["prompt"] == "a b\n"
