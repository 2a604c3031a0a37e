"""The worker process: cancel, crashes, orphans."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunekit.errors import ArtifactError, RunCancelled, StepError
from tunekit_gptq.child import _failure


def workers(of: int | None = None) -> list[psutil.Process]:
    """Worker processes below a process."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if "tunekit_gptq.worker" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(true: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.05)
    return true()


def test_cancel_ends_the_worker_at_once(
    make_context: Callable[..., Any], tiny: Path, stories: list[dict[str, Any]]
) -> None:
    record = make_context(tiny, training_data=[stories])
    cancelled: list[float] = []

    def cancel_when_working() -> None:
        assert wait_until(workers, 60)
        cancelled.append(time.monotonic())
        record.context.cancel.cancel("test")

    watcher = threading.Thread(target=cancel_when_working)
    watcher.start()
    with pytest.raises(RunCancelled):
        record.run()
    watcher.join()
    assert time.monotonic() - cancelled[0] < 5
    assert not workers()
    assert {path.name for path in record.context.dir.iterdir()} <= {"calibration.json", "worker.log"}


def test_a_worker_that_is_killed_is_said_so(
    make_context: Callable[..., Any], tiny: Path, stories: list[dict[str, Any]]
) -> None:
    record = make_context(tiny, training_data=[stories])
    record.on_progress = lambda: [process.send_signal(signal.SIGSEGV) for process in workers()]
    with pytest.raises(StepError) as caught:
        record.run()
    assert caught.value.code == "gptq-killed" and "SIGSEGV" in caught.value.message
    assert "Fatal Python error: Segmentation fault" in caught.value.found
    assert Path(caught.value.details["log"]).is_file()


def test_an_error_in_the_worker_comes_back_with_its_traceback(
    make_context: Callable[..., Any], tiny: Path, stories: list[dict[str, Any]], tmp_path: Path
) -> None:
    import shutil

    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StepError) as caught:
        make_context(tiny, source=broken, training_data=[stories]).run()
    assert caught.value.code == "gptq-failed"
    assert "Traceback" in caught.value.found and "tunekit_gptq" in caught.value.found


RUN = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from conftest import STORIES, recorded
recorded(Path(sys.argv[1]), Path(sys.argv[2]), training_data=[STORIES]).run()
"""


def test_the_worker_does_not_outlive_its_parent(tiny: Path, tmp_path: Path) -> None:
    path = [entry for entry in [str(Path(__file__).parent), *sys.path] if entry]
    parent = subprocess.Popen(
        [sys.executable, "-c", RUN.format(path=path), str(tiny), str(tmp_path / "step")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = wait_until(lambda: workers(parent.pid), 60)
        assert found, "the worker never started"
    finally:
        parent.kill()
        parent.wait()
    assert wait_until(lambda: not any(process.is_running() for process in found), 20)


def failure(tmp_path: Path, last: dict[str, Any], code: int, oom: bool = False) -> Any:
    log = tmp_path / "worker.log"
    log.write_bytes(b"line one\nbar 1%\rbar 2%\rbar 3%\n\x1b[31mlast line\x1b[0m\n")
    return _failure(last, code, log, oom=oom)


def test_what_went_wrong_is_told_apart(tmp_path: Path) -> None:
    killed = failure(tmp_path, {}, -signal.SIGKILL, oom=True)
    assert isinstance(killed, StepError) and killed.code == "out-of-memory" and "kernel" in killed.message
    assert killed.found == "line one\nbar 3%\nlast line"
    assert failure(tmp_path, {}, -signal.SIGKILL).code == "gptq-killed"
    assert failure(tmp_path, {}, 7).code == "gptq-crashed"
    error = {"event": "error", "type": "SafetensorError", "message": "I/O error: No space left on device (os error 28)"}
    full = failure(tmp_path, error, 1)
    assert isinstance(full, ArtifactError) and full.code == "disk-full"
    memory = {"event": "error", "type": "RuntimeError", "message": "DefaultCPUAllocator: can't allocate memory"}
    assert failure(tmp_path, memory, 1).code == "out-of-memory"


def test_a_full_disk_is_said_so(
    make_context: Callable[..., Any], odd: Path, stories: list[dict[str, Any]], make_disk: Callable[[str], Path]
) -> None:
    with pytest.raises(ArtifactError) as caught:
        make_context(odd, training_data=[stories], folder=make_disk("600k")).run()
    assert caught.value.code == "disk-full"
