"""Models on the hub, by the real huggingface_hub against a stand-in of the hub's HTTP interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import hub_server
from tests.test_docs import block

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("huggingface_hub", reason="no huggingface_hub here: saving to and loading from the hub is unproven")

USE = """
import json, sys, torch
from tests.small_models import make
from tests.text.support import text_model
from rtm_kernels import RecursiveReasoner
from rtm_kernels.errors import InputError

def small(**changes):
    torch.manual_seed(0)
    return make(**{"seq_len": 5, "mixer": "mlp", **changes})

def refusal(call, *args, **options):
    try:
        call(*args, **options)
    except InputError as error:
        return str(error)

assert "huggingface_hub" not in sys.modules
first = small()
found = {"first": first.push_to_hub("me/tiny", private=True, token="secret")}
other = small(seq_len=6)
found["second"] = other.save_pretrained("saved", push_to_hub=True, repo_id="me/tiny", commit_message="Longer") and None
small(seq_len=7).push_to_hub("me/tiny", branch="wide")
load = RecursiveReasoner.from_pretrained
again = load("me/tiny", revision=found["first"].rsplit("/", 1)[1], token="secret")
found["same"] = all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
found["lengths"] = [load("me/tiny", revision=r).config.seq_len for r in ("main", "wide")]
found["offline"] = load("me/tiny", local_files_only=True).config.seq_len
found["elsewhere"] = load("me/tiny", cache_dir="cache", force_download=True).config.seq_len
words = text_model("rtm").float()
words.push_to_hub("me/text", private=False)
state = torch.random.get_rng_state()
read = type(words).from_pretrained("me/text")
found["text"] = all(torch.equal(v, read.state_dict()[k]) for k, v in words.state_dict().items())
found["kept"] = torch.equal(state, torch.random.get_rng_state())
found["absent"] = [refusal(load, "me/absent"), refusal(load, "me/tiny", revision="v9")]
with torch.no_grad():
    first.lm_head.weight[0, 0] = torch.inf
found["bad"] = refusal(first.push_to_hub, "me/bad")
names = {}
exec(sys.argv[1], names)
found["documented"] = names["model"].config.seq_len
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], hub_server.Hub, Path]:
    """What a program of a user's finds, the hub that it leaves, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("user")
    with hub_server.serving() as hub:
        env = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", USE, block("push_to_hub(")],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), hub, folder


def test_what_was_pushed_is_loaded_at_any_revision(used: tuple[dict[str, Any], hub_server.Hub, Path]) -> None:
    found, hub, folder = used
    assert found["same"] and found["lengths"] == [6, 7]
    assert found["offline"] == found["elsewhere"] == 6
    assert (folder / "saved" / "config.json").exists() and (folder / "cache").is_dir()
    first = hub.repos["me/tiny"][found["first"].rsplit("/", 1)[1]]
    assert first.pop(".visibility") == b"private"
    assert sorted(first) == ["README.md", "config.json", "manifest.json", "model.safetensors"]
    assert found["documented"] == 81 and found["text"] and found["kept"]
    assert ("POST", "/api/repos/create", "Bearer secret") in hub.asked


def test_a_card_is_written_once(used: tuple[dict[str, Any], hub_server.Hub, Path]) -> None:
    _, hub, _ = used
    commits = list(hub.repos["me/tiny"].values())
    card = commits[1]["README.md"].decode()
    head, body = card.removeprefix("---\n").split("---\n", 1)
    assert head.splitlines() == ["library_name: rtm-kernels", "tags:", "- recursive-reasoning", "- trm"]
    assert body.startswith("\n# tiny\n") and "`trm`" in body and "length\n5, vocabulary of" in body
    assert 'from_pretrained("me/tiny")' in body and "$" not in card
    text = [files["README.md"].decode() for files in hub.repos["me/text"].values() if "README.md" in files][-1]
    assert "from rtm_kernels.text.model import TextModel" in text and "rtm generate" in text
    assert len(commits) == 4 and all(files["README.md"] == card.encode() for files in commits[1:])


def test_refusals_are_one_line_and_leave_nothing(used: tuple[dict[str, Any], hub_server.Hub, Path]) -> None:
    found, hub, _ = used
    assert [line.split(":")[0] for line in found["absent"]] == [
        "hub model 'me/absent' cannot be fetched", "hub model 'me/tiny' cannot be fetched"
    ]  # fmt: skip
    assert "lm_head.weight holds values that are not finite" in found["bad"] and "me/bad" not in hub.repos
