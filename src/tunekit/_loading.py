"""Finding plugins: entry points, and what stands in a loaded plugin. Importing it is all that is run of it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tunekit.errors import PluginError
from tunekit.plugins.decorators import decorations, is_decorated
from tunekit.settings import canonical_name

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = [
    "GROUP",
    "Point",
    "decorated_in",
    "entry_points",
    "functions_in",
    "hook_arguments",
    "no_plugin",
    "own_version",
    "owners",
    "refuse_twins",
]

GROUP = "tunekit"
"""Group of entry points that plugins use."""


class Point(NamedTuple):
    """An entry point of an installed distribution."""

    name: str
    provider: str
    """Distribution."""
    version: str
    value: str
    """``pkg.module`` or ``pkg.module:object``."""
    load: Callable[[], Any]


def entry_points() -> list[Point]:
    """Every entry point of the group, in a fixed order. None is loaded."""
    from importlib import metadata

    found: dict[tuple[str, str], Point] = {}
    try:
        points: Iterable[EntryPoint] = metadata.entry_points(group=GROUP)
    except Exception:  # noqa: BLE001  (one damaged file spoils the reading of all)
        points, damaged = _points_one_by_one()
        found.update({(canonical_name(point.provider), point.name): point for point in damaged})
    for point in points:
        provider, version = _identity(point.dist)
        made = Point(point.name, provider, version, point.value, _loader(point.value, point.load))
        found.setdefault((canonical_name(provider), point.name), made)
    return [found[key] for key in sorted(found)]


def _points_one_by_one() -> tuple[list[EntryPoint], list[Point]]:
    """Entry points of the group, and for each distribution whose list is damaged one that cannot be loaded."""
    from importlib import metadata

    points: list[EntryPoint] = []
    damaged: list[Point] = []
    seen: set[str] = set()
    for dist in metadata.distributions():
        name, version = _identity(dist)
        if canonical_name(name) in seen:  # a distribution further back on the path is not the one in use
            continue
        seen.add(canonical_name(name))
        try:
            points += dist.entry_points.select(group=GROUP)
        except Exception as error:  # noqa: BLE001  (files of strangers)
            what = ImportError(f"its entry_points.txt is damaged: {type(error).__name__}: {error}")
            damaged.append(Point(name, name, version, "", functools.partial(_raise, what)))
    return points, damaged


def _raise(error: Exception) -> Any:
    raise error


def _identity(dist: Distribution | None) -> tuple[str, str]:
    """Name and version of a distribution, from one read of its metadata."""
    try:
        text = (dist.read_text("METADATA") or dist.read_text("PKG-INFO") or "") if dist else ""
    except Exception:  # noqa: BLE001  (a damaged metadata folder)
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line:
            break
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
        if "name" in fields and "version" in fields:
            break
    return fields.get("name") or "unknown", fields.get("version", "")


def _loader(value: str, load: Callable[[], Any]) -> Callable[[], Any]:
    """``load``; when it fails, nothing of the plugin's package that was imported on the way stays behind.

    Python forgets a module that raises but not what that module had imported from its own package; a later import would
    find those parts without the package around them.
    """
    top = value.partition(":")[0].partition(".")[0].strip()

    def run() -> Any:
        before = set(sys.modules)
        try:
            return load()
        except BaseException:
            for name in set(sys.modules) - before:
                if name == top or name.startswith(f"{top}."):
                    sys.modules.pop(name, None)
            raise

    return run


def owners(points: Iterable[Point]) -> dict[str, tuple[str, str, str]]:
    """Module to name, distribution and version of its entry point, to know a module that is handed in."""
    return {point.value: (point.name, point.provider, point.version) for point in points}


def own_version() -> str:
    """Version of the installed tunekit, or empty."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tunekit")
    except PackageNotFoundError:
        return ""


def functions_in(plugin: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions that stand in a module, or methods of an object, by name.

    Only what stands in the module or class itself is looked at, never a property or lazy attribute: asking for those
    would run code of the plugin or import its heavy parts.
    """
    for name, static in _statics(plugin):
        if isinstance(static, types.FunctionType | types.MethodType | staticmethod | classmethod):
            value = static if isinstance(plugin, types.ModuleType) else getattr(plugin, name)
            if callable(value):
                yield name, value


def decorated_in(plugin: Any, *, own: bool) -> Iterator[Any]:
    """Decorated classes and functions that stand in a module or object, by name, none twice.

    Args:
        plugin: the module or object.
        own: leave out what comes from other packages.
    """
    home = plugin.__name__ if isinstance(plugin, types.ModuleType) else type(plugin).__module__
    top = home.partition(".")[0]
    given: set[int] = set()
    for _, static in _statics(plugin):
        thing = static.__func__ if isinstance(static, staticmethod) else static
        if not is_decorated(thing) or id(thing) in given:
            continue
        given.add(id(thing))
        if not own or str(thing.__module__).partition(".")[0] == top:
            yield thing


def _statics(plugin: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(plugin, types.ModuleType):
        there = vars(plugin)
        yield from ((name, there[name]) for name in sorted(there) if not name.startswith("__"))
        return
    for name in sorted(dir(plugin)):
        if not name.startswith("__"):
            yield name, inspect.getattr_static(plugin, name, None)


def hook_arguments(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names of the arguments of a plain function; None where :mod:`inspect` has to look, as with defaults."""
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return None
    code = function.__code__
    if function.__defaults__ or code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return None
    return code.co_varnames[: code.co_argcount]


def no_plugin(plugin: Any) -> str:
    """Why nothing can be found in what was handed in; empty if something can."""
    if inspect.isclass(plugin):
        return f"{plugin.__name__} is a class; hand in an instance, {plugin.__name__}()"
    if inspect.isroutine(plugin):
        return f"{plugin.__name__} is a function without a decorator of tunekit.plugins"
    if plugin is None or isinstance(plugin, str | bytes | int | float | list | tuple | dict | set):
        return f"{plugin!r:.80} is no plugin; hand in a module, an object with hooks, or a decorated class or function"
    return ""


def refuse_twins(plugins: Iterable[Any]) -> None:
    """Raise for two decorated things of one name: neither could be meant."""
    given: dict[tuple[str, str, str], Any] = {}
    for plugin in filter(is_decorated, plugins):
        for decoration in decorations(plugin):
            spec = decoration.spec
            twin = given.setdefault((spec.kind, spec.name, getattr(spec, "stage", "")), plugin)
            if twin is not plugin:
                raise PluginError(
                    f"Two of the plugins handed in are the {spec.kind} {spec.name!r}.",
                    code="duplicate-component",
                    found=f"{twin.__module__}:{twin.__qualname__} and {plugin.__module__}:{plugin.__qualname__}",
                    fix="give one of them another name, or hand in one",
                )
