"""The command line, `rtm`."""


def main() -> None:
    """Run `rtm`."""
    from rtm_kernels.cli.main import app

    app()
