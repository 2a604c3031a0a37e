"""A short hash of what a component's code does, so that an edited notebook cell counts as a new version.

Hashed are the byte code, constants and names of the functions of a class (or of a function), with defaults, closures,
class attributes, bases, and the helpers and constants of the same module that they refer to. File names and line
numbers do not count, nor does what other modules do, nor the state of objects that are not plain values, containers or
dataclasses. The hash is taken when the decorator runs: a name that is bound anew counts once that cell runs
again. It is the same in every process of one Python version.

What is handed over in memory has no version beside its hash. There (``whole``) long containers count with every item,
up to 64 MiB of text, and so do arrays, and the functions of modules that are no installed package; and what is not
looked into is named.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import importlib.util
import operator
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

__all__ = ["code_digest"]

_DEEPEST = 60
"""Levels of nesting that are looked into."""

_MOST, _ENDS = 10_000, 100
"""Of a list or dict with more items than the one, the length and this many at each end are hashed."""

_TEXT = 64 * 2**20
"""Characters of containers that are hashed for what is in memory only."""

_LONG, _LONG_TEXT = 1000, 2**20
"""Containers with more items, and longer texts, are hashed where they stand, to need no memory."""

_REPR = (range, slice, Decimal, Fraction, date, time, timedelta, tzinfo, UUID)
"""Types whose ``repr`` is the value."""

_GETTERS = (operator.itemgetter, operator.attrgetter, operator.methodcaller)

_BUILT_IN = (
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType),
    *(types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType),
)

_COMPILED = frozenset({"cython_function_or_method", "fused_cython_function", "ufunc"})
"""Names of the types of functions of packages that are written in C."""

_STATELESS = frozenset({"typing", "types", "logging", "threading", "_thread", "abc"})
"""Modules whose objects hold nothing that scores depend on."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def code_digest(
    component: Any,
    options: type[Any] | None,
    *,
    containers: bool,
    whole: bool = False,
    unseen: list[str] | None = None,
) -> str:
    """SHA-256 (hex) of what ``component`` and its options model do.

    Args:
        component: a class or a function.
        options: its pydantic options model, or None.
        containers: whether lists, dicts and sets that the code refers to count with their content. They fill up while
            a component runs, so they are only worth hashing while they are new.
        whole: for what is in memory only: long containers count with every item, and code of other modules counts
            too, unless these are of an installed package.
        unseen: what was not looked into is added to it, by its class.
    """
    parts = [_Description(component.__module__, containers, whole, unseen).of(component)]
    if options is not None:
        parts.append(_Description(options.__module__, containers).options(options))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


