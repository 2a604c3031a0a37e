"""Every error tunekit raises on purpose. Standard library only.

An error says what was asked, what was found, the nearest match and what to type. The parts stay available as
fields, survive pickling (errors cross process boundaries), and are put together by ``str()``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "AmbiguousNameError",
    "ArtifactError",
    "CheckFailed",
    "DataError",
    "MissingDependencyError",
    "OptionsError",
    "PipelineError",
    "PluginError",
    "RunCancelled",
    "StepError",
    "TunekitDeprecationWarning",
    "TunekitError",
    "UnknownNameError",
    "WorkdirLockedError",
    "nearest",
]


class TunekitDeprecationWarning(DeprecationWarning):
    """A tunekit API that will be removed; the message names the replacement and the removal version."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Known names closest to ``name``, best first; case does not count."""
    import difflib

    by_lower: dict[str, str] = {}
    for candidate in known:
        by_lower.setdefault(candidate.lower(), candidate)
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=limit, cutoff=0.6)
    return tuple(by_lower[match] for match in found)


def _rebuild(cls: type[TunekitError], message: str, fields: dict[str, Any]) -> TunekitError:
    return cls(message, **fields)


class TunekitError(Exception):
    """Base of all tunekit errors.

    Args:
        message: one sentence: what went wrong.
        code: stable machine-readable identifier, such as ``"unknown-method"``.
        asked: what the caller asked for.
        found: what was there instead.
        suggestions: nearest matches, best first.
        fix: what to type or do.
        details: further facts as plain data (file, row, field, exit code ...).
    """

    default_code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        asked: str = "",
        found: str = "",
        suggestions: Iterable[str] = (),
        fix: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.asked = asked
        self.found = found
        self.suggestions = tuple(suggestions)
        self.fix = fix
        self.details = dict(details or {})

    def __str__(self) -> str:
        lines = [self.message]
        if self.asked:
            lines.append(f"  asked: {self.asked}")
        if self.found:
            lines.append(f"  found: {self.found}")
        if self.suggestions:
            lines.append(f"  did you mean: {', '.join(self.suggestions)}?")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def fields(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this error."""
        return {
            "code": self.code,
            "asked": self.asked,
            "found": self.found,
            "suggestions": self.suggestions,
            "fix": self.fix,
            "details": self.details,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.fields())


class PipelineError(TunekitError, ValueError):
    """A chain that cannot be built, such as two ``lora`` settings or a step name used twice."""

    default_code = "pipeline"


class CheckFailed(PipelineError):
    """``run`` refused a plan. ``details["findings"]`` holds every finding as plain data."""

    default_code = "check-failed"


class OptionsError(TunekitError, ValueError):
    """An option that is unknown, of the wrong type, or out of range."""

    default_code = "options"


class DataError(TunekitError, ValueError):
    """Data that cannot be used. ``details`` carries ``file``, ``row`` (1-based) and ``field`` where they are known."""

    default_code = "data"


class UnknownNameError(TunekitError, LookupError):
    """No installed plugin provides the name."""

    default_code = "unknown-name"


class AmbiguousNameError(TunekitError, LookupError):
    """Several distributions provide the short name; the fix lists the full spellings ``dist/name``."""

    default_code = "ambiguous-name"


class PluginError(TunekitError):
    """A plugin that cannot be used: failed import, wrong ``api_version``, malformed spec."""

    default_code = "plugin"


class MissingDependencyError(TunekitError, ImportError):
    """A package that a component needs is missing or too old; ``fix`` holds the exact install line."""

    default_code = "missing-dependency"


class ArtifactError(TunekitError, OSError):
    """Something on disk is missing, damaged, or cannot be written."""

    default_code = "artifact"


class WorkdirLockedError(ArtifactError):
    """Another run holds the work folder."""

    default_code = "workdir-locked"


class StepError(TunekitError):
    """A step failed while running; ``details["step"]`` names it."""

    default_code = "step"


class RunCancelled(TunekitError):
    """The run was cancelled. What is finished stays; the next run in the same work folder continues."""

    default_code = "cancelled"
