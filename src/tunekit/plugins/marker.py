"""The decorator that marks hook implementations."""

from __future__ import annotations

import pluggy  # noqa: TID253  (a plugin module needs the marker; tunekit itself imports this lazily)

__all__ = ["hookimpl"]

hookimpl = pluggy.HookimplMarker("tunekit")
"""Marks a function of a plugin as the implementation of the hook it is named after."""
