"""The text study: arms of equal training FLOPs, their bits per byte by rounds, on clean and on changed text."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks import machine
from benchmarks.evaluation import report
from benchmarks.evaluation.run import Options, trained
from benchmarks.evaluation.studies import TEXT_SCALES, TEXT_STUDIES
from rtm_kernels.text import measure as text_measure
from rtm_kernels.text.measure import Measured, measure
from rtm_kernels.text.model import TextModel
from rtm_kernels.train.configure import override
from rtm_kernels.train.corpus import TextStream
from rtm_kernels.train.text_recipe import TextRecipe

CHANGED = 0.1
"""Share of the characters that are replaced."""
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for an interval of 95 % over so many seeds."""
COLUMNS = (
    "study", "scale", "changes", "arm", "seed", "policy", "depth", "mean_rounds", "flops_per_byte", "bits_per_byte",
    "bits_per_byte_changed", "bytes", "joules_per_byte", "idle_watts", "energy_covers", "parameters",
    "training_steps", "training_flops", "device", "machine", "commit",
)  # fmt: skip


def step_flops(recipe: TextRecipe, positions: float) -> float:
    """Training FLOPs of a step with so many byte positions, in the mean over the rounds that are drawn."""
    words, rounds = recipe.batch_size * recipe.model.backbone.seq_len, recipe.model.rounds
    one, two = (text_measure.training_flops(recipe.model, words, positions, n) for n in (1, 2))
    if recipe.model.halts:
        return text_measure.training_flops(recipe.model, words, positions, rounds)
    return one + recipe.keep * (rounds - 1) * (two - one)


def text_recipes(name: str, options: Options, seed: int) -> tuple[dict[str, TextRecipe], float]:
    """Arm -> its recipe, with as many steps as the training FLOPs of the base recipe pay for; and byte positions of a
    step, the mean of eight batches."""
    base = replace(override(TEXT_SCALES[options.scale.name], list(options.changes)), seed=seed)
    stream = TextStream(base)
    positions = fmean(stream.batch()[0].symbols.numel() for _ in range(8))
    total = base.steps * step_flops(base, positions)
    arms: dict[str, TextRecipe] = {}
    for arm in TEXT_STUDIES[name].arms(base):
        recipe = override(base, list(arm.changes))
        factor = total / step_flops(recipe, positions) / base.steps
        steps, warmup = (max(1, round(n * factor)) for n in (base.steps, base.warmup_steps))
        arms[arm.name] = replace(recipe, steps=steps, warmup_steps=warmup)
    return arms, positions


def change(text: str, seed: int = 0) -> str:
    """The text with `CHANGED` of its characters replaced by others that are drawn from it."""
    rng = random.Random(seed)
    return "".join(rng.choice(text) if rng.random() < CHANGED else character for character in text)


def run_text_study(name: str, options: Options) -> list[str]:
    """Train, measure, write csv, page and figure; returns the table. Errors: `InputError`, `Interrupted`."""
    found: list[dict[str, Any]] = []
    idle = machine.idle_watts(options.device) if options.energy > 0 else None
    for seed in range(options.seeds):
        arms, positions = text_recipes(name, options, seed)
        first = next(iter(arms.values()))
        stream = TextStream(first)
        texts = stream.corpus.sample(first.eval_bytes)
        clean, changed = ([[*stream.split(t), b""] for t in part] for part in (texts, [change(t) for t in texts]))
        for arm, recipe in arms.items():
            begin = time.monotonic()
            folder, commit = trained(recipe, options)
            model = TextModel.from_pretrained(folder).to(options.device)
            facts = {
                "study": name, "scale": options.scale.name, "changes": " ".join(options.changes), "arm": arm,
                "seed": seed, "policy": recipe.model.backbone.halting, "training_steps": recipe.steps,
                "training_flops": recipe.steps * step_flops(recipe, positions), "idle_watts": idle,
                "parameters": sum(p.numel() for p in model.parameters()), "device": options.device,
                "machine": machine.device_name(options.device.partition(":")[0]), "commit": commit,
            }  # fmt: skip
            for rounds in range(1, recipe.model.rounds + 1):
                energy = joules(model, clean, rounds, options) if rounds == recipe.model.rounds else None
                row = columns(measure(model, clean, rounds), measure(model, changed, rounds), energy)
                found.append(facts | {"depth": rounds} | row)
            last = found[-1]["bits_per_byte"]
            print(
                f"{name}, {arm}, seed {seed}: {last:.4f} bits per byte ({time.monotonic() - begin:.0f} s)", flush=True
            )
    options.folder.mkdir(parents=True, exist_ok=True)
    report.write_csv(found, options.folder / f"{name}.csv", COLUMNS)
    found = report.read_csv(options.folder / f"{name}.csv")
    drawn = draw(found, options.folder / f"{name}.png")
    report.rows.replace(options.folder / f"{name}.md", page(found, TEXT_STUDIES[name].question, drawn))
    return table(found)


