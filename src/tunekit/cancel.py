"""Cooperative cancellation. Standard library only."""

from __future__ import annotations

import threading

from tunekit.errors import RunCancelled

__all__ = ["CancelToken"]


class CancelToken:
    """A flag that one side sets and the running side looks at between units of work.

    Trainers look at it after every optimizer step and then write a resumable checkpoint; scorers look at it between
    batches. Setting it twice does nothing; it cannot be cleared.
    """

    __slots__ = ("_event", "reason")

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def cancel(self, reason: str = "cancelled by the caller") -> None:
        """Ask the run to stop. Safe to call from any thread and from a signal handler."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def raise_if_cancelled(self) -> None:
        """Raises:
        RunCancelled: if a stop was asked for.
        """
        if self._event.is_set():
            raise RunCancelled(
                f"The run was cancelled: {self.reason}.",
                fix="run the same pipeline again in the same workdir to continue",
            )
