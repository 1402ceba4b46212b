"""Recipes to and from JSON, and typed overrides `key=value` with dotted keys."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.errors import InputError, require
from rtm_kernels.files import read_json, replace_text
from rtm_kernels.train.recipe import ABOUT, PRESETS
from rtm_kernels.train.schedule import Schedule
from rtm_kernels.train.schema import Recipe, Source, Stage
from rtm_kernels.train.text_recipe import TEXT_ABOUT, TEXT_PRESETS, TextRecipe

AnyRecipe = Recipe | TextRecipe
Part = TypeVar("Part", bound=Recipe | Source | TextRecipe)
Trained = TypeVar("Trained", bound=AnyRecipe)

RECIPES: dict[str, tuple[AnyRecipe, str]] = {
    **{name: (recipe, ABOUT.get(name, "needs data=FOLDER")) for name, recipe in PRESETS.items()},
    **{name: (recipe, TEXT_ABOUT[name]) for name, recipe in TEXT_PRESETS.items()},
}
"""Every named recipe, and what it is."""

OPTIONAL = {
    field.name
    for part in (Recipe, Stage, Source, TextRecipe)
    for field in dataclasses.fields(part)
    if "None" in str(field.type)
}
"""Fields that may be nothing: `none` is no text there."""


def to_dict(value: AnyRecipe | Source) -> dict[str, Any]:
    """Nested plain data of a recipe or a source, the fields of every recipe last."""
    found: dict[str, Any] = pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")
    shared = {field.name for field in dataclasses.fields(Schedule)} if isinstance(value, Schedule) else ()
    return dict(sorted(found.items(), key=lambda item: item[0] in shared))


def build(expected: type[Part], values: Any) -> Part:
    """A recipe or a source of nested plain data.

    Errors: `InputError` naming the field, its value and what is allowed.
    """
    try:
        return pydantic.TypeAdapter(expected).validate_json(json.dumps(values))
    except pydantic.ValidationError as errors:
        first = min(errors.errors(), key=lambda error: error["type"] == "missing")
        path, absent = first["loc"], first["type"] == "missing"
        key = ".".join(map(str, path[:-1] if absent else path))
        raised = first.get("ctx", {}).get("error")
        if isinstance(raised, InputError):
            raise InputError(f"{key}.{raised}" if key else str(raised)) from None
        allowed = f"expected a value for {path[-1]}" if absent else first["msg"].replace("Input should be", "expected")
        raise InputError(f"{key or 'recipe'}={first['input']!r:.200} is not allowed: {allowed}") from None


def save_recipe(recipe: AnyRecipe, path: Path) -> None:
    """Write `recipe` as JSON."""
    replace_text(path, json.dumps(to_dict(recipe), indent=2) + "\n")


def load_recipe(path: Path) -> AnyRecipe:
    """The recipe that `save_recipe` wrote. Errors: `InputError` naming the file and the field."""
    values = read_json(path)
    try:
        is_text = isinstance(values, dict) and "backbone" in (values.get("model") or ())
        return build(TextRecipe, values) if is_text else build(Recipe, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def override(part: Part, assignments: Sequence[str]) -> Part:
    """A recipe, or a source, with every `key=value` of `assignments` applied in order.

    A key is a field, or a dotted path to one: `lr`, `model.hidden_size`, `stages.0.steps`, `objective.ponder`,
    `sources.easy.count`, `stages.*.batch_size` for all stages. Values are JSON, or bare words for text; `none` is
    nothing where a field may hold nothing (`grad_clip=none`), and a word elsewhere (`model.pos_encodings=none`).

    Errors: `InputError` naming the key, its value and what is allowed; also for steps of a stage that `epochs` counts
    again.
    """
    values = to_dict(part)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"override {assignment!r} is not allowed: expected key=value, e.g. lr=0.001")
        _set(values, key, key.split("."), _parse(text))
    changed = build(type(part), values)
    steps = [a for a in assignments if re.fullmatch(r"stages\.[^.]+\.steps=.*", a, re.DOTALL)]
    if steps and isinstance(changed, Recipe) and changed.epochs is not None:
        allowed = f"epochs={changed.epochs} counts the steps; add epochs=none"
        raise InputError(f"override {steps[0]!r} is not allowed: {allowed}")
    return changed


def fit_to_data(recipe: Trained) -> Trained:
    """The recipe with the vocabulary, length and identifiers of its data set, and steps for its `epochs` over it.

    Errors: `InputError` when the data set is missing or cannot be read.
    """
    if isinstance(recipe, TextRecipe) or recipe.data is None:
        return recipe
    require(bool(recipe.data), "data", recipe.data, "this recipe trains on a data set: data=FOLDER, official layout")
    metadata = PuzzleDataset.open(recipe.data, "train").metadata
    identifiers = metadata.num_puzzle_identifiers
    model = replace(
        recipe.model, vocab_size=metadata.vocab_size, seq_len=metadata.seq_len, num_puzzle_identifiers=identifiers
    )
    if recipe.epochs is None:
        return replace(recipe, model=model)
    examples = recipe.epochs * metadata.total_groups * metadata.mean_puzzle_examples
    factor = examples / sum(stage.steps * stage.batch_size for stage in recipe.stages)
    ends = [int(end * factor + 1e-9) for end in accumulate(stage.steps for stage in recipe.stages)]
    stages = tuple(
        replace(stage, steps=max(1, end - start))
        for stage, start, end in zip(recipe.stages, [0, *ends], ends, strict=False)
    )
    return replace(recipe, model=model, stages=stages, eval_every=math.ceil(recipe.eval_every * factor))


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_float=_number)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _number(text: str) -> int | float:
    """1e3 and 2.0 are integers where one is asked for."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _set(node: Any, key: str, path: list[str], value: Any) -> None:
    head, rest = path[0], path[1:]
    if isinstance(node, list) and head == "*":
        for index in range(len(node)):
            _set(node, key, [str(index), *rest], value)
        return
    if isinstance(node, list):
        allowed = [str(index) for index in range(len(node))]
    elif isinstance(node, dict):
        allowed = list(node)
    else:
        raise InputError(f"override key {key!r} is not allowed: {head!r} leads into a value that has no fields")
    if head not in allowed:
        raise InputError(f"override key {key!r} is not allowed: {head!r} is not one of {', '.join(allowed)}")
    place: Any = int(head) if isinstance(node, list) else head
    if isinstance(value, str) and not rest:
        value = None if head in OPTIONAL and value in ("none", "None") else value
        value = {"kind": value} if head == "objective" else value
    if rest:
        _set(node[place], key, rest, value)
    else:
        node[place] = value
