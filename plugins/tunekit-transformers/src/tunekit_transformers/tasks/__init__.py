"""Tasks that are not generation: classes, tags and scores, alone or several over one shared body.

``load_tasks(folder)`` gives the trained tasks of a folder as objects that can be called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunekit_transformers.tasks.loading import TaskModel as TaskModel
    from tunekit_transformers.tasks.loading import load_tasks as load_tasks

__all__ = ["TaskModel", "load_tasks"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tunekit_transformers.tasks import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
