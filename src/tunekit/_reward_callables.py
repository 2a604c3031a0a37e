"""Functions and objects in memory as rewards: what they are called, whether they fit, and a hash of what they do."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from tunekit.plan import digest
from tunekit.plugins.protocols import MissingColumnError

__all__ = ["callable_digest", "fitted", "is_reward", "name_of", "opaque_parts", "signature_of"]


def name_of(found: Any) -> str:
    """What a callable is called in logs and reports."""
    while isinstance(found, functools.partial):
        found = found.func
    name = getattr(found, "__name__", None) or type(found).__name__
    return "function" if name == "<lambda>" else str(name)


def is_reward(found: Any) -> bool:
    """Whether it can be called with ``prompts`` and ``completions`` by name."""
    signature = signature_of(found)
    if signature is None:
        return True
    try:
        signature.bind_partial(prompts=[], completions=[])
    except TypeError:
        return False
    return True


def signature_of(found: Any) -> inspect.Signature | None:
    """Its signature, where it has one."""
    try:
        return inspect.signature(found)
    except (TypeError, ValueError):  # written in C: nothing is known
        return None


def fitted(found: Any) -> Any:
    """A callable that takes any columns and hands ``found`` those that its signature takes.

    Prompts and completions go by name, so that their order does not matter. What takes ``prompts``, ``completions`` and
    ``**columns`` is given back as it is, and so is what takes
    them by position or has no signature.
    """
    signature = signature_of(found)
    if signature is None:
        return found
    parameters = list(signature.parameters.values())
    if any(one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL) for one in parameters):
        return found  # by position, then
    by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    further = any(one.kind is one.VAR_KEYWORD for one in parameters)
    if not further and not {"prompts", "completions"} <= {one.name for one in by_name}:
        return found  # no reward: its own error says so
    if further and [one.name for one in by_name] == ["prompts", "completions"]:
        return found
    return _Fitted(found, by_name, further)


class _Fitted:
    """Passes on what a callable takes. Its attributes are those of the callable."""

    def __init__(self, found: Any, by_name: list[inspect.Parameter], further: bool) -> None:
        self.__wrapped__ = found
        self._taken = None if further else {one.name for one in by_name}
        self._needed = [one.name for one in by_name if one.default is one.empty]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__qualname__"):  # how it is copied, for one, is its own
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> Any:
        given = {"prompts": prompts, "completions": completions, **columns}
        for name in self._needed:
            if name not in given:
                raise MissingColumnError(name)
        return self.__wrapped__(**{k: v for k, v in given.items() if self._taken is None or k in self._taken})


def callable_digest(found: Any, unseen: list[str] | None = None) -> str:
    """Hash of what a callable in memory does: its code and that of the user's own modules which it names, the values
    that it holds or names, and its plain attributes.

    Args:
        found: the callable.
        unseen: classes of what cannot be looked into, such as models and files, are added to it.
    """
    if isinstance(found, functools.partial):
        given = (found.args, tuple(sorted(found.keywords.items())))
        home = str(getattr(found.func, "__module__", ""))
        held = [callable_digest(found.func, unseen), _value_digest(given, home, unseen)]
    elif isinstance(found, types.MethodType):
        held = [callable_digest(found.__func__, unseen), _object_digest(found.__self__, unseen)]
    elif isinstance(found, types.FunctionType):
        held = [_code_digest(found, unseen)]
    else:
        held = [_object_digest(found, unseen)]
    return digest(held)


def _object_digest(found: Any, unseen: list[str] | None) -> str:
    kind = found if isinstance(found, type) else type(found)
    slots = {
        name: getattr(found, name)
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType) and not isinstance(found, type) and hasattr(found, name)
    }
    held = _value_digest({**getattr(found, "__dict__", {}), **slots}, kind.__module__, unseen)
    return digest([_code_digest(kind, unseen), held])


def _value_digest(value: Any, home: str, unseen: list[str] | None) -> str:
    """Hash of a value; functions and classes of the module ``home`` count by their code."""

    def holder(held: Any = value) -> None:
        """The value counts as the default of a function does."""

    holder.__module__ = home
    return _code_digest(holder, unseen)


def _code_digest(found: Any, unseen: list[str] | None) -> str:
    from tunekit.plugins._code import code_digest

    return code_digest(found, None, containers=True, whole=True, unseen=unseen)


def opaque_parts(found: Any) -> list[str]:
    """Classes of what a callable holds, names or has as defaults and :func:`callable_digest` cannot look into, such as
    models and files; and containers that are too long to be hashed whole."""
    unseen: list[str] = []
    callable_digest(found, unseen)
    return sorted(set(unseen))
