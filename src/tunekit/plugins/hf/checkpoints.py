"""Resumable checkpoints that can be trusted: a marker written last says what a complete one holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from tunekit.storage import sync_tree

__all__ = ["MARKER", "good_checkpoint", "problem", "rotate", "seal", "set_aside"]

MARKER = "tunekit-checkpoint.json"
"""Name of the file that makes a checkpoint complete."""

_FOLDER = re.compile(r"checkpoint-(\d+)")
_DAMAGED = "damaged-"
_SAMPLE = 8 * 1024 * 1024


def seal(folder: Path, global_step: int) -> None:
    """Flush the files of a checkpoint to the disk, then write the marker that lists them, atomically."""
    marker = folder / MARKER
    marker.unlink(missing_ok=True)
    sync_tree(folder)
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "digest": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    aside = folder / (MARKER + ".tmp")
    with aside.open("w", encoding="utf-8") as stream:
        json.dump({"schema": 1, "global_step": global_step, "files": files}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(marker)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is complete.

    Sizes of all files are compared, and a digest over the first and last 8 MiB of each (all of a smaller file);
    headers of safetensors files and ``trainer_state.json`` are read.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = marker["files"]
    except FileNotFoundError:
        return "it was not finished (the run stopped while writing it)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MARKER} cannot be read ({error})"
    if "trainer_state.json" not in files:
        return "it has no trainer_state.json"
    # optimizer.pt, FSDP's optimizer.bin or optimizer_0/, DeepSpeed's ..._optim_states.pt
    if not any("optim" in name for name in files):
        return "it holds weights only: there is no optimizer state to continue with"
    for name, facts in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != facts["size"]:
                return f"{name} has {size} bytes in place of {facts['size']}"
            if path.suffix == ".safetensors" and (reason := _header_problem(path)):
                return f"{name} {reason}"
            if _digest(path) != facts["digest"]:
                return f"{name} was changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError) as error:
        return f"trainer_state.json cannot be read ({error})"
    return None


def good_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint below ``folder``, and one sentence for each newer one that is not complete."""
    problems: list[str] = []
    for path in _newest_first(folder):
        reason = problem(path)
        if reason is None:
            return path, problems
        problems.append(f"{path.name}: {reason}")
    return None, problems


def set_aside(folder: Path, newer_than: Path | None) -> None:
    """Rename the unusable checkpoints newer than ``newer_than``, so that new ones do not mix with their files."""
    for path in _newest_first(folder):
        if path == newer_than:
            return
        target = path.with_name(_DAMAGED + path.name)
        if target.exists():
            shutil.rmtree(target)
        path.rename(target)


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest complete checkpoints, and everything incomplete.

    Call it after the newest one was sealed: at least one complete checkpoint is there at any moment.
    """
    complete = [path for path in _newest_first(folder) if (path / MARKER).is_file()]
    for path in complete[keep:]:
        # Without its marker a half-deleted checkpoint is not taken for a good one.
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{_DAMAGED}checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [
        (int(match.group(1)), path)
        for path in folder.iterdir()
        if path.is_dir() and (match := _FOLDER.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def _header_problem(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            return "is shorter than its header"
        (length,) = struct.unpack("<Q", start)
        if 8 + length > size:
            return "has a damaged header"
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError):
            return "has a damaged header"
    return None if 8 + length + end == size else "is shorter than its header says"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        size = path.stat().st_size
        if size > _SAMPLE:
            stream.seek(max(_SAMPLE, size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()
