"""What a plugin must leave as it found it: the state that all code of a process shares."""

from __future__ import annotations

import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["HEAVY", "global_state", "state_changes", "watch_global_state"]

LIBRARY_VARIABLES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
)
"""Environment variables that torch and scikit-learn set when they are imported; they repeat defaults."""

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "numpy",
    "pydantic",
    "accelerate",
    "gptqmodel",
    "pandas",
    "scipy",
    "sklearn",
    "sympy",
    "tensorflow",
    "jax",
)
"""Packages that listing plugins must not bring in. Several add warnings filters of their own when imported."""

RUNNER_VARIABLES = ("PYTEST_CURRENT_TEST",)
LIBRARY_THREADS = ("TMonitor",)
"""Class names of threads that libraries keep for the life of the process: the clock of tqdm."""

TORCH_DEFAULTS: Mapping[str, Any] = {
    "torch default dtype": "torch.float32",
    "torch default device": "cpu",
    "torch gradients enabled": True,
    "torch inference mode": False,
    "torch deterministic algorithms": (False, False),
    "torch autocast": (False, False),
    "torch anomaly detection": False,
    "torch float32 matmul precision": "highest",
    "torch cuDNN flags": (False, False),
}

THREAD_GRACE = 2.0
"""Seconds that threads get to end."""


@contextmanager
def watch_global_state() -> Iterator[None]:
    """Fail if the block leaves process-wide state changed.

    Watched are the environment, the current directory, logging (root level, root handlers, ``logging.disable``, logger
    class), warnings filters, signal handlers, ``sys.path``, ``sys.stdout``, ``sys.stderr``, ``sys.excepthook``, the
    recursion limit, the locale, the socket timeout, garbage collection, threads left running, and torch: default dtype
    and device, number of threads, gradient and inference mode, deterministic algorithms, autocast, matmul precision.
    Random states are not: drawing numbers is no change. torch is not imported for it.

    Warnings filters are compared only if the block did not import torch or another large library for the first time:
    these add filters of their own.

    Raises:
        AssertionError: naming every change with its value before and after.
    """
    before = global_state()
    yield
    changes = state_changes(before, global_state(settle=before["threads"]))
    if changes:
        raise AssertionError(
            "global state was changed and not put back:\n  "
            + "\n  ".join(changes)
            + "\nA plugin runs inside other people's programs: change such things only in a context manager that "
            "restores them, or in a process of your own."
        )


def global_state(settle: frozenset[int] | None = None) -> dict[str, Any]:
    """The watched state now. With ``settle``, threads that are not in it get a moment to end."""
    if settle is not None:
        _wait_for_threads(settle)
    root = logging.getLogger()
    state: dict[str, Any] = {
        "os.environ": {k: v for k, v in os.environ.items() if k not in (*LIBRARY_VARIABLES, *RUNNER_VARIABLES)},
        "current directory": _cwd(),
        "logging root level": logging.getLevelName(root.level),
        # pytest hangs its own handlers in for each phase of a test
        "logging root handlers": [repr(h) for h in root.handlers if not type(h).__module__.startswith("_pytest.")],
        "logging.disable": root.manager.disable,
        "logging logger class": logging.getLoggerClass().__qualname__,
        "signal handlers": _signals(),
        "sys.path": list(sys.path),
        "sys.stdout": _identity(sys.stdout),
        "sys.stderr": _identity(sys.stderr),
        "sys.excepthook": _identity(sys.excepthook),
        "recursion limit": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "socket default timeout": socket.getdefaulttimeout(),
        "garbage collection": gc.isenabled(),
        "warnings filters": [repr(entry) for entry in warnings.filters],
        "libraries": frozenset(name for name in HEAVY if name in sys.modules),
        "threads": frozenset(thread.ident for thread in _threads()),
        "thread names": {thread.ident: repr(thread) for thread in _threads()},
    }
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        state["torch number of threads"] = torch.get_num_threads()
        state |= _torch(torch)
    return state


def state_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line per difference between two results of :func:`global_state`."""
    changes: list[str] = []
    for what, old, new in (
        *(("os.environ", b, a) for b, a in [(before["os.environ"], after["os.environ"])]),
        *(("signal handler", b, a) for b, a in [(before["signal handlers"], after["signal handlers"])]),
    ):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                changes.append(f"{what} {key}: {_shown(old.get(key))} -> {_shown(new.get(key))}")
    skipped = {"os.environ", "signal handlers", "libraries", "threads", "thread names"}
    if before["libraries"] != after["libraries"]:
        skipped.add("warnings filters")
    for what, new in after.items():
        if what in skipped:
            continue
        if what not in before and what not in TORCH_DEFAULTS:
            continue
        old = before.get(what, TORCH_DEFAULTS.get(what))
        if old != new:
            changes.append(f"{what}: {_difference(old, new)}")
    left = after["threads"] - before["threads"]
    changes += [f"thread left running: {after['thread names'][ident]}" for ident in sorted(left)]
    return changes


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list):
        added = [item for item in new if item not in old]
        gone = [item for item in old if item not in new]
        parts = [f"added {_shown(item)}" for item in added] + [f"removed {_shown(item)}" for item in gone]
        return ", ".join(parts) or "another order"
    return f"{_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    text = "unset" if value is None else value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _identity(value: Any) -> str:
    return f"{getattr(value, '__qualname__', type(value).__qualname__)} at {id(value):#x}"


def _cwd() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "a folder that was removed"


def _signals() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        name = getattr(number, "name", f"signal {number}")
        found[name] = getattr(handler, "name", None) or (_identity(handler) if callable(handler) else handler)
    return found


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if type(thread).__name__ not in LIBRARY_THREADS]


def _wait_for_threads(known: frozenset[int]) -> None:
    end = time.monotonic() + THREAD_GRACE
    for thread in _threads():
        if thread.ident not in known and thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))


def _torch(torch: Any) -> dict[str, Any]:
    return {
        "torch default dtype": str(torch.get_default_dtype()),
        "torch default device": str(torch.get_default_device()),
        "torch gradients enabled": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "torch anomaly detection": torch.is_anomaly_enabled(),
        "torch float32 matmul precision": torch.get_float32_matmul_precision(),
        "torch cuDNN flags": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
    }
