"""`make dist`: the fused ops as a repository of the hub's `kernels`, without architecture: Triton and PyTorch alone.

`torch-ext` is the source as kernel-builder reads it, `build/torch-*` what it makes of that. Modules are those of the
package that the layers need. Their imports become relative, and their ops get a namespace of their own, so that the
repository loads beside the package and beside other versions of itself.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

from rtm_kernels import __version__
from tests.packaging.sbom import ROOT

PACKAGE, NAME = "rtm_kernels", "rtm-kernels"
LAYERS = ROOT / "tests" / "packaging" / "hub_layers.py"
BACKENDS = ("cpu", "cuda")
VERSION = int(__version__.split(".")[0]) + 1
"""Version of the interface of the layers; the hub's versions are whole numbers."""

INIT = f'''"""Fused blocks of recursive reasoning models, from {NAME} {__version__}."""

from . import layers
from .ops.attention_norm.api import attention_norm
from .ops.swiglu_norm.api import mixer_norm, swiglu_norm

__all__ = ["attention_norm", "layers", "mixer_norm", "swiglu_norm"]
'''
BUILD = f"""[general]
edition = 5
name = "{NAME}"
version = {VERSION}
license = "Apache-2.0"
backends = {json.dumps(BACKENDS)}

[torch-noarch]
pyext = ["py", "json"]
"""
CARD = f"""---
license: apache-2.0
tags: [kernels]
---

# {NAME}

Fused blocks of TRM, HRM and RSM in Triton; in PyTorch where there is no GPU. From {NAME} {__version__}.

```python
from kernels import LayerRepository, Mode, kernelize, register_kernel_mapping, replace_kernel_forward_from_hub

replace_kernel_forward_from_hub(TinyRecursiveReasoningModel_ACTV1Block, "TRMBlock")
blocks = LayerRepository("OWNER/{NAME}", layer_name="TRMBlock", version={VERSION}, trust_remote_code=True)
register_kernel_mapping({{"TRMBlock": {{"cuda": blocks}}}})
model = kernelize(model, mode=Mode.INFERENCE, device="cuda")
```
"""
OPS = """import torch

ops = torch.ops.{space}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{space}::{{op_name}}"
"""


def needed() -> dict[str, Path]:
    """Files of the package by their place in it: the modules that the layers import, however late, and their data."""
    package = ROOT / PACKAGE
    found = {"layers.py": LAYERS, "ops/tuned.json": package / "ops" / "tuned.json"}
    todo = [LAYERS]
    while todo:
        for node in ast.walk(ast.parse(todo.pop().read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != PACKAGE:
                continue
            for name in (f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)):
                path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
                parents = [folder / "__init__.py" for folder in path.parents if package in folder.parents]
                for file in (path, *parents):
                    place = file.relative_to(package).as_posix() if package in file.parents else ""
                    if file.is_file() and place not in found:
                        found[place] = file
                        todo.append(file)
    return found


def rewritten(text: str, place: str) -> str:
    """A module with relative imports, whose ops are in the namespace that `_ops` names."""
    dots = "." * len(place.split("/"))
    text = re.sub(rf"(?m)^(\s*)from {PACKAGE}\.([\w.]+) import", rf"\1from {dots}\2 import", text)
    text = re.sub(rf"(?m)^(\s*)from {PACKAGE} import", rf"\1from {dots} import", text)
    if f'"{PACKAGE}::' in text or f"torch.ops.{PACKAGE}" in text:
        text = re.sub(rf'"{PACKAGE}::(\w+)"', r'add_op_namespace_prefix("\1")', text)
        text = text.replace(f"torch.ops.{PACKAGE}", "ops")
        line = "from __future__ import annotations\n"
        text = text.replace(line, f"{line}\nfrom {dots}_ops import add_op_namespace_prefix, ops\n", 1)
    return text


def write(out: Path) -> Path:
    """The repository as a new folder of `out`, which replaces an old one; returns its path."""
    target = out / "kernels" / NAME
    shutil.rmtree(target, ignore_errors=True)
    source = target / "torch-ext" / PACKAGE
    files = {"__init__.py": INIT}
    for place, path in sorted(needed().items()):
        text = path.read_text("utf-8")
        files[place] = rewritten(text, place) if place.endswith(".py") else text
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:10]
    for backend in BACKENDS:
        space = f"_{PACKAGE}_{backend}_{digest}"
        metadata = {
            "id": space, "name": NAME, "version": VERSION, "license": "Apache-2.0", "python-depends": [],
            "backend": {"type": backend},
        }  # fmt: skip
        made = {"_ops.py": OPS.format(space=space), "metadata.json": json.dumps(metadata, indent=2) + "\n"}
        _fill(target / "build" / f"torch-{backend}", files | made)
    _fill(source, files)
    _fill(target, {"build.toml": BUILD, "README.md": CARD, "LICENSE": (ROOT / "LICENSE").read_text("utf-8")})
    return target


def _fill(folder: Path, files: dict[str, str]) -> None:
    for place, text in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, "utf-8")


if __name__ == "__main__":
    print(write(Path(sys.argv[1]).absolute()))
