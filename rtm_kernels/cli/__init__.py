"""The command line, `rtm`."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Run `rtm`, or say what to install where the packages of its extra are missing (exit code 2)."""
    missing = [name for name in ("typer", "rich") if not importable(name)]
    if missing:
        print(f"error: rtm needs {' and '.join(missing)}: pip install 'rtm-kernels[cli]'", file=sys.stderr)
        sys.exit(2)
    from rtm_kernels.cli.main import app

    app()


def importable(name: str) -> bool:
    """Whether a package can be imported here."""
    try:
        import_module(name)
    except ImportError:
        return False
    return True
