"""Modules that test files of one folder share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

__all__ = ["beside"]


def beside(file: str, name: str) -> Any:
    """The module ``name.py`` from the folder of ``file``, which is on no search path; made anew for each caller.

    Args:
        file: ``__file__`` of the test.
        name: of the module.

    Raises:
        FileNotFoundError: if it is not there.
    """
    spec = importlib.util.spec_from_file_location(name, Path(file).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
