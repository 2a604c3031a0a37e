"""What the commands share: consoles, and how an error becomes a message and an exit code."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from tunekit.cli.exits import ExitCode, exit_code
from tunekit.errors import RunCancelled, TunekitError

if TYPE_CHECKING:
    from tunekit.cli.signals import Stopped
    from tunekit.events import Event

__all__ = ["Command", "Debug", "Json"]

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output; all else on standard error.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log.")]


class Command:
    """One invocation: its consoles, and how far the run is."""

    def __init__(self, *, json: bool = False, debug: bool = False) -> None:
        self.json = json
        self.debug = debug
        self.out = Console(stderr=json)
        self.err = Console(stderr=True)
        self.running = False
        self.stopped: Stopped | None = None
        if debug:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
            logging.getLogger("tunekit").setLevel(logging.DEBUG)
        else:
            # torchao makes torch warn about its own enums at every import; nobody here can do anything about it
            logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

    def watch(self, event: Event) -> None:
        """Note that a step has begun."""
        self.running = self.running or type(event).__name__ == "StepStarted"

    def fail(self, error: BaseException, code: ExitCode) -> NoReturn:
        """Show an error and end."""
        from tunekit.cli import render

        if self.debug:
            inner = error.details.get("traceback") if isinstance(error, TunekitError) else None
            self.err.print(inner or "".join(traceback.format_exception(error)), markup=False, highlight=False)
        if isinstance(error, TunekitError):
            self.err.print(render.error_view(error, self.err), highlight=False)
        elif not isinstance(error, KeyboardInterrupt):
            text = f"tunekit failed unexpectedly: {type(error).__name__}: {error}"
            hint = "" if self.debug else "\nThis is a bug. Run again with --debug and report what it shows."
            self.err.print(text + hint, style="red", markup=False, highlight=False)
        if self.json:
            render.write_json(render.error_data(error, code))
        raise typer.Exit(int(code))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the block into messages and exit codes."""
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except (RunCancelled, KeyboardInterrupt) as error:
            self.fail(error, self.stopped.code if self.stopped else ExitCode.INTERRUPTED)
        except Exception as error:  # noqa: BLE001  (the last line of defence: a message in place of a traceback)
            self.fail(error, exit_code(error, running=self.running))
