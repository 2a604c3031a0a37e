"""Ctrl-C and SIGTERM as cooperative cancellation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tunekit.cancel import CancelToken
from tunekit.cli.exits import ExitCode

__all__ = ["Stopped", "cancel_on_signals"]

_SIGNALS = {
    signal.SIGINT: ("Ctrl-C", ExitCode.INTERRUPTED),
    signal.SIGTERM: ("SIGTERM", ExitCode.TERMINATED),
}


class Stopped:
    """Which signal asked for the stop, if one did."""

    code: ExitCode = ExitCode.INTERRUPTED


@contextmanager
def cancel_on_signals(token: CancelToken, say: Callable[[str], None]) -> Iterator[Stopped]:
    """While the block runs, the first SIGINT or SIGTERM sets ``token`` and the second ends the process at once.

    Args:
        token: what the run looks at.
        say: tells the user. Called from a thread of its own.
    """
    stopped = Stopped()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only; there the caller decides
        yield stopped
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name, stopped.code = _SIGNALS[signal.Signals(number)]
        token.cancel(name)
        for each in _SIGNALS:
            # the default action works even while native code runs, where a Python handler would have to wait
            signal.signal(each, signal.SIG_DFL)
        text = (
            f"{name}: stopping as soon as a checkpoint is written; the same command continues later. Again: quit now."
        )
        # whoever is interrupted may hold the console's lock
        threading.Thread(target=say, args=(text,), daemon=True).start()

    before = {each: signal.signal(each, handle) for each in _SIGNALS}
    try:
        yield stopped
    finally:
        for each, old in before.items():
            signal.signal(each, old)
