"""Seeded damage to every input that a stranger may give: no crash, no hang, one clear line.

`pytest tests/hostile --hostile 20000 --hostile-seed 7` tries more, and repeats a failure: attack i of seed s is the
same in every run. `make hostile` tries a million.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.hostile import __main__ as campaign
from tests.hostile.__main__ import CPU_SECONDS, GROWTH_MIB, LIMITS_MIB, ROOT, SHARES, attack, verdict
from tests.hostile.build import TARGETS
from tests.hostile.mutations import damage_bytes, damage_json, damage_text
from tests.hostile.targets import Attack, Target

CLEAR_REFS = Path("/proc/self/clear_refs")

NEEDS = {"tool_arguments": "mcp", "http": "fastapi", "http_sockets": "fastapi"}
TIMES = {"trace_files": 3, "http": 3}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged(name: str, tmp_path, monkeypatch, request) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"no package {NEEDS[name]} here: {name} stay untried")
    monkeypatch.chdir(tmp_path)
    seed = request.config.getoption("--hostile-seed")
    with TARGETS[name](tmp_path) as target:
        for number in range(request.config.getoption("--hostile") * TIMES.get(name, 1)):
            rng = random.Random(f"{seed} {number}")
            attack = target(rng)
            start = time.process_time()
            try:
                tried, _ = attack()
            except BaseException as error:
                pytest.fail(f"attack {number} of seed {seed}: {error!r:.1500}")
            spent = time.process_time() - start
            assert spent < CPU_SECONDS, f"attack {number} of seed {seed}: {spent:.1f} s of processor time: {tried}"


def test_the_mutator_is_seeded_and_reaches_far() -> None:
    def run(seed: int) -> list[object]:
        rng = random.Random(seed)
        value = {"a": [1, 2, {"b": "c"}], "d": None}
        return [[damage_bytes(b"hello world", rng), damage_text("hello", rng), repr(damage_json(value, rng))]
                for _ in range(50)]  # fmt: skip

    assert run(1) == run(1) != run(2)
    assert len({repr(found) for found in run(1)}) == 50


def test_a_campaign_goes_on_where_it_was_cut_and_notices_what_fails(tmp_path, monkeypatch) -> None:
    tried = []

    def make(rng: random.Random) -> Attack:
        def planted() -> tuple[str, bool]:
            tried.append(rng.random())
            assert tried[-1] < 0.9, "planted"
            return "words", True

        return planted

    plant(monkeypatch, make)
    monkeypatch.chdir(tmp_path)
    attack("http", 3, 10, tmp_path / "a.json")
    attack("http", 3, 30, tmp_path / "a.json")
    again = list(tried)
    tried.clear()
    attack("http", 3, 30, tmp_path / "b.json")
    assert tried == again and len(tried) == 30
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["inputs"] == 30 and len(found["failures"]) == sum(value >= 0.9 for value in tried) > 0
    assert not verdict(found)["holds"]
    calm = found | {"failures": []}
    assert verdict(calm)["holds"] and not verdict(calm | {"slowest_seconds": 1.1})["holds"]
    assert not verdict(calm | {"peak_mib": 2 * LIMITS_MIB["http"] + 0.1})["holds"]
    assert not verdict(calm | {"growth_mib_per_10000": GROWTH_MIB + 0.1})["holds"]


def plant(monkeypatch: pytest.MonkeyPatch, make: Target) -> None:
    """`make` in the place of the attacks over HTTP."""
    monkeypatch.setattr(campaign, "WARM_UP", 0)
    monkeypatch.setitem(TARGETS, "http", lambda folder: nullcontext(make))


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux tells the most memory since a moment")
def test_a_campaign_tells_what_an_input_takes_from_what_making_it_takes(tmp_path, monkeypatch) -> None:
    large = 64 << 20

    def make(rng: random.Random) -> Attack:
        made = bytearray(large)
        return lambda: (str(len(made)), True)

    def take(rng: random.Random) -> Attack:
        return lambda: (str(len(bytearray(large))), True)

    monkeypatch.chdir(tmp_path)
    found = {}
    for name, target in (("make", make), ("take", take)):
        plant(monkeypatch, target)
        attack("http", 0, 3, tmp_path / name)
        found[name] = json.loads((tmp_path / name).read_text())
    assert found["make"]["peak_mib"] < 2 and verdict(found["make"])["holds"]
    assert found["take"]["peak_mib"] > 60 and not verdict(found["take"])["holds"]


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux tells the most memory since a moment")
@pytest.mark.parametrize(("kept", "holds"), [(40_000, False), (0, True)])
def test_a_campaign_notices_what_stays(tmp_path, monkeypatch, kept: int, holds: bool) -> None:
    """Some KiB of each input, or only of the first ones, as of a cache that fills."""
    stays, cache = [], []

    def make(rng: random.Random) -> Attack:
        def planted() -> tuple[str, bool]:
            if kept:  # pages of its own: the heap of a process that ran other tests has room for megabytes
                pages = mmap.mmap(-1, kept, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                pages.write(b"x" * kept)
                stays.append(pages)
            if len(cache) < 400:
                cache.append(b"x" * 16_000)
            return "words", True

        return planted

    monkeypatch.chdir(tmp_path)
    plant(monkeypatch, make)
    monkeypatch.setattr(campaign, "EVERY", 100)
    monkeypatch.setattr(campaign, "LEAST", 2000)
    attack("http", 0, 2000, tmp_path / "a")
    found = json.loads((tmp_path / "a").read_text())
    assert found["growth_inputs"] == 2000 and verdict(found)["holds"] is holds
    assert holds or 300 < found["growth_mib_per_10000"] < 500


def test_shares_make_a_whole_and_every_target_has_a_limit() -> None:
    assert abs(sum(SHARES.values()) - 1) < 1e-9
    assert set(SHARES) == set(LIMITS_MIB) == set(TARGETS)


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*/hostile.json")), ids=lambda path: path.parent.name)
def test_the_recorded_campaign_held(path) -> None:
    found = json.loads(path.read_text())
    assert found["holds"] and found["inputs"] == sum(part["inputs"] for part in found["targets"].values())
    for part in found["targets"].values():
        assert verdict(part)["holds"] and part["inputs"] == part["taken"] + part["refused"]
