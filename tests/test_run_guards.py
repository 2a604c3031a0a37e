"""Observers, trackers, hooks and components that fail: each stays where it is, and the run says so once."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_plugin

from tunekit import plugins, storage
from tunekit._stream import EventStream
from tunekit.cancel import CancelToken
from tunekit.errors import DataError, PluginError, RunCancelled, StepError, TunekitError, WorkdirLockedError
from tunekit.events import CheckpointSaved, Event, MetricLogged, Notice, StepStarted
from tunekit.pipeline import Pipeline
from tunekit.plugins import TrackerSpec, hookimpl
from tunekit.session import Session

TEXT = [{"text": "one two three"}, {"text": "four"}]


@pytest.fixture
def session() -> Session:
    return Session(plugins=[toy_plugin], autoload=False)


@pytest.fixture(autouse=True)
def _counters() -> Iterator[None]:
    toy_plugin.RUNS.clear()
    toy_plugin.ToyTracker.EVENTS.clear()
    toy_plugin.ToyTracker.CLOSED.clear()
    yield


class Watching:
    """A plugin whose observer raises, and that counts how often it was asked."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    @hookimpl
    def tunekit_event(self, event: Event) -> None:
        self.calls += 1
        raise self.error


FAILURES = [RuntimeError("trouble"), StepError("trouble"), SystemExit(3)]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_an_observer_that_raises_is_reported_once(
    session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    calls: list[Event] = []
    seen: list[Event] = []

    def bad(event: Event) -> None:
        calls.append(event)
        raise error

    handle = Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=session, on_event=bad)
    logged = (tmp_path / "w" / "events.jsonl").read_text().splitlines()
    assert handle.status == "finished" and len(calls) == len(logged) > 10
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "bad" in record.getMessage() and record.exc_info is not None and record.exc_info[1] is error

    both = EventStream("r", tmp_path / "events.jsonl", [bad, seen.append])
    both.emit(Notice, code="a", message="b")
    assert len(seen) == 1, "those after it are told"


