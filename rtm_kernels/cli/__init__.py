"""The command line, `rtm`."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run `rtm`, or say what to install where the packages of its extra are missing (exit code 2)."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(f"error: rtm needs {' and '.join(missing)}: pip install 'rtm-kernels[cli]'", file=sys.stderr)
        sys.exit(2)
    from rtm_kernels.cli.main import app

    app()
