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

from tunekit.errors import ArtifactError, TunekitError, WorkdirLockedError

__all__ = [
    "WEIGHT_SUFFIXES",
    "disk_errors",
    "folder_digest",
    "free_space",
    "lock_workdir",
    "publish",
    "read_json",
    "storage_errors",
    "sync_tree",
    "weight_files",
    "weights_digest",
    "write_json",
    "write_text",
]

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
"""File name endings that hold weights."""

_CHUNK = 1 << 22

_CODES = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EROFS: "read-only",
    errno.EACCES: "not-writable",
    errno.EPERM: "not-writable",
    errno.EIO: "disk-error",
}
# safetensors and tokenizers report the system's error inside a text of their own; torch.save loses it altogether and
# complains about the position in its archive.
_TEXTS = (
    ("no space left", "disk-full"),
    ("os error 28", "disk-full"),
    ("disk quota", "disk-full"),
    ("os error 122", "disk-full"),
    ("read-only file system", "read-only"),
    ("os error 30", "read-only"),
    ("permission denied", "not-writable"),
    ("os error 13", "not-writable"),
    ("inline_container", "disk-full"),
    ("pytorchstreamwriter failed", "disk-full"),
)
_ROOM = "free some space and run the same pipeline again; finished steps are kept"
_SAYS = {
    "disk-full": ("the disk is full or the quota used up", _ROOM),
    "read-only": ("the file system is read-only", "choose another workdir: run(workdir=...)"),
    "not-writable": ("permission is denied", "choose a workdir you may write to: run(workdir=...)"),
    "disk-error": ("the disk reports an error", "choose a workdir on another disk: run(workdir=...)"),
}


@contextlib.contextmanager
def storage_errors(path: Path, doing: str = "") -> Iterator[None]:
    """Turn what storage libraries raise for a full, read-only, forbidden or failing disk into an ``ArtifactError``.

    Other errors pass unchanged.

    Args:
        path: what is written; the error names it and the free space there.
        doing: for the error, such as ``writing the model``; default: writing ``path``.
    """
    try:
        yield
    except TunekitError:
        raise
    except Exception as error:
        code = _storage_code(error)
        if code is None:
            raise
        raise _artifact_error(error, code, path, doing) from error


@contextlib.contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """As :func:`storage_errors`, for work on files alone: every ``OSError`` becomes an ``ArtifactError``."""
    try:
        with storage_errors(path, doing):
            yield
    except ArtifactError:
        raise
    except OSError as error:
        raise _artifact_error(error, "io", path, doing) from error


def _artifact_error(error: Exception, code: str, path: Path, doing: str) -> ArtifactError:
    reason, fix = _SAYS.get(code, (getattr(error, "strerror", None) or str(error), "see the path above"))
    free = free_space(path)
    room = "free space unknown" if free is None else f"{free / 1e6:,.0f} MB free"
    return ArtifactError(
        f"Failed {doing or f'writing {path.name}'}: {reason}.",
        code=code,
        found=f"{path} ({room}); {type(error).__name__}: {error}",
        fix=fix,
        details={"path": str(getattr(error, "filename", None) or path), "free_bytes": free},
    )


def _storage_code(error: BaseException) -> str | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _CODES:
            return _CODES[seen.errno]
        text = str(seen).lower()
        for part, code in _TEXTS:
            if part in text:
                return code
        seen = seen.__cause__ or seen.__context__
    return None


def free_space(path: Path) -> int | None:
    """Free bytes where ``path`` is or will be, or None when that cannot be said."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


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
    """Write JSON atomically; see :func:`write_text`. Numbers of numpy and torch are written as numbers."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    return str(value)


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
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()
