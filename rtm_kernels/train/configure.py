"""Recipes to and from JSON, and typed overrides `key=value` with dotted keys."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from rtm_kernels.data.dataset import PuzzleDataset
from rtm_kernels.errors import InputError, require
from rtm_kernels.files import read_json, replace_text
from rtm_kernels.train.objective import CONTRACTS, Contract
from rtm_kernels.train.schema import Recipe, Source

KIND = "kind"
"""Key that names the contract in a recipe's file."""


def to_dict(value: Any) -> Any:
    """Nested plain data of a recipe or a part of it; a contract also says its kind."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kinds = [name for name, cls in CONTRACTS.items() if cls is type(value)]
        return {KIND: kinds[0], **fields} if kinds else fields
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    return [to_dict(item) for item in value] if isinstance(value, (tuple, list)) else value


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write `recipe` as JSON."""
    replace_text(path, json.dumps(to_dict(recipe), indent=2) + "\n")


def load_recipe(path: Path) -> Recipe:
    """The recipe that `save_recipe` wrote. Errors: `InputError` naming the file and the field."""
    values = read_json(path)
    try:
        recipe: Recipe = build(Recipe, values, "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return recipe


def override(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with every `key=value` of `assignments` applied in order.

    A key is a field, or a dotted path to one: `lr`, `model.hidden_size`, `stages.0.steps`, `contract.ponder`,
    `sources.easy.count`, `stages.*.batch_size` for all stages. Values are JSON, or bare words for text; `none` is
    nothing where a field may hold nothing (`grad_clip=none`), and a word elsewhere (`model.pos_encodings=none`).

    Errors: `InputError` naming the key, its value and what is allowed; also for steps of a stage that `epochs` counts
    again.
    """
    values = to_dict(recipe)
    for assignment in assignments:
        _assign(values, assignment)
    changed: Recipe = build(Recipe, values, "")
    steps = [a for a in assignments if re.fullmatch(r"stages\.[^.]+\.steps=.*", a, re.DOTALL)]
    if steps and changed.epochs is not None:
        allowed = f"epochs={changed.epochs} counts the steps; add epochs=none"
        raise InputError(f"override {steps[0]!r} is not allowed: {allowed}")
    return changed


def source_of(assignments: Sequence[str]) -> Source:
    """A source with every `key=value` of `assignments`, as in `override`. Errors: `InputError` naming the key."""
    values = to_dict(Source())
    for assignment in assignments:
        _assign(values, assignment)
    source: Source = build(Source, values, "")
    return source


def fit_to_data(recipe: Recipe) -> Recipe:
    """The recipe with the vocabulary, length and identifiers of its data set, and steps for its `epochs` over it.

    Errors: `InputError` when the data set is missing or cannot be read.
    """
    if recipe.data is None:
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


def _assign(values: Any, assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise InputError(f"override {assignment!r} is not allowed: expected key=value, e.g. lr=0.001")
    _set(values, key, key.split("."), _parse(text))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


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
    if rest:
        _set(node[place], key, rest, value)
    else:
        node[place] = value


def build(expected: Any, value: Any, key: str) -> Any:
    """`value`, plain data, as an instance of the annotation `expected`. Errors: `InputError` naming `key`."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):
        if set(arguments) == set(typing.get_args(Contract)):
            return _contract(value, key)
        options = [option for option in arguments if option is not types.NoneType]
        return None if value in (None, "none", "None") else build(options[0], value, key)
    if dataclasses.is_dataclass(expected):
        return _dataclass(expected, value, key)
    if origin is tuple:
        _expect(isinstance(value, list), key, value, "a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        _expect(len(kinds) == len(value), key, value, f"a list of {len(kinds)}")
        return tuple(build(kind, item, f"{key}.{i}") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), key, value, "an object")
        return {name: build(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    return _scalar(expected, value, key)


def _scalar(expected: Any, value: Any, key: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is float:
        _expect(number, key, value, "a number")
        return float(value)
    if expected is int:
        whole = number and float(value).is_integer()
        _expect(whole, key, value, "an integer")
        return int(value)
    _expect(isinstance(value, expected), key, value, {bool: "true or false", str: "text"}[expected])
    return value


def _dataclass(cls: Any, value: Any, key: str) -> Any:
    _expect(isinstance(value, dict), key, value, "an object with the fields of " + cls.__name__)
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in value:
        _expect(name in names, f"{key}.{name}".lstrip("."), value[name], "a field of " + ", ".join(names))
    built = {name: build(hints[name], item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    try:
        return cls(**built)
    except InputError as error:
        raise InputError(f"{key}.{error}") if key else error from None
    except TypeError as error:
        raise InputError(f"{key or 'recipe'}: {error}") from None


def _contract(value: Any, key: str) -> Any:
    if isinstance(value, str):
        value = {KIND: value}
    kind = str(value.get(KIND)) if isinstance(value, dict) else str(value)
    _expect(kind in CONTRACTS, f"{key}.{KIND}", kind, "one of " + ", ".join(CONTRACTS))
    return _dataclass(CONTRACTS[kind], {k: v for k, v in value.items() if k != KIND}, key)


def _expect(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise InputError(f"{key or 'recipe'}={value!r} is not allowed: expected {allowed}")
