"""The public API of tunekit as it stands in the sources, read without importing anything: what is public, and as text.

The facades (``tunekit``, ``tunekit.plugins`` ...) import their names on first use, so no tool that reads sources sees
them. Their tables ``_WHERE`` say which module defines each name; this module follows them.
"""

from __future__ import annotations

import ast
import importlib
import pprint
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]

FACADES = (
    "tunekit",
    "tunekit.plugins",
    "tunekit.plugins.hf",
    "tunekit.errors",
    "tunekit.events",
    "tunekit.data",
    "tunekit.testing",
)
"""Every public module of the core. All other modules are tunekit's own business."""

RECORDS = (
    "tunekit._registry.Entry",
    "tunekit._registry.PluginRecord",
    "tunekit._registry.Registry",
    "tunekit.plan.AdapterPlan",
    "tunekit.plan.ComponentRef",
    "tunekit.plan.ResolvedAdapter",
    "tunekit.plan.ResolvedPlan",
    "tunekit.plan.ResolvedStep",
    "tunekit.plan.StepPlan",
    "tunekit.results.StepResult",
    "tunekit.session.UnmetRequirement",
    "tunekit.settings.Settings",
)
"""Types that public functions take or give, without being exported by a facade."""

SPECIAL = {"__init__", "__call__", "__iter__", "__len__", "__getitem__", "__enter__", "__exit__", "__str__"}
WIDTH = 110


def load(package: str = "tunekit", source: Path = ROOT / "src") -> griffe.Object:
    """The package as it is on disk."""
    return griffe.load(package, search_paths=[source], allow_inspection=False, resolve_aliases=False)  # type: ignore[return-value]


def public_objects(package: griffe.Object, facade: str) -> dict[str, griffe.Object]:
    """Public name to what it stands for, for one facade. Names that nothing defines are left out."""
    inner = facade.partition(".")[2]
    if inner and not _has(package, inner):
        return {}
    module = package[inner] if inner else package
    found: dict[str, griffe.Object] = {}
    where = module.members.get("_WHERE")
    if where is not None:
        for definer, names in ast.literal_eval(str(where.value)).items():  # type: ignore[union-attr]
            for name in (names,) if isinstance(names, str) else names:
                path = f"{definer.removeprefix('tunekit.')}.{name}"
                if _has(package, path):
                    found[name] = final(package[path])
    elif module.exports:
        for name in module.exports:
            found[str(name)] = final(module[str(name)])
    return dict(sorted(found.items()))


def final(thing: griffe.Object | griffe.Alias) -> griffe.Object:
    """What an imported name stands for."""
    return thing.final_target if thing.is_alias else thing  # type: ignore[union-attr,return-value]


def _has(package: griffe.Object, inner: str) -> bool:
    try:
        package[inner]
    except KeyError:
        return False
    return True


def codes(*sources: Path) -> list[str]:
    """Every ``code`` of an error, notice or finding that the Python files below ``sources`` spell out, besides those of
    the test kit and the example."""
    found: set[str] = set()
    for source in sources:
        for path in source.rglob("*.py"):
            if {"testing", "tunekit_example"} & set(path.relative_to(source).parts):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found.update(filter(None, map(_text, _code_arguments(node))))
    return sorted(found)


def _code_arguments(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "default_code" for t in node.targets):
        yield node.value
    elif isinstance(node, ast.Call):
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "code")
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        position = {"add": 2, "notice": 0}.get(name)  # Analysis.add(level, step, code, ...), ctx.notice(code, ...)
        if position is not None and len(node.args) > position + 1:
            yield node.args[position]


def _text(node: ast.expr) -> str:
    """A string as it is written, with ``{}`` for its variable parts; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


# ---------------------------------------------------------------- as text


def describe(package: griffe.Object, facade: str) -> list[str]:
    """One entry per public name and member, in a fixed order."""
    objects = public_objects(package, facade)
    entries: list[str] = []
    for name, thing in objects.items():
        entries += _describe(name, thing, set(objects))
    return entries


def describe_records(package: griffe.Object) -> list[str]:
    """One entry per member of the types in ``RECORDS``."""
    entries: list[str] = []
    exported = {thing.path for facade in FACADES for thing in public_objects(package, facade).values()}
    for path in sorted(set(RECORDS) - exported):
        entries += _describe(path.rpartition(".")[2], final(package[path.partition(".")[2]]), set())
    return entries


def describe_hooks(package: griffe.Object) -> list[str]:
    """One entry per hook: signature, and how many answers there are."""
    entries = []
    for name, hook in package["plugins.hookspecs"].functions.items():
        if name.startswith("tunekit_"):
            marks = " ".join(str(mark.value) for mark in hook.decorators)
            kind = ["firstresult" if "firstresult=True" in marks else "list"]
            kind += ["historic"] if "historic=True" in marks else []
            entries.append(f"{_signature(name, hook)}  # {', '.join(kind)}")
    return entries


def _describe(name: str, thing: griffe.Object, public: set[str]) -> Iterator[str]:
    if thing.is_function:
        yield _decorated(_signature(name, thing), thing)
    elif thing.is_class:
        shown = list(_bases(thing, public))
        head = f"class {name}({', '.join(shown)})" if shown else f"class {name}"
        yield _decorated(head, thing)
        for member_name, member in _members(thing, public):
            yield from _member(f"{name}.{member_name}", member)
    elif thing.is_attribute:
        yield f"{name} = {_constant(thing)}"


def _constant(thing: griffe.Object) -> str:
    """The value of a constant: as it is written, or, where that says nothing, as it comes out."""
    text = str(thing.value)  # type: ignore[attr-defined]
    if not thing.name.isupper():
        return text
    try:
        value = ast.literal_eval(text)
    except ValueError:
        value = getattr(importlib.import_module(thing.module.path), thing.name)
    lines = pprint.pformat(_plain(value), width=WIDTH - 4, sort_dicts=False).splitlines()
    return lines[0] if len(lines) == 1 else "\\\n    " + "\n    ".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value if isinstance(value, str | int | float | None) else Ellipsis


def _bases(thing: griffe.Object, public: set[str]) -> Iterator[str]:
    """Names of base classes; for one of tunekit's that no one outside should know of, those of its own."""
    for base in thing.bases:  # type: ignore[attr-defined]
        name = str(base).rpartition(".")[2]
        own = None if name in public else _own(thing, name)
        if own is None:
            yield name
        else:
            yield from _bases(own, public)


