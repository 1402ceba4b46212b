"""The lm-eval harness on tasks from local files in the forms of GSM8K, ARC-Challenge and MBPP; code under limits."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rtm_kernels.interop.sandbox import pass_at_1, passes
from rtm_kernels.text.measure import measure
from tests.text.support import text_model

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are limited on Linux alone")


@linux
@pytest.mark.parametrize(
    ("code", "right"),
    [
        ("def f(x):\n    return x + 1", True),
        ("def f(x):\n    return x", False),
        ("def f(", False),
        ("import os\nos._exit(0)", False),
        ("print('x', file=open('written', 'w'), flush=True)\ndef f(x):\n    return x + 1", False),
        ("x = bytearray(1 << 30)\ndef f(x):\n    return x + 1", False),
        ("while True:\n    pass", False),
    ],
)
def test_code_passes_only_when_its_tests_do_within_the_limits(code: str, right: bool) -> None:
    assert passes(code, ["assert f(1) == 2"], seconds=1) is right


@linux
def test_the_metric_is_the_share_that_passes() -> None:
    assert pass_at_1(["assert f() == 1"] * 2, [["def f(): return 1"], ["def f(): return 2"]]) == 0.5


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
    pytest.importorskip("hat_splitter", reason="the package hat-splitter is not installed")
    from rtm_kernels.interop.lm_eval import TextLM

    folder = tmp_path_factory.mktemp("text") / "model"
    text_model("rtm", max_bytes=16, byte_row=40).float().save_pretrained(folder)
    return TextLM(str(folder), batch_size=3)


def request(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_likelihoods_of_texts(lm: Any) -> None:
    text = "def f(x):\n    return x + 1\n" * 4
    rolling = lm.loglikelihood_rolling([request(text), request("a")])
    assert rolling[0] == pytest.approx(
        -measure(lm.model, [[*lm.split(text), b""]]).bits_per_byte * len(text) * math.log(2), rel=1e-5
    )
    pairs = [("def f(", "x): return"), ("", "def f("), ("d", ""), ("The answer is", " 42"), (text, "again")]
    found = lm.loglikelihood([request(*pair) for pair in pairs])
    alone = [lm.loglikelihood([request(*pair)])[0] for pair in pairs]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in alone], rel=1e-4)
    assert found[2] == (0.0, True) and all(score < 0 for score, _ in found[:2])
    whole = lm.loglikelihood([request("", "def f(x): return")])[0][0]
    assert found[1][0] + found[0][0] == pytest.approx(whole, rel=1e-4), "the chain rule, where the words are the same"


def test_what_is_generated_greedily_is_greedy(lm: Any) -> None:
    torch.nn.init.zeros_(lm.model.lm_head.weight[128:257])  # bytes above ASCII are never the likeliest
    written = lm.generate_until([request("def f", {"until": ["\n\n"], "max_gen_toks": 6})])[0]
    assert 0 < len(written) <= 6
    drawn = lm.generate_until([request("def f", {"until": "z", "do_sample": True, "max_gen_toks": 30})])[0]
    assert "z" not in drawn


def test_the_harness_runs_tasks_from_local_files(lm: Any, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = {
        "sums": [{"question": f"{n} + 1?", "answer": f"So it is {n + 1}. #### {n + 1}"} for n in range(3)],
        "choices": [{"question": "Is ice cold?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]},
                     "answerKey": "A"}] * 3,
        "code": [{"text": "Add one.", "test_list": ["assert f(1) == 2"]}] * 2,
    }  # fmt: skip
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shared = "dataset_path: json\ntest_split: test\ndataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}\n"
    tasks = {
        "sums": 'output_type: generate_until\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
                "doc_to_target: \"{{answer.split('####')[-1].strip()}}\"\n"
                "generation_kwargs: {until: [\"\\n\"], max_gen_toks: 8}\nfilter_list:\n- name: number\n  filter:\n"
                "  - {function: regex, regex_pattern: \"(-?[0-9]+)\"}\n  - {function: take_first}\n"
                "metric_list:\n- {metric: exact_match, aggregation: mean, higher_is_better: true}\n",
        "choices": 'output_type: multiple_choice\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
                   'doc_to_target: "{{choices.label.index(answerKey)}}"\ndoc_to_choice: "{{choices.text}}"\n'
                   "metric_list:\n- {metric: acc, aggregation: mean, higher_is_better: true}\n",
        "code": 'output_type: generate_until\ndoc_to_text: "{{text}}\\n"\ndoc_to_target: "{{test_list[0]}}"\n'
                'generation_kwargs: {until: ["[DONE]"], max_gen_toks: 8}\nmetric_list:\n'
                "- {metric: !function run.pass_at_1, aggregation: mean, higher_is_better: true}\n",
    }  # fmt: skip
    (tmp_path / "run.py").write_text("from rtm_kernels.interop.sandbox import pass_at_1\n")
    for name, text in tasks.items():
        head = f"task: local_{name}\n" + shared.format(folder=tmp_path, name=name)
        (tmp_path / f"{name}.yaml").write_text(head + text)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    names = [f"local_{name}" for name in tasks]
    found = simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    assert found["local_sums"]["exact_match,number"] == 0
    assert found["local_choices"]["acc,none"] in (0, 1)
    assert found["local_code"]["pass_at_1,none"] == 0
