"""Keep the libraries from printing while tunekit works, and leave their settings as they were."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet"]

logging.getLogger("tunekit").addHandler(logging.NullHandler())

_LIBRARIES = ("transformers", "datasets", "huggingface_hub", "trl", "accelerate", "peft", "torch", "torchao")
# torch writes these into the environment while it is imported by others; they only repeat its own defaults.
_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_lock = threading.RLock()
_depth = 0
_saved: list[Any] = []


class _Forward(logging.Handler):
    """Hands records of a library on to ``tunekit.<library>``, where the embedding program decides about them."""

    def emit(self, record: logging.LogRecord) -> None:
        target = logging.getLogger(f"tunekit.{record.name}")
        if target.isEnabledFor(record.levelno):
            target.handle(record)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines from transformers, datasets, hub, trl, accelerate and peft.

    Their log records go to loggers below ``tunekit`` in place of stderr. Environment variables that torch sets when it
    is imported are taken out again. Nests, and may be used by several threads:
    the state before the first entry is restored after the last exit.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _saved[:] = _enter()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for restore in reversed(_saved):
                    restore()
                _saved.clear()


def _enter() -> list[Any]:
    absent = [name for name in _VARIABLES if name not in os.environ]
    from transformers.utils import logging as hf_logging

    hub: Any = importlib.import_module("huggingface_hub.utils")
    # These configure their loggers on first use, which must come before the handlers are swapped.
    importlib.import_module("torch")
    hf_logging.get_logger("transformers")
    restore: list[Any] = [_variables_back(absent)]
    bars = hf_logging.is_progress_bar_enabled()
    hub_off = hub.are_progress_bars_disabled()
    hf_logging.disable_progress_bar()

    def bars_back() -> None:
        if bars:
            hf_logging.enable_progress_bar()
        if hub_off:
            hub.disable_progress_bars()
        else:
            hub.enable_progress_bars()

    restore.append(bars_back)
    restore.extend(_quiet_datasets())
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        before = (list(logger.handlers), logger.propagate)
        logger.handlers = [_Forward()]
        logger.propagate = False

        def handlers_back(logger: logging.Logger = logger, before: tuple[Any, bool] = before) -> None:
            logger.handlers, logger.propagate = before

        restore.append(handlers_back)
    return restore


def _variables_back(absent: list[str]) -> Any:
    def back() -> None:
        for name in absent:
            os.environ.pop(name, None)

    return back


def _quiet_datasets() -> list[Any]:
    try:
        import datasets
    except ImportError:
        return []
    if datasets.are_progress_bars_disabled():
        return []
    datasets.disable_progress_bars()
    return [datasets.enable_progress_bars]
