"""Runs the worker process and follows it: progress, cancel, and what went wrong."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tunekit.errors import ArtifactError, MissingDependencyError, StepError
from tunekit.plugins import CancelToken

__all__ = ["run_worker"]

_TAIL = 40
"""Lines of the worker's output that go into an error."""
_POLL = 0.1
"""Seconds between looks at the cancel token."""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")
_FATAL = ("Fatal Python error", "terminate called")
_DISK_FULL = ("no space left", "os error 28", "disk quota", "os error 122")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc")


def run_worker(
    job: Path, *, folder: Path, log: Path, cancel: CancelToken, progress: Callable[[int, int | None], None]
) -> dict[str, Any]:
    """Run ``python -m tunekit_gptq.worker job`` in ``folder`` and return its last message.

    The worker is in a process group of its own, which is killed as soon as ``cancel`` is set, or when anything is
    raised here. It ends by itself when this process does.

    Args:
        log: file for everything the worker prints.
        progress: called with layers done and in all.

    Raises:
        RunCancelled: after ``cancel``.
        ArtifactError: if the disk was full.
        MissingDependencyError: if a package of the worker is missing.
        StepError: if the worker failed; ``found`` holds the end of its output.
    """
    kills_before = _oom_kills()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            # -P: a file called like a module in the working folder must not shadow it.
            [sys.executable, "-P", "-X", "faulthandler", "-m", "tunekit_gptq.worker", str(job.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            cwd=folder,
            env=_environment(),
            start_new_session=True,
        )
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
    assert process.stdout is not None and process.stdin is not None
    reader = threading.Thread(target=_read, args=(process.stdout, messages), daemon=True)
    reader.start()
    last: dict[str, Any] = {}
    try:
        while True:
            cancel.raise_if_cancelled()
            try:
                message = messages.get(timeout=_POLL)
            except queue.Empty:
                if process.poll() is not None and not reader.is_alive():
                    break
                continue
            if message is None:
                break
            if message.get("event") == "layer":
                progress(int(message["done"]), message["total"])
            else:
                last = message
        while process.poll() is None:
            cancel.raise_if_cancelled()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
    finally:
        _kill(process)
        process.stdin.close()
        process.stdout.close()
    if last.get("event") == "done" and process.returncode == 0:
        return last
    raise _failure(last, process.returncode, log, oom=_oom_kills() > kills_before)


def _environment() -> dict[str, str]:
    env = dict(os.environ)
    # GPTQModel asks its pool for two loader threads and fails where that is more than its workers: on two cores.
    env.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, min(12, (os.cpu_count() or 1) // 2))))
    # Its C++ packer is compiled on first use, for half a minute; packing in Python takes less.
    env.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    env["HF_HUB_OFFLINE"] = "1"
    env["TOKENIZERS_PARALLELISM"] = "false"
    env["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    return env


def _read(stream: IO[bytes], messages: queue.Queue[dict[str, Any] | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    messages.put(message)
    messages.put(None)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the worker and what it started. Also after it ended: a compiler of its may still run."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()


def _oom_kills() -> int:
    """How often the kernel killed for memory so far, here or in this control group; 0 where that is not known."""
    count = 0
    for file, key in (("/proc/vmstat", "oom_kill"), ("/sys/fs/cgroup/memory.events", "oom_kill")):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(file).read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    count += int(value)
    return count


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 64_000))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    # Progress bars rewrite their line: what counts is what stood there last.
    lines = [_CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    # After a crash the threads are listed; what happened stands before that.
    fatal = [at for at, line in enumerate(lines) if line.startswith(_FATAL)]
    return "\n".join(lines[fatal[0] :][:_TAIL] if fatal else lines[-_TAIL:])


def _failure(last: dict[str, Any], code: int, log: Path, *, oom: bool) -> Exception:
    tail = _tail(log)
    details = {"exit_code": code, "log": str(log), "output": tail}
    text = f"{last.get('type', '')}: {last.get('message', '')}" if last.get("event") == "error" else ""
    lower = text.lower()
    if any(part in lower for part in _DISK_FULL) or last.get("errno") in (28, 122):
        return ArtifactError(
            "The disk is full while quantizing.",
            code="disk-full",
            found=text,
            fix="make room or choose another workdir, then run again there: what is finished is kept",
            details=details,
        )
    if last.get("type") in ("ImportError", "ModuleNotFoundError"):
        return MissingDependencyError(
            "GPTQ needs a package that is missing or does not fit.",
            found=text,
            fix="pip install 'gptqmodel>=7.6,<8' 'optimum>=2.3,<3'",
            details=details,
        )
    if last.get("type") in ("MemoryError", "OutOfMemoryError") or any(part in lower for part in _OUT_OF_MEMORY):
        return StepError(
            "Quantizing ran out of memory.",
            code="out-of-memory",
            found=text,
            fix="lower max_length or calibration_tokens, or use a machine with more memory",
            details=details,
        )
    if text:
        return StepError(
            "GPTQModel failed.", code="gptq-failed", found=last.get("traceback", text).strip(), details=details
        )
    if code == -signal.SIGKILL and oom:
        return StepError(
            "The quantizing process was killed by the kernel because memory ran out.",
            code="out-of-memory",
            found=tail,
            fix="lower max_length or calibration_tokens, or use a machine with more memory",
            details=details,
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = ": memory may have run out" if code == -signal.SIGKILL else ""
        return StepError(
            f"The quantizing process was ended by {name}{hint}.", code="gptq-killed", found=tail, details=details
        )
    return StepError(
        f"The quantizing process ended with exit code {code}.", code="gptq-crashed", found=tail, details=details
    )
