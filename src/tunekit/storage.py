"""Files that are either whole or not there: atomic writes, publishing, hashing, and the work folder's lock."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError, WorkdirLockedError

__all__ = [
    "WEIGHT_SUFFIXES",
    "disk_errors",
    "folder_digest",
    "lock_workdir",
    "publish",
    "read_json",
    "sync_tree",
    "weight_files",
    "weights_digest",
    "write_json",
    "write_text",
]

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
"""File name endings that hold weights."""

_CHUNK = 1 << 22

_REASONS = {
    errno.ENOSPC: (
        "disk-full",
        "the disk is full",
        "free some space and run the same pipeline again; finished steps are kept",
    ),
    errno.EDQUOT: (
        "disk-full",
        "the disk quota is used up",
        "free some space and run the same pipeline again; finished steps are kept",
    ),
    errno.EROFS: ("not-writable", "the file system is read-only", "choose another workdir: run(workdir=...)"),
    errno.EACCES: (
        "not-writable",
        "permission is denied",
        "choose a workdir you may write to: run(workdir=...)",
    ),
    errno.EPERM: (
        "not-writable",
        "permission is denied",
        "choose a workdir you may write to: run(workdir=...)",
    ),
}


@contextlib.contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into an ``ArtifactError`` that says what was done, where, and what to do."""
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        code, reason, fix = _REASONS.get(error.errno or 0, ("io", error.strerror or str(error), "see the path above"))
        raise ArtifactError(
            f"Failed {doing}: {reason}.",
            code=code,
            found=f"{error.filename or path} ({_free_space(path)})",
            fix=fix,
            details={"path": str(path), "errno": error.errno},
        ) from error


def _free_space(path: Path) -> str:
    for folder in (path, *path.parents):
        try:
            return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB free"
        except OSError:
            continue
    return "free space unknown"


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` in one step: written beside it, flushed to disk, renamed."""
    with disk_errors(path, f"writing {path.name}"):
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with aside.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; see :func:`write_text`."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtifactError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}.", code="damaged-file", details={"path": str(path)}
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        _sync_folder(Path(parent))


def publish(partial: Path, final: Path) -> None:
    """Make a finished folder visible under its final name, atomically.

    Raises:
        ArtifactError: if the disk refuses, or ``final`` is taken.
    """
    with disk_errors(final, f"publishing {final.name}"):
        if final.exists():
            raise ArtifactError(f"{final} exists already.", code="exists", fix="move it away")
        sync_tree(partial)
        partial.rename(final)
        _sync_folder(final.parent)


def weight_files(folder: Path) -> list[Path]:
    """Weight files directly in ``folder`` (or the file itself), sorted by name."""
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.glob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file())


def _feed(digest: Any, path: Path) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) over the names and bytes of the weight files in ``folder``.

    Raises:
        ArtifactError: if there are none, or one cannot be read.
    """
    with disk_errors(folder, "reading weights"):
        files = weight_files(folder)
        if not files:
            raise ArtifactError(f"There are no weight files in {folder}.", code="no-weights")
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.name.encode())
            _feed(digest, path)
        return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) over the relative names and bytes of all files below ``folder`` (or of the file itself)."""
    with disk_errors(folder, "reading data"):
        digest = hashlib.sha256()
        files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            digest.update(path.name.encode() if path == folder else path.relative_to(folder).as_posix().encode())
            _feed(digest, path)
        return digest.hexdigest()


@contextlib.contextmanager
def lock_workdir(workdir: Path, owner: Mapping[str, Any]) -> Iterator[None]:
    """Hold ``workdir`` for one run. The operating system frees the lock when the process ends, however it ends.

    Raises:
        WorkdirLockedError: if another run holds it.
        ArtifactError: if the folder cannot be made or written to.
    """
    import filelock

    with disk_errors(workdir, "making the workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    lock = filelock.FileLock(workdir / ".lock", blocking=False)
    holder = workdir / ".lock-owner.json"
    try:
        lock.acquire()
    except filelock.Timeout as error:
        who: Mapping[str, Any] = {}
        with contextlib.suppress(ArtifactError):
            who = read_json(holder)
        raise WorkdirLockedError(
            f"Another run is using {workdir}.",
            asked=f"run in {workdir}",
            found=f"run {who.get('run_id', '?')} in process {who.get('pid', '?')} on {who.get('host', '?')}",
            fix="wait for it, cancel it, or choose another folder: run(workdir=...)",
            details=dict(who),
        ) from error
    try:
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), **owner})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
