"""A small honest tracker, and the same with one bug each."""

from __future__ import annotations

import json
import logging
from typing import Any

from tunekit.events import Event, MetricLogged, RunFinished, RunStarted, StepFailed, StepFinished, event_to_dict
from tunekit.plugins import Options, TrackerSpec, hookimpl

api_version = 1


class JournalOptions(Options):
    path: str
    """File to append to."""


class Journal:
    """Appends every event to a JSON Lines file."""

    def __init__(self, options: JournalOptions) -> None:
        self.stream = open(options.path, "a", encoding="utf-8")  # noqa: SIM115, PTH123  (closed in close)

    def on_event(self, event: Event) -> None:
        self.stream.write(json.dumps(event_to_dict(event), default=str) + "\n")
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


class DropsTheLast(Journal):
    def on_event(self, event: Event) -> None:
        if not isinstance(event, RunFinished):
            super().on_event(event)


class OneBehind(Journal):
    """Writes an event when the next one comes, and forgets the last."""

    waiting: Event | None = None

    def on_event(self, event: Event) -> None:
        if self.waiting is not None:
            super().on_event(self.waiting)
        self.waiting = event


class SharedBuffer(Journal):
    """The buffer belongs to the class, so that two runs write into one."""

    lines: list[Event] = []

    def __init__(self, options: JournalOptions) -> None:
        self.path = options.path

    def on_event(self, event: Event) -> None:
        self.lines.append(event)

    def close(self) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:  # noqa: PTH123
            stream.writelines(json.dumps(event_to_dict(event), default=str) + "\n" for event in self.lines)


class Overwrites(Journal):
    """Empties the file when the run starts, although another run may be writing to it."""

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.stream.truncate(0)
        super().on_event(event)


class ClosesEarly(Journal):
    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, StepFinished | StepFailed):
            self.close()


class ConfiguresLogging(Journal):
    def __init__(self, options: JournalOptions) -> None:
        super().__init__(options)
        logging.getLogger().setLevel(logging.DEBUG)


class LosesOnFailure(Journal):
    """Keeps events in memory and writes them when the run went well."""

    def __init__(self, options: JournalOptions) -> None:
        super().__init__(options)
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RunFinished) and event.status == "finished":
            for each in self.events:
                super().on_event(each)


class Buffers(Journal):
    """Does not flush, though it says that it is durable."""

    def on_event(self, event: Event) -> None:
        self.stream.write(json.dumps(event_to_dict(event), default=str) + "\n")


class Rounds(Journal):
    def on_event(self, event: Event) -> None:
        line = event_to_dict(event)
        if isinstance(event, MetricLogged):
            line["values"] = {name: round(value, 4) for name, value in event.values.items()}
        self.stream.write(json.dumps(line, default=str) + "\n")
        self.stream.flush()


class ChangesEvents(Journal):
    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, MetricLogged):
            event.values.clear()  # type: ignore[attr-defined]


class LeavesOpen(Journal):
    kept: list[Any] = []

    def close(self) -> None:
        self.kept.append(self.stream)


class WritesHere(Journal):
    def on_event(self, event: Event) -> None:
        super().on_event(event)
        with open("journal.log", "a", encoding="utf-8") as stream:  # noqa: PTH123
            stream.write("event\n")


@hookimpl
def tunekit_trackers() -> list[TrackerSpec]:
    classes = [
        Journal, DropsTheLast, OneBehind, SharedBuffer, Overwrites, ClosesEarly, ConfiguresLogging, LosesOnFailure,
        Buffers, Rounds, ChangesEvents, LeavesOpen, WritesHere,
    ]  # fmt: skip
    return [
        TrackerSpec(
            name=each.__name__.lower(),
            target=f"sabotage_trackers:{each.__name__}",
            options="sabotage_trackers:JournalOptions",
        )
        for each in classes
    ]
