"""watch_global_state names each kind of change, and nothing else."""

from __future__ import annotations

import gc
import locale
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tunekit.testing import watch_global_state
from tunekit.testing.state import global_state, state_changes


def set_environment(stack: ExitStack) -> None:
    os.environ["ACME_MODE"] = "fast"
    stack.callback(os.environ.pop, "ACME_MODE")


def unset_environment(stack: ExitStack) -> None:
    stack.callback(os.environ.__setitem__, "PATH", os.environ.pop("PATH"))


def change_directory(stack: ExitStack) -> None:
    stack.callback(os.chdir, Path.cwd())
    os.chdir("/")


def root_level(stack: ExitStack) -> None:
    stack.callback(logging.root.setLevel, logging.root.level)
    logging.root.setLevel(logging.DEBUG)


def root_handler(stack: ExitStack) -> None:
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    stack.callback(logging.root.removeHandler, handler)


def disable_logging(stack: ExitStack) -> None:
    stack.callback(logging.disable, logging.root.manager.disable)
    logging.disable(logging.INFO)


def ignore_warnings(stack: ExitStack) -> None:
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message="acme")


def handle_signal(stack: ExitStack) -> None:
    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    stack.callback(signal.signal, signal.SIGUSR1, old)


def extend_path(stack: ExitStack) -> None:
    sys.path.append("/opt/acme")
    stack.callback(sys.path.remove, "/opt/acme")


def replace_stdout(stack: ExitStack) -> None:
    old, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: PTH123, SIM115
    stack.callback(setattr, sys, "stdout", old)
    stack.callback(sys.stdout.close)


def exception_hook(stack: ExitStack) -> None:
    stack.callback(setattr, sys, "excepthook", sys.excepthook)
    sys.excepthook = lambda *_: None


def recursion_limit(stack: ExitStack) -> None:
    stack.callback(sys.setrecursionlimit, sys.getrecursionlimit())
    sys.setrecursionlimit(54321)


def set_locale(stack: ExitStack) -> None:
    stack.callback(locale.setlocale, locale.LC_ALL, locale.setlocale(locale.LC_ALL))
    locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8")


def socket_timeout(stack: ExitStack) -> None:
    stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
    socket.setdefaulttimeout(12.5)


def stop_collecting(stack: ExitStack) -> None:
    stack.callback(gc.enable)
    gc.disable()


CHANGES: dict[Callable[[ExitStack], None], str] = {
    set_environment: "os.environ ACME_MODE: unset -> fast",
    unset_environment: "os.environ PATH: ",
    change_directory: "current directory: ",
    root_level: "logging root level: ",
    root_handler: "logging root handlers: added <NullHandler",
    disable_logging: "logging.disable: 0 -> 20",
    ignore_warnings: "warnings filters: added ",
    handle_signal: "signal handler SIGUSR1: SIG_DFL -> ",
    extend_path: "sys.path: added /opt/acme",
    replace_stdout: "sys.stdout: ",
    exception_hook: "sys.excepthook: ",
    recursion_limit: "-> 54321",
    set_locale: "locale: ",
    socket_timeout: "socket default timeout: unset -> 12.5",
    stop_collecting: "garbage collection: True -> False",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_named_and_alone(change: Callable[[ExitStack], None]) -> None:
    with ExitStack() as stack, pytest.raises(AssertionError) as caught, watch_global_state():
        change(stack)
    _, *lines, _ = str(caught.value).splitlines()
    assert len(lines) == 1 and CHANGES[change] in lines[0]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_that_is_put_back_is_none(change: Callable[[ExitStack], None]) -> None:
    before = global_state()
    with ExitStack() as stack:
        change(stack)
    assert state_changes(before, global_state()) == []


def test_several_changes_are_all_named() -> None:
    with ExitStack() as stack, pytest.raises(AssertionError) as caught, watch_global_state():
        set_environment(stack)
        extend_path(stack)
        stop_collecting(stack)
    assert len(str(caught.value).splitlines()) == 5


def test_a_thread_that_runs_on_is_named_and_one_that_ends_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.testing.state.THREAD_GRACE", 0.2)
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="acme-uploader", daemon=True)
    with pytest.raises(AssertionError, match=r"thread left running: .*acme-uploader"), watch_global_state():
        thread.start()
    go.set()
    thread.join()
    with watch_global_state():
        threading.Thread(target=lambda: None).start()


def test_an_error_of_the_block_is_not_hidden() -> None:
    with ExitStack() as stack, pytest.raises(KeyError), watch_global_state():
        set_environment(stack)
        raise KeyError("the real trouble")


def test_torch_is_not_imported_for_it() -> None:
    code = "import sys; from tunekit.testing import watch_global_state\nwith watch_global_state(): pass\n"
    code += "print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


TORCH_CHANGES: dict[str, tuple[str, str, str]] = {
    "torch default dtype": (
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_dtype(torch.float32)",
        "float64",
    ),
    "torch default device": ("torch.set_default_device('meta')", "torch.set_default_device(None)", "meta"),
    "torch number of threads": (
        "torch.set_num_threads(torch.get_num_threads() + 1)",
        "torch.set_num_threads(torch.get_num_threads() - 1)",
        "->",
    ),
    "torch gradients enabled": ("torch.set_grad_enabled(False)", "torch.set_grad_enabled(True)", "True -> False"),
    "torch deterministic algorithms": (
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        "torch.use_deterministic_algorithms(False)",
        "(False, False) -> (True, True)",
    ),
    "torch autocast": (
        "torch.set_autocast_enabled('cpu', True)",
        "torch.set_autocast_enabled('cpu', False)",
        "(False, False) -> (True, False)",
    ),
    "torch anomaly detection": (
        "torch.autograd.set_detect_anomaly(True)",
        "torch.autograd.set_detect_anomaly(False)",
        "False -> True",
    ),
    "torch float32 matmul precision": (
        "torch.set_float32_matmul_precision('medium')",
        "torch.set_float32_matmul_precision('highest')",
        "highest -> medium",
    ),
}


@pytest.mark.parametrize("what", TORCH_CHANGES)
def test_changes_of_torch_are_named(what: str) -> None:
    torch: Any = pytest.importorskip("torch")
    change, back, says = TORCH_CHANGES[what]
    names = {"torch": torch}
    try:
        with pytest.raises(AssertionError) as caught, watch_global_state():
            exec(change, names)
    finally:
        exec(back, names)
    _, *lines, _ = str(caught.value).splitlines()
    assert [line for line in lines if line.strip().startswith(f"{what}: ") and says in line] == lines
    assert len(lines) == 1


def test_torch_loaded_and_changed_within_the_block() -> None:
    code = """
from tunekit.testing import watch_global_state
try:
    with watch_global_state():
        import torch
        torch.set_default_dtype(torch.float64)
except AssertionError as error:
    print(str(error).splitlines()[1:-1])
with watch_global_state():
    import transformers
    torch.rand(3)
print("drawing numbers is fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "['  torch default dtype: torch.float32 -> torch.float64']",
        "drawing numbers is fine",
    ], done.stderr
