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
    found = gather()
    if json_object:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console

    from rtm_kernels.cli.report import print_table

    console = Console(highlight=False)
    sections: dict[str, dict[str, str]] = {
        "versions": {name: version or "not installed" for name, version in found["versions"].items()},
        "devices": {device["name"]: device["description"] for device in found["devices"]},
        "backends": {
            f"{b['kind']} {b['name']} on {b['device']}": "can run" if b["available"] else f"cannot run: {b['reason']}"
            for b in found["backends"]
        },
        "models": {m["name"]: m["error"] or f"{m['arch']}, {m['parameters']:,} parameters" for m in found["models"]},
    }
    for title, rows in sections.items():
        console.print(title, style="bold")
        print_table(console, rows or {"none": ""})
        console.print()


def gather() -> dict[str, Any]:
    """Everything `rtm info --json` prints."""
    devices = _devices()
    backends = [backend for device in devices for backend in _backends(device["name"])]
    return {"versions": _versions(), "devices": devices, "backends": backends, "models": _models()}


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

    models = []
    for name in known_models():
        entry: dict[str, Any] = {"name": name, "arch": None, "parameters": None, "seq_len": None, "error": None}
        try:
            model = RecursiveReasoner.from_pretrained(name)
        except InputError as error:
            entry["error"] = str(error)
        else:
            entry["parameters"] = sum(p.numel() for p in model.parameters())
            entry |= {"arch": model.config.arch, "seq_len": model.config.seq_len}
        models.append(entry)
    return models