def joules(model: TextModel, texts: Sequence[Sequence[bytes]], rounds: int, options: Options) -> dict[str, Any] | None:
    """Energy of scoring the texts once; None without a window or a counter."""
    if options.energy <= 0:
        return None
    return machine.energy(lambda i: measure(model, texts, rounds), options.device.partition(":")[0], options.energy)


def columns(clean: Measured, changed: Measured, energy: dict[str, Any] | None) -> dict[str, Any]:
    """The measured columns of one row."""
    return {
        "mean_rounds": clean.rounds, "flops_per_byte": clean.flops_per_byte, "bits_per_byte": clean.bits_per_byte,
        "bits_per_byte_changed": changed.bits_per_byte, "bytes": clean.bytes,
        "joules_per_byte": energy["joules_per_call"] / clean.bytes if energy else None,
        "energy_covers": energy and energy["covers"],
    }  # fmt: skip


def interval(values: Sequence[float]) -> str:
    """Mean of a value over seeds and half its 95 % interval (Student's t), where there are several."""
    count = len(values)
    if count < 2:
        return f"{fmean(values):.4f}"
    return f"{fmean(values):.4f} ± {STUDENT.get(count, 2.57) * stdev(values) / count**0.5:.4f}"


def table(found: Sequence[report.Row]) -> list[str]:
    """One line per arm and number of rounds."""
    lines = [
        "| arm | parameters | steps | training TFLOP | rounds at test | mean rounds | kFLOP per byte | bits per byte "
        "| 10 % changed | J per MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for arm, mine in report.by_arm(found).items():
        for depth in sorted({row["depth"] for row in mine}):
            rows = [row for row in mine if row["depth"] == depth]
            first, energy = rows[0], [r["joules_per_byte"] for r in rows if r["joules_per_byte"] is not None]
            cells = [
                arm, f"{first['parameters']:,.0f}", f"{first['training_steps']:.0f}",
                f"{first['training_flops'] / 1e12:.2f}", f"{depth:.0f}", f"{fmean(r['mean_rounds'] for r in rows):.2f}",
                f"{fmean(r['flops_per_byte'] for r in rows) / 1e3:.0f}", interval([r["bits_per_byte"] for r in rows]),
                interval([r["bits_per_byte_changed"] for r in rows]), f"{1e6 * fmean(energy):.3g}" if energy else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(found: Sequence[report.Row], question: str, picture: bool) -> str:
    """The page of the study, from its rows alone."""
    first, name = found[0], found[0]["study"]
    seeds, commits = len({r["seed"] for r in found}), ", ".join(sorted({r["commit"] for r in found}))
    energy = "" if any(r["joules_per_byte"] is not None for r in found) else " Energy: no counter can be read here."
    changed = f" Changed from the scale: `{first['changes']}`." if first["changes"] else ""
    lines = [
        f"# {question}", "",
        f"`python -m benchmarks.evaluation {name} --scale {first['scale']}` on {first['machine']} at commit {commits}; "
        f"every figure is from [{name}.csv]({name}.csv).{changed} Every arm was trained for the same FLOPs, {seeds} "
        f"seeds each, and measured on the same {first['bytes']:,.0f} bytes of held-out documents. Bits per byte count "
        f"bytes, word boundaries and text ends, with a 95 % interval over seeds; arms whose intervals overlap are not "
        f"told apart. `RINS r = 1` is the fixed depth of equal parameters, `FLOPs of r = 2` the one of equal compute. "
        f"For words that halt the rounds at test are a cap. In the changed text one character in ten is another, which "
        f"itself costs bits.{energy}", "",
        *table(found), "",
    ]  # fmt: skip
    return "\n".join([*lines, *([f"![bits per byte]({name}.png)", ""] if picture else [])]).rstrip() + "\n"


def draw(found: Sequence[report.Row], path: Path) -> bool:
    """Bits per byte against FLOPs per byte, a line per arm over its rounds; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, (arm, mine) in enumerate(report.by_arm(found).items()):
        depths = sorted({row["depth"] for row in mine})
        means = [[fmean(r[key] for r in mine if r["depth"] == depth) for depth in depths]
                 for key in ("flops_per_byte", "bits_per_byte")]  # fmt: skip
        axes.plot([flops / 1e3 for flops in means[0]], means[1], "o-", color=f"C{i}", label=arm, markersize=4)
        axes.plot([r["flops_per_byte"] / 1e3 for r in mine], [r["bits_per_byte"] for r in mine], ".", color=f"C{i}",
                  alpha=0.4)  # fmt: skip
    axes.set(xlabel="kFLOP per byte at test", ylabel="bits per byte, held out")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    return True
