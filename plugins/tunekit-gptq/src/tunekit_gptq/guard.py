"""Keeps a library that prints and changes the environment from doing so in this process."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

__all__ = ["contained"]


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Python-level output is dropped and ``os.environ`` is put back, whatever happens inside.

    GPTQModel's thread pool wants at least two workers, and asks the environment; the value is there only inside.
    """
    before = dict(os.environ)
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
