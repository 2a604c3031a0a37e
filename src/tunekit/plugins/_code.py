"""A short hash of what a component's code does, so that an edited notebook cell counts as a new version.

Hashed are the byte code, constants and names of the functions of a class (or of a function), with defaults, closures,
class attributes, bases, and the helpers and constants of the same module that they refer to. File names and line
numbers do not count, nor does what other modules do, nor the state of objects that are not plain values, containers or
dataclasses. The hash is taken when the decorator runs: a name that is bound anew counts once that cell runs
again. It is the same in every process of one Python version.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

__all__ = ["code_digest"]

_DEEPEST = 60
"""Levels of nesting that are looked into."""

_MOST, _ENDS = 10_000, 100
"""Of a list or dict with more items than the one, the length and this many at each end are hashed."""

_REPR = (range, slice, Decimal, Fraction, date, time, timedelta, tzinfo, UUID)
"""Types whose ``repr`` is the value."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def code_digest(component: Any, options: type[Any] | None, *, containers: bool) -> str:
    """SHA-256 (hex) of what ``component`` and its options model do.

    Args:
        component: a class or a function.
        options: its pydantic options model, or None.
        containers: whether lists, dicts and sets that the code refers to count with their content. They fill up while
            a component runs, so they are only worth hashing while they are new.
    """
    parts = [_Description(component.__module__, containers).of(component)]
    if options is not None:
        parts.append(_Description(options.__module__, containers).options(options))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


class _Description:
    """Text for values; equal behaviour, equal text. ``home`` is the module whose functions and classes are entered."""

    def __init__(self, home: str, containers: bool) -> None:
        self._home = home
        self._containers = containers
        self._entered: set[int] = set()
        self._depth = 0

    def of(self, value: Any) -> str:
        if self._depth > _DEEPEST:
            return "deep"
        self._depth += 1
        try:
            return self._text(value, type(value))
        finally:
            self._depth -= 1

    def _text(self, value: Any, kind: type[Any]) -> str:
        # By type, not by isinstance: a proxy of a stranger may run code, or raise, when asked for its class.
        if issubclass(kind, Enum):
            return f"{kind.__qualname__}.{value.name}"
        if kind in _PLAIN:
            return f"{kind.__name__} {value!r}"
        if issubclass(kind, tuple | frozenset):
            return self._items(value)
        if issubclass(kind, list | set | dict | types.MappingProxyType):
            return self._items(value) if self._containers else f"a {kind.__name__}"
        if issubclass(kind, types.CodeType):
            return self._code(value)
        if issubclass(kind, type):
            return self._once(value, self._body) if value.__module__ == self._home else f"class {_path(value)}"
        if issubclass(kind, types.FunctionType):
            return self._once(value, self._function) if value.__module__ == self._home else f"function {_path(value)}"
        if issubclass(kind, re.Pattern):
            return f"pattern {value.pattern!r} {value.flags}"
        if issubclass(kind, PurePath):
            return f"path {value}"
        if issubclass(kind, types.ModuleType):
            return f"module {value.__name__}"
        if issubclass(kind, types.BuiltinFunctionType):
            return f"builtin {_path(value)}"
        if issubclass(kind, _REPR):
            return f"{kind.__qualname__} {value!r}"
        if dataclasses.is_dataclass(kind) or issubclass(kind, types.SimpleNamespace):
            return self._fields(value, kind)
        if kind.__module__ == "numpy" and hasattr(kind, "item") and not getattr(value, "shape", (1,)):
            return f"{kind.__qualname__} {value.item()!r}"
        inner = [self.of(part) for part in _inside(value, kind)]
        return f"a {self.of(kind)} [{', '.join(inner)}]"

    def options(self, model: type[Any]) -> str:
        """Names and defaults of the fields, and the functions, of a pydantic model."""
        whole = _Description(self._home, containers=True)
        fields = [
            f"{name}={whole.of(field.default)} {whole.of(field.default_factory)}"
            for name, field in getattr(model, "model_fields", {}).items()
        ]
        return f"{fields} {self.of(model)}"

    def _fields(self, value: Any, kind: type[Any]) -> str:
        """An object that is its fields. One that can be changed counts as lists and dicts do."""
        frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        if not (frozen or self._containers) or id(value) in self._entered:
            return f"a {kind.__qualname__}"
        self._entered.add(id(value))
        named = (
            {field.name: getattr(value, field.name, None) for field in dataclasses.fields(kind)}
            if dataclasses.is_dataclass(kind)
            else vars(value)
        )
        parts = [f"{name}={self.of(item)}" for name, item in named.items()]
        self._entered.discard(id(value))
        return f"{_path(kind)}({', '.join(parts)})"

    def _items(self, value: Any) -> str:
        if id(value) in self._entered:  # a list may hold itself
            return "again"
        if len(value) > _MOST and not isinstance(value, set | frozenset):
            parts = list(value.items() if isinstance(value, Mapping) else value)
            return f"{type(value).__name__} of {len(value)}: {self.of((*parts[:_ENDS], *parts[-_ENDS:]))}"
        self._entered.add(id(value))
        if isinstance(value, Mapping):
            items = sorted(f"{self.of(key)}: {self.of(item)}" for key, item in value.items())
        elif isinstance(value, set | frozenset):
            items = sorted(self.of(item) for item in value)
        else:
            items = [self.of(item) for item in value]
        self._entered.discard(id(value))
        return f"{type(value).__name__}({', '.join(items)})"

    def _once(self, value: Any, describe: Callable[[Any], str]) -> str:
        if id(value) in self._entered:
            return f"again {value.__qualname__}"
        self._entered.add(id(value))
        return describe(value)

    def _body(self, cls: type[Any]) -> str:
        parts: list[str] = []
        for base in cls.__mro__:
            if base.__module__ != self._home:
                parts.append(f"base {_path(base)}")
                continue
            for name, value in sorted(vars(base).items()):
                # Of what Python itself keeps in a class, only methods say what the class does.
                if not name.startswith("__") or isinstance(value, types.FunctionType | staticmethod | classmethod):
                    parts.append(f"{name} = {self.of(value)}")
        return f"class [{'; '.join(parts)}]"

    def _function(self, function: types.FunctionType) -> str:
        code = function.__code__
        parts = [
            self._code(code),
            self.of(function.__defaults__),
            self._items(sorted((function.__kwdefaults__ or {}).items())),
        ]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                parts.append(f"{name} = {self.of(cell.cell_contents)}")
            except ValueError:  # not set yet
                parts.append(f"{name} is empty")
        for name in sorted(set(_names(code))):
            if name in function.__globals__ and not name.startswith("__"):
                parts.append(f"{name} = {self.of(function.__globals__[name])}")
        return f"function [{'; '.join(parts)}]"

    def _code(self, code: types.CodeType) -> str:
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return (
            f"code {code.co_code.hex()} {code.co_exceptiontable.hex()} {code.co_names} {arguments} "
            f"[{', '.join(self.of(constant) for constant in code.co_consts)}]"
        )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _inside(value: Any, kind: type[Any]) -> tuple[Any, ...]:
    """The functions inside what wraps functions."""
    if issubclass(kind, staticmethod | classmethod | types.MethodType):
        return (value.__func__,)
    if issubclass(kind, property):
        return value.fget, value.fset, value.fdel
    if issubclass(kind, functools.cached_property):
        return (value.func,)
    if issubclass(kind, functools.partial):
        return value.func, value.args, tuple(sorted(value.keywords.items()))
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return ()
    wrapped = own.get("__wrapped__") if isinstance(own, dict) else None
    return (wrapped,) if wrapped is not None else ()


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
