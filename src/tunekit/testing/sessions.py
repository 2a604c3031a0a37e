"""Sessions that do not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunekit.session import Session
from tunekit.settings import Settings

__all__ = ["isolated_session"]


def isolated_session(
    *plugins: Any, autoload: bool = True, allow: Iterable[str] | None = None, disable: Iterable[str] = ()
) -> Session:
    """A session of its own; environment variables play no part in it.

    Args:
        plugins: further plugins: modules, objects with hooks, decorated classes and functions.
        autoload: load the installed plugins too.
        allow: distributions that may be loaded; None: all.
        disable: distributions that are not loaded.
    """
    wanted: dict[str, Any] = {"disabled_plugins": tuple(disable)}
    if allow is not None:
        wanted["allowed_plugins"] = tuple(allow)
    return Session(plugins, autoload=autoload, settings=Settings(**wanted))