class HostStop(BaseException):
    """Such as what pytest.fail raises: meant for the host."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), HostStop()], ids=repr)
def test_what_is_meant_for_the_host_passes_an_observer(session: Session, tmp_path: Path, error: BaseException) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, MetricLogged):
            raise error

    with pytest.raises(type(error)):
        Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=session, on_event=stop)
    assert json.loads((tmp_path / "w" / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_a_hook_observer_that_raises_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    watching = Watching(error)
    after: list[Event] = []

    class After:
        @hookimpl(trylast=True)
        def tunekit_event(self, event: Event) -> None:
            after.append(event)

    one = Session(plugins=[toy_plugin, watching, After()], autoload=False)
    result = Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=one)
    assert result.status == "finished"
    assert watching.calls == len(after) == len((tmp_path / "w" / "events.jsonl").read_text().splitlines())
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Watching (inline) failed in tunekit_event" in record.getMessage()


@pytest.mark.parametrize("fails", ["event", "close", "exit-event", "exit-close"])
def test_a_tracker_that_raises_is_reported_once(
    session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    options = {"raises": True} if fails == "event" else {"fails": fails}
    pipeline = Pipeline().pretrain(data=TEXT).track("toy", **options).track("toy")
    result = pipeline.run(workdir=tmp_path / "w", session=session)
    assert result.status == "finished"
    count = len((tmp_path / "w" / "events.jsonl").read_text().splitlines())
    assert len(toy_plugin.ToyTracker.EVENTS) == 2 * count
    assert toy_plugin.ToyTracker.CLOSED == [True, True]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert ("failed to close" if "close" in fails else "the run goes on") in record.getMessage()


@pytest.mark.parametrize("fails", ["start", "exit-start"])
def test_a_tracker_that_cannot_start_is_named_before_anything_runs(
    session: Session, tmp_path: Path, fails: str
) -> None:
    seen: list[Event] = []
    pipeline = Pipeline().pretrain(data=TEXT).track("toy").track("toy", fails=fails)
    with pytest.raises(PluginError, match="The tracker inline/toy cannot be started") as caught:
        pipeline.run(workdir=tmp_path / "w", session=session, on_event=seen.append)
    assert ("no network at start" if fails == "start" else "SystemExit: 3") in caught.value.found
    assert caught.value.details["tracker"] == "inline/toy" and "_fail" in caught.value.details["traceback"]
    assert toy_plugin.RUNS == [] and seen == [] and not (tmp_path / "w" / "events.jsonl").exists()
    assert toy_plugin.ToyTracker.CLOSED == [True], "the one that had been started is closed"
    assert Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=session).status == "finished"


def test_what_is_no_tracker_is_said_so(tmp_path: Path) -> None:
    class Odd:
        @hookimpl
        def tunekit_trackers(self) -> list[TrackerSpec]:
            return [TrackerSpec(name="odd", target="toy_plugin:ToySource", options="toy_plugin:TrackerOptions")]

    one = Session(plugins=[toy_plugin, Odd()], autoload=False)
    with pytest.raises(PluginError, match="inline/odd is not a tracker"):
        Pipeline().pretrain(data=TEXT).track("odd").run(workdir=tmp_path / "w", session=one)
    assert toy_plugin.RUNS == []


@pytest.mark.parametrize("outcome", ["finished", "failed", "cancelled", "bad data", "interrupted", "locked"])
def test_trackers_are_closed_in_every_outcome(session: Session, tmp_path: Path, outcome: str) -> None:
    token = CancelToken()

    def interrupt(event: Event) -> None:
        if outcome == "interrupted" and isinstance(event, StepStarted):
            raise KeyboardInterrupt
        if outcome == "cancelled" and isinstance(event, CheckpointSaved):
            token.cancel()

    data: Any = TEXT
    if outcome == "bad data":
        data = str(tmp_path / "bad.jsonl")
        (tmp_path / "bad.jsonl").write_text("\n".join(['{"text": "a"}'] * 3000 + ['{"text": null}']) + "\n")
    options = {"fail_at": 2} if outcome == "failed" else {}
    pipeline = Pipeline().pretrain(data=data, **options).track("toy").track("toy")
    expected: dict[str, type[BaseException]] = {
        "failed": StepError, "cancelled": RunCancelled, "bad data": DataError, "interrupted": KeyboardInterrupt,
        "locked": WorkdirLockedError,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        if outcome == "locked":
            stack.enter_context(storage.lock_workdir(tmp_path / "w", {"run_id": "other"}))
        if outcome in expected:
            stack.enter_context(pytest.raises(expected[outcome]))
        pipeline.run(workdir=tmp_path / "w", session=session, on_event=interrupt, cancel=token)
    if outcome == "locked":
        assert toy_plugin.ToyTracker.EVENTS == toy_plugin.ToyTracker.CLOSED == [], "none is started too early"
    else:
        assert toy_plugin.ToyTracker.CLOSED == [True, True]
        assert toy_plugin.ToyTracker.EVENTS[-1] == "RunFinished"


def test_an_interrupt_passes_and_still_closes_every_tracker(session: Session, tmp_path: Path) -> None:
    pipeline = Pipeline().pretrain(data=TEXT).track("toy").track("toy", fails="interrupt-close").track("toy")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.ToyTracker.CLOSED == [True, True, True]


def test_a_component_that_exits_fails_its_step(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_plugin.write_model(tmp_path / "base", 3.0)
    monkeypatch.setattr(toy_plugin.ToyCrash, "run", lambda self, ctx: sys.exit(3))
    with pytest.raises(StepError, match="SystemExit: 3"):
        Pipeline(model=tmp_path / "base").sft(method="crash", data=TEXT).run(workdir=tmp_path / "w", session=session)


@plugins.benchmark(name="broken-bench", sample=True)
class BrokenBenchmark(toy_plugin.ToyBench):
    def __init__(self) -> None:
        raise ZeroDivisionError("one over nothing")


@plugins.adapter(name="broken-adapter")
class BrokenAdapter:
    def __init__(self, options: Any) -> None:
        raise ZeroDivisionError("one over nothing")

    attach = save = merge = detached = lambda self, *arguments, **options: None


@plugins.model(name="broken-model")
def broken_model() -> Any:
    raise SystemExit(3)


@plugins.dataset(name="broken-data", schema="text")
def broken_data() -> Any:
    raise ZeroDivisionError("one over nothing")


BROKEN = [
    (BrokenBenchmark, lambda p, text: p.pretrain(text).evaluate(["broken-bench"])),
    (BrokenAdapter, lambda p, text: p.pretrain(text).sft(text, adapter="broken-adapter")),
    (broken_data, lambda p, text: p.pretrain("inline/broken-data")),
]


@pytest.mark.parametrize("plugin,build", BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_component_that_cannot_be_made_is_named(plugin: Any, build: Any, tmp_path: Path) -> None:
    session = Session(plugins=[toy_plugin, plugin], autoload=False)
    with pytest.raises(TunekitError) as caught:
        build(Pipeline(session=session), TEXT).run(tmp_path)
    assert "inline/broken-" in str(caught.value) and "ZeroDivisionError: one over nothing" in str(caught.value)
    if isinstance(caught.value, PluginError):
        assert caught.value.code == "component-failed" and "one over nothing" in caught.value.details["traceback"]


def test_a_model_that_ends_the_program_is_a_finding() -> None:
    session = Session(plugins=[toy_plugin, broken_model], autoload=False)
    findings = Pipeline("broken-model", session=session).sft(TEXT).check()
    assert [finding.code for finding in findings if finding.level == "error"] == ["component-failed"]