class _Description:
    """Text for values; equal behaviour, equal text. ``home`` is the module whose functions and classes are entered."""

    def __init__(self, home: str, containers: bool, whole: bool = False, unseen: list[str] | None = None) -> None:
        self._home = home
        self._containers = containers
        self._whole = whole
        self._unseen = [] if unseen is None else unseen
        self._left = _TEXT
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
            if self._whole and kind in (str, bytes) and len(value) > _LONG_TEXT:
                return f"{kind.__name__} {_sha(value)}"
            return f"{kind.__name__} {value!r}"
        if issubclass(kind, tuple | frozenset):
            return self._items(value)
        if issubclass(kind, list | set | dict | types.MappingProxyType):
            return self._items(value) if self._containers else f"a {kind.__name__}"
        if issubclass(kind, types.CodeType):
            return self._code(value)
        if issubclass(kind, type):
            return self._once(value, self._body) if self._entered_module(value) else f"class {_path(value)}"
        if issubclass(kind, types.FunctionType):
            return self._once(value, self._function) if self._entered_module(value) else f"function {_path(value)}"
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
        if self._whole and issubclass(kind, _GETTERS):
            return repr(value)
        if self._whole and kind.__module__ == "numpy" and not getattr(getattr(value, "dtype", None), "hasobject", True):
            return f"{kind.__qualname__} {value.dtype.str} {value.shape} {_sha(value.tobytes())}"
        inside = _inside(value, kind)
        if self._whole and issubclass(kind, types.MethodType):
            inside = (*inside, value.__self__)
        known = issubclass(kind, _BUILT_IN) or kind.__name__ in _COMPILED or kind.__module__ in _STATELESS
        if not inside and not known:
            self._unseen.append(f"{kind.__qualname__}")
        inner = [self.of(part) for part in inside]
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
        if self._whole:
            return self._whole_items(value)
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

    def _whole_items(self, value: Any) -> str:
        self._entered.add(id(value))
        keyed = isinstance(value, Mapping)
        unordered = keyed or isinstance(value, set | frozenset)
        long = len(value) > _LONG
        parts: list[str] = []
        hashed = hashlib.sha256()
        for number, item in enumerate(value.items() if keyed else value):
            if self._left < 0:
                kind = type(value).__name__
                self._unseen.append(f"a {kind} of which {len(value) - number:,} items are beyond {_TEXT >> 20} MiB")
                parts.append(f"and {len(value) - number} more")
                break
            text = f"{self.of(item[0])}: {self.of(item[1])}" if keyed else self.of(item)
            self._left -= len(text)
            if not long:
                parts.append(text)
            elif unordered:
                parts.append(_sha(text))
            else:
                hashed.update(f"{len(text)} ".encode() + text.encode("utf-8", "surrogatepass"))
        self._entered.discard(id(value))
        if unordered:
            parts.sort()
        if long and unordered:
            parts = [_sha("\n".join(parts))]
        elif long:
            parts.append(hashed.hexdigest())
        return f"{type(value).__name__}({', '.join(parts)})"

    def _entered_module(self, value: Any) -> bool:
        name = value.__module__
        return name == self._home or (self._whole and isinstance(name, str) and _of_the_user(name))

    def _once(self, value: Any, describe: Callable[[Any], str]) -> str:
        if id(value) in self._entered:
            return f"again {value.__qualname__}"
        self._entered.add(id(value))
        return describe(value)

    def _body(self, cls: type[Any]) -> str:
        parts: list[str] = []
        for base in cls.__mro__:
            if not self._entered_module(base):
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
        names = sorted(set(_names(code)))
        for name in names:
            if name in function.__globals__ and not name.startswith("__"):
                value = function.__globals__[name]
                parts.append(f"{name} = {self.of(value)}")
                if self._whole and isinstance(value, types.ModuleType):
                    parts += self._attributes(value, names)
        if self._whole:
            package = str(function.__globals__.get("__package__") or "")
            parts += [f"{name} = {_source(name, package)}" for name in sorted(set(_imports(code)))]
        return f"function [{'; '.join(parts)}]"

    def _attributes(self, module: types.ModuleType, names: list[str]) -> Iterator[str]:
        """What code with these names may use of a module of the user's."""
        if id(module) in self._entered or not _of_the_user(module.__name__):
            return
        self._entered.add(id(module))
        for name in names:
            if name in vars(module) and not name.startswith("__"):
                value = vars(module)[name]
                yield f"{module.__name__}.{name} = {self.of(value)}"
                if isinstance(value, types.ModuleType):
                    yield from self._attributes(value, names)
        self._entered.discard(id(module))

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


def _imports(code: types.CodeType) -> Iterator[str]:
    """Modules that are imported while the code runs."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and instruction.argval:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imports(constant)


def _source(name: str, package: str) -> str:
    """Hash of the file of a module, which is not imported; its name, if it is no module of the user's."""
    for whole in filter(None, (name, f"{package}.{name}" if package else "")):
        top, *rest = whole.split(".")
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            continue
        path = Path(spec.origin) if spec is not None and spec.origin else None
        if path is None or not _is_file_of_the_user(top, str(path)):
            continue
        base = path.parent.joinpath(*rest) if rest else path
        for file in (base, base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if file.is_file():
                return f"source {_sha(file.read_bytes())}"
    return f"module {name}"


@functools.cache
def _of_the_user(module: str) -> bool:
    """Whether a module is neither of Python nor of an installed package, so that no version tells of its edits."""
    if module == "__main__":
        return True
    return _is_file_of_the_user(module, getattr(sys.modules.get(module), "__file__", None))


def _is_file_of_the_user(module: str, file: str | None) -> bool:
    top = module.partition(".")[0]
    if file is None or top in sys.stdlib_module_names or top == "tunekit":
        return False
    path = Path(file)
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return not {"site-packages", "dist-packages"} & set(path.parts) and not any(
        path.is_relative_to(folder) for folder in installed
    )


def _sha(value: str | bytes) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value).hexdigest()


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
