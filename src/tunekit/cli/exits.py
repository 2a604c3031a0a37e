"""Exit codes of the command line, and which error ends with which. Standard library only."""

from __future__ import annotations

from enum import IntEnum

from tunekit.errors import (
    ArtifactError,
    DataError,
    RunCancelled,
    StepError,
    TunekitError,
    WorkdirLockedError,
)

__all__ = ["HELP", "ExitCode", "exit_code"]


class ExitCode(IntEnum):
    """What a process status of ``tunekit`` means. Numbers never change their meaning."""

    OK = 0
    """Done."""
    PLAN = 1
    """The plan has errors and nothing was run; or doctor or plugins check found what does not work."""
    USAGE = 2
    """The command line was wrong: an unknown option, a plan file or a component that is not there."""
    STEP = 3
    """A step failed while it ran. Finished steps are kept."""
    DATA = 4
    """Data, a model or the work folder cannot be used: bad row, missing or damaged file, disk full."""
    LOCKED = 5
    """Another run holds the work folder."""
    INTERNAL = 70
    """A bug in tunekit."""
    INTERRUPTED = 130
    """Cancelled by Ctrl-C (SIGINT). The next run in the same work folder continues."""
    TERMINATED = 143
    """Cancelled by SIGTERM. The next run in the same work folder continues."""


HELP = (
    "Exit codes: 0 done; 1 the plan has errors and nothing was run, or doctor or plugins check found a fault; "
    "2 wrong usage; 3 a step failed; 4 data, a model or the work folder cannot be used; "
    "5 another run holds the work folder; 70 a bug in tunekit; 130 cancelled by Ctrl-C; 143 cancelled by SIGTERM."
)
"""The exit codes for ``--help``."""


def exit_code(error: BaseException, *, running: bool = False) -> ExitCode:
    """The exit code for an error.

    Args:
        error: what was raised.
        running: whether a step had begun. An error that would be the plan's fault before is the step's fault then.
    """
    if isinstance(error, RunCancelled | KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, WorkdirLockedError):
        return ExitCode.LOCKED
    if isinstance(error, DataError | ArtifactError):
        return ExitCode.DATA
    if isinstance(error, StepError):
        return ExitCode.STEP
    if isinstance(error, TunekitError):
        return ExitCode.STEP if running else ExitCode.PLAN
    return ExitCode.INTERNAL