def _own(thing: griffe.Object, base: str) -> griffe.Object | None:
    """A base class that is tunekit's."""
    try:
        path = thing.resolve(base)
    except griffe.NameResolutionError:
        return None
    return final(thing.modules_collection[path]) if path.startswith("tunekit") else None


def _members(thing: griffe.Object, public: set[str]) -> list[tuple[str, griffe.Object]]:
    """Public members, with those of bases that are not public themselves: for the others their own entry speaks."""
    found = {}
    inherited = thing.inherited_members if thing.is_class else {}
    for name, member in {**inherited, **thing.members}.items():
        if name.startswith("_") and name not in SPECIAL:
            continue
        real = final(member)
        if name not in thing.members and real.parent is not None and real.parent.name in public:
            continue
        if "dataclass" in thing.labels and name == "__init__":
            continue
        found[name] = real
    order = {"attribute": 0, "function": 1, "class": 2}
    return sorted(found.items(), key=lambda item: (order.get(item[1].kind.value, 3), _line(thing, item)))


def _line(thing: griffe.Object, item: tuple[str, griffe.Object]) -> tuple[int, str | int]:
    """Fields in the order in which they stand, for it counts; methods by name."""
    name, member = item
    return (0, member.lineno or 0) if member.kind.value == "attribute" else (1, name)


def _member(path: str, member: griffe.Object) -> Iterator[str]:
    if called_by_pytest(member):
        yield f"{path}  # {'test' if member.name.startswith('test_') else 'fixture'}"
    elif member.is_function:
        yield _decorated(_signature(path, member), member)
    elif member.is_attribute:
        text = path
        if member.annotation is not None:  # type: ignore[attr-defined]
            text += f": {member.annotation}"  # type: ignore[attr-defined]
        if "property" in member.labels:
            text += "  # property"
        elif member.value is not None and "class-attribute" in member.labels:  # type: ignore[attr-defined]
            text += f" = {member.value}"  # type: ignore[attr-defined]
        yield text
    elif member.is_class:
        yield f"class {path}"


def called_by_pytest(thing: griffe.Object) -> bool:
    """Whether it is a test or a fixture: its parameters are fixtures, which pytest finds by name."""
    marks = [str(mark.value) for mark in getattr(thing, "decorators", [])]
    return thing.is_function and (
        thing.name.startswith("test_") or any(mark.startswith("pytest.fixture") for mark in marks)
    )


def _decorated(text: str, thing: griffe.Object) -> str:
    kept = [str(mark.value) for mark in getattr(thing, "decorators", [])]
    kept = [mark for mark in kept if not mark.startswith(("property", "hookspec"))]
    return f"{text}  # @{' @'.join(kept)}" if kept else text


def _signature(name: str, function: griffe.Object) -> str:
    parts: list[str] = []
    keyword = False
    method = function.parent is not None and function.parent.is_class
    for parameter in function.parameters:  # type: ignore[attr-defined]
        if method and not parts and parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if kind is griffe.ParameterKind.var_positional:
            keyword = True
        if kind is griffe.ParameterKind.keyword_only and not keyword:
            parts.append("*")
            keyword = True
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
        text = star + parameter.name
        if parameter.annotation is not None:
            text += f": {parameter.annotation}"
        if parameter.default is not None and not star:
            text += f" = {parameter.default}" if parameter.annotation is not None else f"={parameter.default}"
        parts.append(text)
        if kind is griffe.ParameterKind.positional_only:
            following = [p for p in function.parameters if p.kind is griffe.ParameterKind.positional_only]  # type: ignore[attr-defined]
            if parameter is following[-1]:
                parts.append("/")
    returns = function.returns  # type: ignore[attr-defined]
    tail = f") -> {returns}" if returns is not None else ")"
    line = f"{name}({', '.join(parts)}{tail}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), tail])
