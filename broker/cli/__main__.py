"""Entry of the `broker` program. Nothing but the version is known before the command line asks for more."""

from __future__ import annotations

import sys
from importlib import import_module

from broker import __version__
from broker.cli.loading import loading


def main(argv: list[str] | None = None) -> int:
    """Run a command line (default: this process'); -> its exit code, see `broker.cli.exits`."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:  # click alone takes twice the time a version may
        sys.stdout.write(f"broker {__version__}\n")
        return 0
    with loading():
        program = import_module("broker.cli.program")
    code: int = program.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
