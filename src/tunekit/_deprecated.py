"""Everything of tunekit's API that will go, in one place.

Each deprecation is a record in :data:`DEPRECATIONS`, used by name where it takes effect::

    TUNE = Deprecation(name="Pipeline.tune()", instead="Pipeline.sft()", since="0.4", removed_in="0.6")

    @deprecated(TUNE)                       # a function or method
    def tune(self): ...

    if old is not None:                     # an argument, a value, a file format
        warn(OLD_ARGUMENT)

    @hookspec(**hook_options(OLD_HOOK))     # a hook
    def tunekit_old(plan): ...

    @hookspec(**hook_options(plan=OLD_HOOK_ARGUMENT))
    def tunekit_newer(plan, work): ...

When tunekit reaches ``removed_in``, :func:`deprecated` and :func:`hook_options` raise, so that nobody forgets the
removal; a test does the same for the records.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from tunekit.errors import TunekitDeprecationWarning, TunekitError

__all__ = ["DEPRECATIONS", "Deprecation", "deprecated", "hook_options", "impl_warnings", "overdue", "warn"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Deprecation:
    """One thing that will go."""

    name: str
    """What goes, as one writes it: ``Pipeline.tune()``, ``sft(rows=...)``, ``the hook tunekit_old``."""
    instead: str
    """What to write in its place."""
    since: str
    """First release that warns."""
    removed_in: str
    """First release without it."""

    def __str__(self) -> str:
        return (
            f"{self.name} is deprecated since tunekit {self.since} and will be removed in {self.removed_in}; "
            f"use {self.instead}"
        )


DEPRECATIONS: tuple[Deprecation, ...] = ()
"""Every deprecation of this release."""


def warn(deprecation: Deprecation, *, stacklevel: int = 2) -> None:
    """Warn whoever called the function that calls this one.

    Args:
        deprecation: what is deprecated.
        stacklevel: as for ``warnings.warn``, were it called in place of this.
    """
    warnings.warn(str(deprecation), TunekitDeprecationWarning, stacklevel=stacklevel + 1)


def deprecated(deprecation: Deprecation, *, version: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function or method that will go: calls warn, and the docstring says so.

    Args:
        deprecation: what is deprecated.
        version: version of tunekit; default: the installed one.

    Raises:
        TunekitError: if the release has come that should no longer have it.
    """
    _refuse_if_due([deprecation], version)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            warn(deprecation)
            return function(*args, **kwargs)

        call.__doc__ = _note(function.__doc__, deprecation)
        return call

    return decorate


def hook_options(
    deprecation: Deprecation | None = None, *, version: str | None = None, **arguments: Deprecation
) -> dict[str, Any]:
    """Arguments of ``hookspec`` for a hook that will go, or for arguments of it that will.

    Args:
        deprecation: the hook's own, if the whole hook will go.
        version: version of tunekit; default: the installed one.
        arguments: argument of the hook to its deprecation.

    Raises:
        TunekitError: if the release has come that should no longer have it.
    """
    own = [deprecation] if deprecation is not None else []
    _refuse_if_due([*own, *arguments.values()], version)
    options: dict[str, Any] = {}
    if deprecation is not None:
        options["warn_on_impl"] = TunekitDeprecationWarning(str(deprecation))
    if arguments:
        options["warn_on_impl_args"] = {
            name: TunekitDeprecationWarning(str(item)) for name, item in sorted(arguments.items())
        }
    return options


def impl_warnings(options: Mapping[str, Any], arguments: Iterable[str]) -> list[Warning]:
    """The warnings due to whoever implements a hook.

    Args:
        options: options of the hook's specification, as :func:`hook_options` makes them.
        arguments: names of the arguments that the implementation takes.
    """
    whole = options.get("warn_on_impl")
    of_arguments = options.get("warn_on_impl_args") or {}
    found = [whole] if whole is not None else []
    return [*found, *(of_arguments[name] for name in arguments if name in of_arguments)]


def overdue(deprecations: Iterable[Deprecation], version: str | None = None) -> tuple[Deprecation, ...]:
    """Those that should be gone in ``version``, by default the installed one. A pre-release counts as its release."""
    deprecations = tuple(deprecations)
    if not deprecations:
        return ()
    from packaging.version import Version

    found = version if version is not None else _installed()
    if found is None:
        return ()
    now = Version(Version(found).base_version)
    return tuple(item for item in deprecations if now >= Version(item.removed_in))


def _refuse_if_due(deprecations: Iterable[Deprecation], version: str | None) -> None:
    for item in overdue(deprecations, version):
        raise TunekitError(
            f"{item.name} was to be removed in tunekit {item.removed_in}, and it is still here.",
            code="deprecation-due",
            found=f"tunekit {version or _installed()}",
            fix="delete it, its record in tunekit._deprecated and its tests",
        )


def _installed() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tunekit")
    except PackageNotFoundError:
        return None


def _note(doc: str | None, deprecation: Deprecation) -> str:
    import inspect

    note = f"Deprecated since {deprecation.since}, removed in {deprecation.removed_in}: use {deprecation.instead}."
    return f"{inspect.cleandoc(doc)}\n\n{note}" if doc else note
