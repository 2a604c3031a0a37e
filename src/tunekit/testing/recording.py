"""An observer that keeps what it is told, and knows which order is right."""

from __future__ import annotations

from typing import TypeVar

from tunekit.events import (
    CheckpointSaved,
    Event,
    MetricLogged,
    Notice,
    Progress,
    RunFinished,
    RunStarted,
    StepFailed,
    StepFinished,
    StepStarted,
)

__all__ = ["RecordingEvents"]

E = TypeVar("E", bound=Event)


class RecordingEvents:
    """Pass it as ``on_event``; it keeps every event in order, of several runs one after another."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """The events of a class, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def names(self) -> list[str]:
        """Class names of all events, in order."""
        return [type(event).__name__ for event in self.events]

    def notices(self, code: str | None = None) -> list[Notice]:
        """The notices, or those with one code."""
        return [event for event in self.of(Notice) if code in (None, event.code)]

    def losses(self, step: str | None = None) -> list[float]:
        """Every logged loss in order, or those of one step."""
        return [
            float(event.values["loss"])
            for event in self.of(MetricLogged)
            if "loss" in event.values and step in (None, event.step)
        ]

    def assert_ordered(self) -> None:
        """Fail unless the events form complete runs in the documented order.

        Each run: ``seq`` counts from 0 and time never goes back; ``RunStarted`` first and ``RunFinished`` last; each
        step begins once, ends once, and everything said about it lies between; optimizer steps of logged losses and of
        checkpoints increase within a step, and no loss comes after a checkpoint that holds its step; progress of one
        label never falls.

        Raises:
            AssertionError: naming the first event out of place.
        """
        runs: dict[str, list[Event]] = {}
        for event in self.events:
            runs.setdefault(event.run_id, []).append(event)
        _require(bool(runs), "no event was recorded")
        for events in runs.values():
            _check_run(events)


def _require(holds: bool, message: str, event: Event | None = None) -> None:
    if not holds:
        raise AssertionError(message + (f"; event {event.seq}: {event!r}" if event is not None else ""))


def _check_run(events: list[Event]) -> None:
    for number, event in enumerate(events):
        _require(event.seq == number, f"seq {number} is due", event)
        _require(number == 0 or event.time >= events[number - 1].time, "time goes back", event)
        _require(isinstance(event, RunStarted) == (number == 0), "RunStarted comes first, and once", event)
        last = number == len(events) - 1
        _require(isinstance(event, RunFinished) == last, "RunFinished comes last, and once", event)
    started, finished = events[0], events[-1]
    assert isinstance(started, RunStarted) and isinstance(finished, RunFinished)
    order: list[str] = []
    open_step: _Step | None = None
    for event in events[1:-1]:
        if isinstance(event, StepStarted):
            _require(open_step is None, "a step begins before the one before has ended", event)
            _require(event.step is not None and event.step not in order, "a step begins twice", event)
            order.append(str(event.step))
            open_step = _Step(str(event.step))
        elif isinstance(event, StepFinished | StepFailed):
            _require(open_step is not None and event.step == open_step.name, "a step ends that did not begin", event)
            open_step = None
        elif open_step is not None and event.step is not None:
            _require(event.step == open_step.name, f"this belongs to step {open_step.name!r}", event)
            open_step.take(event)
        else:
            # What is noticed while data are looked at comes before the steps.
            _require(isinstance(event, Notice | Progress), "this belongs between start and end of its step", event)
    _require(open_step is None, f"the step {open_step.name if open_step else ''!r} never ended")
    planned = list(started.steps)
    _require(order == planned[: len(order)], f"steps began as {order}, planned were {planned}")
    if finished.status == "finished":
        _require(order == planned, f"the run finished after {order}, planned were {planned}")


class _Step:
    def __init__(self, name: str) -> None:
        self.name = name
        self.loss_at = 0
        self.checkpoint_at = 0
        self.done: dict[tuple[str, str], float] = {}

    def take(self, event: Event) -> None:
        if isinstance(event, MetricLogged) and "loss" in event.values and event.global_step:
            _require(event.global_step > self.loss_at, "optimizer steps of losses must increase", event)
            _require(event.global_step > self.checkpoint_at, "a loss comes after the checkpoint that holds it", event)
            self.loss_at = event.global_step
        elif isinstance(event, CheckpointSaved):
            _require(event.global_step > self.checkpoint_at, "optimizer steps of checkpoints must increase", event)
            self.checkpoint_at = event.global_step
        elif isinstance(event, Progress):
            key = (event.label, event.unit)
            _require(event.done >= self.done.get(key, 0.0), "progress falls", event)
            _require(event.total is None or event.done <= event.total, "more is done than there is", event)
            self.done[key] = event.done
