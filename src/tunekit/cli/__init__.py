"""The command ``tunekit``. The only part of tunekit that prints, installs signal handlers or ends the process."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code.

    Args:
        argv: arguments without the program's name; default: those of the process.
    """
    from tunekit.cli.app import app

    app(args=None if argv is None else list(argv), prog_name="tunekit")
