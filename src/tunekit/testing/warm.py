"""Child processes that need not import what is slow: they are forks of one that has imported it.

A process that trains spends five seconds on its imports and one on a tiny model. ``run(arguments)`` does what
``subprocess.run([sys.executable, *arguments])`` does, in a process of its own with its own exit code, output,
environment and folder, but that process begins with the libraries of ``LIBRARIES`` loaded. Nothing else is shared:
neither plugins nor suites are imported before the fork, random generators begin anew, and a kill ends the child alone.

What is about imports, start-up or hashing needs a fresh interpreter: all children have one hash seed. On systems other
than Linux every child is a fresh interpreter.

This module is also the program that forks; it is started by its file name, so that it brings no package of tests in.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

__all__ = ["LIBRARIES", "Child", "run", "start"]

LIBRARIES = (
    "numpy",
    "torch",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "datasets",
    "peft",
    "safetensors.torch",
    "tunekit.session",
    "tunekit.pipeline",
)
"""What is loaded before a fork, as far as it is installed."""

_READ_AT_IMPORT = (
    *("ACCELERATE_", "CUDA", "HF_", "HOME", "HUGGINGFACE_", "KMP_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH"),
    *("TORCH", "TRANSFORMERS_", "USE_", "XDG_"),
)
_READ_AT_START = ("PYTHONPATH",)
"""Variables that libraries read when they are imported; children that differ in them get parents of their own. The
search path is set in the child."""

_MOST = 2
"""Parents that wait at the same time; each holds its libraries in memory."""

_PARENTS: dict[object, _Parent] = {}


class Child:
    """A process that was started. Its output is complete when it has ended."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], cwd: str | Path | None) -> None:
        self._arguments = [sys.executable, *arguments]
        self._files: list[IO[str]] = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        self._connection: Connection | None = None
        self._process: subprocess.Popen[str] | None = None
        self._code: int | None = None
        if sys.platform == "linux":
            parent = _parent(env)
            self._connection = parent.connect()
            paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._files]
            self._connection.send((list(arguments), dict(env), str(cwd or Path.cwd()), paths))
            self.pid: int = self._connection.recv()
        else:
            out, err = self._files
            self._process = subprocess.Popen(
                self._arguments, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
            )
            self.pid = self._process.pid

    def poll(self, seconds: float = 0.0) -> int | None:
        """The exit code, negative for the signal that ended it; None: it runs still after ``seconds``."""
        if self._code is None and self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._code = self._process.wait(seconds)
        elif self._code is None and self._connection is not None and self._connection.poll(seconds):
            self._code = self._connection.recv()
            self._connection.close()
        return self._code

    def kill(self) -> None:
        """End it by SIGKILL, if it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: if it runs for longer than ``timeout`` seconds; it is killed.
        """
        if self.poll(timeout) is None:
            self.kill()
            self.poll(timeout)
            raise subprocess.TimeoutExpired(self._arguments, timeout, *self._read())
        assert self._code is not None
        return subprocess.CompletedProcess(self._arguments, self._code, *self._read())

    def _read(self) -> tuple[str, str]:
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return texts[0], texts[1]


def start(arguments: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Any = None) -> Child:
    """Start a Python process and go on.

    Args:
        arguments: what follows the interpreter: ``-c CODE ...``, ``-m MODULE ...`` or ``FILE ...``.
        env: its whole environment; None: that of this process.
        cwd: its folder; None: that of this process.
    """
    return Child([str(argument) for argument in arguments], os.environ if env is None else env, cwd)


def run(
    arguments: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Any = None, timeout: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run a Python process to its end, with its output as text. Arguments as for :func:`start`.

    Raises:
        subprocess.TimeoutExpired: if it runs for longer than ``timeout`` seconds.
    """
    return start(arguments, env=env, cwd=cwd).communicate(timeout)


# ------------------------------------------------------------------ the process that forks, seen from outside


class _Parent:
    def __init__(self, env: Mapping[str, str]) -> None:
        env = {name: value for name, value in env.items() if name not in _READ_AT_START}
        self._process = subprocess.Popen(
            # -P: the folder of this file holds modules with common names.
            [sys.executable, "-P", __file__, *LIBRARIES],
            env=env,
            cwd=tempfile.gettempdir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().strip()
        if not self._address:
            raise RuntimeError(f"the process that forks children ended with {self._process.wait()}")
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def connect(self) -> Connection:
        with socket.socket(socket.AF_UNIX) as made:
            made.connect(self._address)
            return Connection(made.detach())

    def close(self) -> None:
        """End it: its standard input ends."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        atexit.unregister(self.close)


def _parent(env: Mapping[str, str]) -> _Parent:
    read = {name: value for name, value in env.items() if name.startswith(_READ_AT_IMPORT)}
    key = LIBRARIES, frozenset(read.items() - {("PYTHONPATH", env.get("PYTHONPATH"))})
    found = _PARENTS.get(key)
    if found is None or not found.alive:
        while len(_PARENTS) >= _MOST:
            _PARENTS.pop(next(iter(_PARENTS))).close()
        found = _PARENTS[key] = _Parent(env)
    return found


# ------------------------------------------------------------------ the process that forks, from inside


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody waits for the processes that watch over children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # No TemporaryDirectory: its clean-up would run in every child.
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "s"))
            listener.listen()
            sys.stdout.write(f"{folder / 's'}\n")
            sys.stdout.flush()
            # What is reused after a fork must not be collected in every child.
            gc.collect()
            gc.freeze()
            while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
                accepted = listener.accept()[0]
                if os.fork() == 0:
                    listener.close()
                    _watch_over(Connection(accepted.detach()))
                accepted.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch_over(connection: Connection) -> None:
    """Fork the child, and say its id and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        arguments, env, cwd, paths = connection.recv()
        pid = os.fork()
        if pid == 0:
            connection.close()
            _become(arguments, env, cwd, paths)
        connection.send(pid)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    except (EOFError, BrokenPipeError):
        pass  # who asked has gone
    finally:
        os._exit(0)


def _become(arguments: list[str], env: dict[str, str], cwd: str, paths: list[str]) -> None:
    """Be the process that was asked for; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, path in enumerate([os.devnull, *paths]):
            file = os.open(path, os.O_RDWR if number else os.O_RDONLY)
            os.dup2(file, number)
            os.close(file)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        _execute(arguments, list(filter(None, env.get("PYTHONPATH", "").split(os.pathsep))))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code)


def _execute(arguments: list[str], path: list[str]) -> None:
    import runpy
    import types

    how, *rest = arguments
    if how == "-c":
        sys.argv, first = ["-c", *rest[1:]], ""
    elif how == "-m":
        sys.argv, first = ["-m", *rest[1:]], str(Path.cwd())
    else:
        sys.argv, first = [how, *rest], str(Path(how).resolve().parent)
    sys.path[:] = [first, *path, *sys.path]
    importlib.invalidate_caches()
    if how == "-c":
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), vars(main))  # noqa: S102 - what python -c does
    elif how == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    _main()
