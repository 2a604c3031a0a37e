"""What happens during a run, as frozen records. Standard library only.

Observers receive every event in order. An observer that raises is isolated: the run goes on, and the failure is
reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "ArtifactWritten",
    "CheckpointSaved",
    "Event",
    "MetricLogged",
    "Notice",
    "Observer",
    "Progress",
    "RunFinished",
    "RunStarted",
    "StepFailed",
    "StepFinished",
    "StepStarted",
    "event_to_dict",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Fields that every event carries."""

    run_id: str
    """Identifier of the run."""
    seq: int
    """Position in the run's event stream, from 0."""
    time: float
    """Seconds since the epoch."""
    step: str | None = None
    """Name of the step, or None for events of the whole run."""


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The plan passed its checks and the work folder is locked."""

    steps: tuple[str, ...]
    """Step names in order."""
    workdir: str
    """Absolute path of the work folder."""
    seed: int
    """Seed of the run."""


@dataclass(frozen=True, kw_only=True)
class StepStarted(Event):
    """A step begins, continues, or is taken from an earlier run."""

    index: int
    """1-based position among the steps."""
    kind: str
    """Step kind, such as ``sft``."""
    component: str
    """``dist/name`` of the component that does the work."""
    trains: str
    """``full``, an adapter label such as ``lora r=8``, or ``-`` when nothing is trained."""
    reused: bool = False
    """True when the finished artifact of an earlier run is used and nothing is computed."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far a step is."""

    done: float
    """Units done."""
    total: float | None
    """Units in all, or None when unknown."""
    unit: str
    """What is counted: ``steps``, ``rows``, ``layers`` ..."""
    label: str = ""
    """Which part of the step, such as ``tokenizing``."""


@dataclass(frozen=True, kw_only=True)
class MetricLogged(Event):
    """Numbers of one optimizer step or of one measurement."""

    global_step: int
    """Optimizer step, from 1; 0 for measurements outside training."""
    values: Mapping[str, float]
    """Name to value: ``loss``, ``learning_rate``, ``grad_norm``, ``tokens`` ..."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A resumable checkpoint is complete on disk."""

    path: str
    """Folder of the checkpoint."""
    global_step: int
    """Optimizer step it holds."""


@dataclass(frozen=True, kw_only=True)
class ArtifactWritten(Event):
    """A step's result was published in the work folder."""

    path: str
    """Folder of the artifact."""
    size_bytes: int
    """Bytes of the model on disk; 0 for reports."""


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """A fact the user must see: an embedded default in use, rows cut, a fallback."""

    code: str
    """Stable identifier, such as ``embedded-data``."""
    message: str
    """One sentence."""


@dataclass(frozen=True, kw_only=True)
class StepFinished(Event):
    """A step is done and published."""

    seconds: float
    """Wall time of the step in this process."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Final metrics of the step."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts: parameter counts, merge proof, sizes."""


@dataclass(frozen=True, kw_only=True)
class StepFailed(Event):
    """A step stopped with an error or was cancelled."""

    error: str
    """Class name of the error."""
    message: str
    """Text of the error."""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The run is over."""

    status: str
    """``finished``, ``failed`` or ``cancelled``."""
    seconds: float
    """Wall time of the run in this process."""


Observer = Callable[[Event], None]


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as JSON types, with its class name under ``event``."""
    return {"event": type(event).__name__, **asdict(event)}
