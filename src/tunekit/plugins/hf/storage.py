"""Turn what storage libraries raise into one clear error."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunekit.errors import ArtifactError, TunekitError

__all__ = ["free_space", "fsync_tree", "storage_errors"]

_ERRNOS = {
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
_SAYS = {
    "disk-full": "The disk is full",
    "read-only": "The file system is read-only",
    "not-writable": "The folder cannot be written",
    "disk-error": "The disk reports an error",
}


def free_space(path: Path) -> int | None:
    """Free bytes where ``path`` is, or None when that cannot be said."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


@contextmanager
def storage_errors(path: Path, doing: str = "writing") -> Iterator[None]:
    """Raise :class:`ArtifactError` with path and free space for a full, read-only or failing disk.

    Other errors pass unchanged.
    """
    try:
        yield
    except TunekitError:
        raise
    except Exception as error:
        code = _storage_code(error)
        if code is None:
            raise
        free = free_space(path)
        where = getattr(error, "filename", None) or path
        raise ArtifactError(
            f"{_SAYS[code]} while {doing} {path}.",
            code=code,
            found=f"{type(error).__name__}: {error}" + ("" if free is None else f" ({free / 1e6:,.1f} MB free)"),
            fix="make room or choose another workdir, then run again there: what is finished is kept",
            details={"path": str(where), "free_bytes": free},
        ) from error


def _storage_code(error: BaseException) -> str | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _ERRNOS:
            return _ERRNOS[seen.errno]
        text = str(seen).lower()
        for part, code in _TEXTS:
            if part in text:
                return code
        seen = seen.__cause__ or seen.__context__
    return None


def fsync_tree(folder: Path) -> None:
    """Flush every file of ``folder`` and the folder entries to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            _fsync(Path(root) / name)
        _fsync(Path(root))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
