"""RecordingEvents: what it gives back, and which order it takes for right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunekit.events import (
    ArtifactWritten,
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
from tunekit.testing import RecordingEvents


def good() -> list[Event]:
    """A run of two steps, the second of which is cancelled."""
    made: list[Event] = []

    def add(event: type[Event], step: str | None = None, **fields: object) -> None:
        made.append(event(run_id="r", seq=len(made), time=100.0 + len(made), step=step, **fields))  # type: ignore[arg-type]

    add(RunStarted, steps=("sft", "dpo"), workdir="/w", seed=0)
    add(Notice, "sft", code="rows-cut", message="2 rows were cut.")
    started = {"component": "a/b", "trains": "full"}
    add(StepStarted, "sft", index=1, kind="sft", **started)
    add(Progress, "sft", done=0, total=2, unit="steps")
    add(MetricLogged, "sft", global_step=1, values={"loss": 3.0})
    add(CheckpointSaved, "sft", path="c1", global_step=1)
    add(MetricLogged, "sft", global_step=2, values={"loss": 2.0})
    add(CheckpointSaved, "sft", path="c2", global_step=2)
    add(Progress, "sft", done=2, total=2, unit="steps")
    add(MetricLogged, "sft", global_step=0, values={"eval_loss": 2.5})
    add(ArtifactWritten, "sft", path="01-sft", size_bytes=10)
    add(StepFinished, "sft", seconds=1.0)
    add(StepStarted, "dpo", index=2, kind="align", **started)
    add(MetricLogged, "dpo", global_step=1, values={"loss": 0.7})
    add(StepFailed, "dpo", error="RunCancelled", message="cancelled")
    add(RunFinished, status="cancelled", seconds=2.0)
    return made


def renumbered(events: list[Event]) -> list[Event]:
    return [replace(event, seq=number, time=100.0 + number) for number, event in enumerate(events)]


def recorded(events: list[Event]) -> RecordingEvents:
    record = RecordingEvents()
    for event in events:
        record(event)
    return record


def test_what_it_gives_back() -> None:
    record = recorded(good())
    assert record.losses() == [3.0, 2.0, 0.7]
    assert record.losses("sft") == [3.0, 2.0]
    assert record.losses("merge") == []
    assert [event.path for event in record.of(CheckpointSaved)] == ["c1", "c2"]
    assert [notice.message for notice in record.notices()] == ["2 rows were cut."]
    assert record.notices("rows-cut") and not record.notices("another")
    assert record.names()[:3] == ["RunStarted", "Notice", "StepStarted"]


def test_the_right_order_passes_and_several_runs_too() -> None:
    record = recorded(good())
    record.assert_ordered()
    for event in good():
        record(replace(event, run_id="second"))
    record.assert_ordered()


def swap(first: int, second: int) -> list[Event]:
    events = good()
    events[first], events[second] = events[second], events[first]
    return renumbered(events)


def without(index: int) -> list[Event]:
    events = good()
    del events[index]
    return renumbered(events)


def changed(index: int, **fields: object) -> list[Event]:
    events = good()
    events[index] = replace(events[index], **fields)  # type: ignore[arg-type]
    return events


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([], "no event was recorded"),
        (without(0), "RunStarted comes first"),
        (without(len(good()) - 1), "RunFinished comes last"),
        (changed(4, seq=9), "seq 4 is due"),
        (changed(4, time=1.0), "time goes back"),
        (swap(2, 4), "this belongs between start and end of its step"),
        (swap(6, 4), "optimizer steps of losses must increase"),
        (swap(6, 7), "a loss comes after the checkpoint that holds it"),
        (changed(7, global_step=1), "optimizer steps of checkpoints must increase"),
        (swap(3, 8), "progress falls"),
        (changed(8, done=3), "more is done than there is"),
        (without(11), "a step begins before the one before has ended"),
        (without(12), "this belongs between start and end of its step"),
        (without(14), "the step 'dpo' never ended"),
        (changed(4, step="dpo"), "this belongs to step 'sft'"),
        (changed(12, step="sft"), "a step begins twice"),
        (changed(0, steps=("dpo", "sft")), "planned were"),
        (changed(0, steps=("sft", "dpo", "merge")), ""),
        (changed(15, status="finished"), ""),
    ],
)
def test_what_is_out_of_order_is_named(events: list[Event], says: str) -> None:
    record = recorded(events)
    if says:
        with pytest.raises(AssertionError, match=says):
            record.assert_ordered()
    else:
        record.assert_ordered()


def test_a_finished_run_has_all_its_steps() -> None:
    events = changed(0, steps=("sft", "dpo", "merge"))
    events[-1] = replace(events[-1], status="finished")  # type: ignore[call-arg]
    with pytest.raises(AssertionError, match=r"the run finished after \['sft', 'dpo'\]"):
        recorded(events).assert_ordered()
