"""`rtm info`: versions, devices, backends and models on this machine."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any

import typer

from rtm_kernels.cli.options import Json

PACKAGES = ("torch", "triton", "numpy", "safetensors", "flash_attn", "huggingface_hub", "mcp", "ray")


def info(json_object: Json = False) -> None:
    """Show versions, devices, bundled models, and which backends can run here.

    Examples:

      rtm info
      rtm info --json
    """
    devices = _devices()
    backends = [backend for device in devices for backend in _backends(device["name"])]
    versions, models = _versions(), _models()
    if json_object:
        found = {"versions": versions, "devices": devices, "backends": backends, "models": models}
        typer.echo(json.dumps(found))
        return
    from rich.console import Console

    from rtm_kernels.cli.report import print_table

    console = Console(highlight=False)
    sections = {
        "versions": {name: version or "not installed" for name, version in versions.items()},
        "devices": {device["name"]: device["description"] for device in devices},
        "backends": {
            f"{b['kind']} {b['name']} on {b['device']}": "can run" if b["available"] else f"cannot run: {b['reason']}"
            for b in backends
        },
        "models": {m["name"]: m["error"] or f"{m['arch']}, {m['parameters']:,} parameters" for m in models},
    }
    for title, rows in sections.items():
        console.print(title, style="bold")
        print_table(console, rows or {"none": ""})
        console.print()


def _versions() -> dict[str, str | None]:
    from rtm_kernels import __version__

    versions: dict[str, str | None] = {"rtm_kernels": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _devices() -> list[dict[str, Any]]:
    import torch

    threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    devices: list[dict[str, Any]] = [{"name": "cpu", "description": f"{platform.machine()}, {threads}"}]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        description = f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB"
        devices.append({"name": f"cuda:{i}", "description": description})
    return devices


def _backends(name: str) -> list[dict[str, Any]]:
    """The op implementations, the attention of the official Sudoku size and the solver's executors on one device."""
    import torch

    from rtm_kernels.config import ModelConfig
    from rtm_kernels.engine import EXECUTORS
    from rtm_kernels.impl import why_not_triton
    from rtm_kernels.model import RecursiveReasoner
    from rtm_kernels.ops.attention_norm.api import why_not_flash

    device = torch.device(name)
    model = RecursiveReasoner(ModelConfig(vocab_size=2, seq_len=1, hidden_size=8, num_heads=1)).to(device)
    reasons: dict[tuple[str, str], str | None] = {("ops", "reference"): None, ("ops", "triton"): why_not_triton(device)}
    official = torch.empty(1, 97, 512, dtype=torch.bfloat16, device=device)
    reasons["attention", "flash_attn"] = why_not_flash(official, num_heads=8)
    reasons |= {("executor", key): backend.why_not(model) for key, backend in EXECUTORS.items()}
    return [
        {"kind": kind, "name": key, "device": name, "available": reason is None, "reason": reason}
        for (kind, key), reason in reasons.items()
    ]


def _models() -> list[dict[str, Any]]:
    from rtm_kernels.errors import InputError
    from rtm_kernels.model import RecursiveReasoner
    from rtm_kernels.pretrained import known_models

    models: list[dict[str, Any]] = []
    for name in known_models():
        found: dict[str, Any] = dict.fromkeys(("arch", "parameters", "seq_len", "error"))
        try:
            model = RecursiveReasoner.from_pretrained(name)
            size = sum(p.numel() for p in model.parameters())
            found |= {"arch": model.config.arch, "parameters": size, "seq_len": model.config.seq_len}
        except InputError as error:
            found["error"] = str(error)
        models.append({"name": name, **found})
    return models
