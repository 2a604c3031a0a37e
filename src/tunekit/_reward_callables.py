"""Functions and objects in memory as rewards: what they are called, whether they fit, and a hash of what they do."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunekit.plan import digest

__all__ = ["MissingColumnError", "callable_digest", "fitted", "is_reward", "name_of", "opaque_parts", "signature_of"]


class MissingColumnError(KeyError):
    """A reward cannot do without a column that the rows do not have; ``args[0]`` is its name."""


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
    ``**columns`` is given back as it is, and so is what has no signature.
    """
    signature = signature_of(found)
    if signature is None:
        return found
    parameters = list(signature.parameters.values())
    by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    further = any(one.kind is one.VAR_KEYWORD for one in parameters)
    if further and [one.name for one in by_name] == ["prompts", "completions"]:
        return found
    try:
        signature.bind_partial(prompts=[], completions=[])
    except TypeError:
        return found  # by position, then
    return _Fitted(found, by_name, further)


class _Fitted:
    """Passes on what a callable takes. Its attributes are those of the callable."""

    def __init__(self, found: Any, by_name: list[inspect.Parameter], further: bool) -> None:
        self.__wrapped__ = found
        self._taken = None if further else {one.name for one in by_name}
        self._needed = [one.name for one in by_name if one.default is one.empty]

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # while it is copied
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> Any:
        given = {"prompts": prompts, "completions": completions, **columns}
        for name in self._needed:
            if name not in given:
                raise MissingColumnError(name)
        return self.__wrapped__(**{k: v for k, v in given.items() if self._taken is None or k in self._taken})


def callable_digest(found: Any) -> str:
    """Hash of what a callable in memory does: its code, the values that it holds, and its plain attributes."""
    from tunekit.plugins._code import code_digest

    if isinstance(found, functools.partial):
        given = (found.args, tuple(sorted(found.keywords.items())))
        held = [callable_digest(found.func), _value_digest(given, str(getattr(found.func, "__module__", "")))]
    elif isinstance(found, types.MethodType):
        held = [callable_digest(found.__func__), _object_digest(found.__self__)]
    elif isinstance(found, types.FunctionType):
        held = [code_digest(found, None, containers=True)]
    else:
        held = [_object_digest(found)]
    return digest(held)


def _object_digest(found: Any) -> str:
    from tunekit.plugins._code import code_digest

    kind = found if isinstance(found, type) else type(found)
    return digest(
        [code_digest(kind, None, containers=True), _value_digest(getattr(found, "__dict__", {}), kind.__module__)]
    )


def _value_digest(value: Any, home: str) -> str:
    """Hash of a value; functions and classes of the module ``home`` count by their code."""
    from tunekit.plugins._code import code_digest

    def holder(held: Any = value) -> None:
        """The value counts as the default of a function does."""

    holder.__module__ = home
    return code_digest(holder, None, containers=True)


def opaque_parts(found: Any) -> list[str]:
    """Classes of what a callable holds and :func:`callable_digest` cannot look into, such as models and files."""
    if isinstance(found, functools.partial):
        held = [*found.args, *found.keywords.values()]
        return [*opaque_parts(found.func), *(kind for value in held for kind in _opaque(value))]
    if isinstance(found, types.MethodType):
        found = found.__self__
    if isinstance(found, types.FunctionType):
        held = []
        for cell in found.__closure__ or ():
            with contextlib.suppress(ValueError):  # not set yet
                held.append(cell.cell_contents)
    else:
        held = list(getattr(found, "__dict__", {}).values())
    return sorted({kind for value in held for kind in _opaque(value)})


_SEEN = (
    *(str, bytes, int, float, complex, type, types.ModuleType, Path, re.Pattern, enum.Enum),
    *(types.FunctionType, types.BuiltinFunctionType, functools.partial),
)
"""Types of which a digest says what there is to say."""


def _opaque(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _opaque(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _opaque(item)
    elif not (value is None or isinstance(value, _SEEN) or dataclasses.is_dataclass(value)):
        yield type(value).__qualname__
