"""What every tracker must hold to: it gets a run's events, all of them, and is never in the way."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tunekit.cancel import CancelToken
from tunekit.errors import RunCancelled, StepError
from tunekit.events import Event, MetricLogged, RunFinished, event_to_dict
from tunekit.testing import toys
from tunekit.testing.children import call_in_child, reference
from tunekit.testing.recording import RecordingEvents
from tunekit.testing.suite import Suite, suite_session

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.session import Session

__all__ = ["TrackerSuite"]


@dataclass
class _Calls:
    """What a tracker was called with, and what it raised."""

    names: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Watched:
    """A tracker that notes its calls."""

    def __init__(self, tracker: Any, calls: _Calls) -> None:
        self.tracker = tracker
        self.calls = calls

    def on_event(self, event: Event) -> None:
        self.calls.names.append(type(event).__name__)
        self._noted(lambda: self.tracker.on_event(event))

    def close(self) -> None:
        self.calls.names.append("close")
        self._noted(self.tracker.close)

    def _noted(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.calls.errors.append(f"{self.calls.names[-1]}: {type(error).__name__}: {error}")
            raise


class TrackerSuite(Suite):
    """Tests of a tracker. Runs are made of steps that only log, so they take milliseconds::

    class TestJournal(TrackerSuite):
        name = "acme-journal/journal"
        durable = True

        @pytest.fixture
        def options(self, tmp_path):
            return {"path": str(tmp_path / "journal.jsonl")}

        def sent(self, options):
            return [json.loads(line) for line in open(options["path"])]
    """

    kind = "tracker"
    durable: ClassVar[bool] = False
    """Whether an event is safe as soon as ``on_event`` returned: a process that is killed then loses none."""
    events: ClassVar[tuple[str, ...] | None] = None
    """Class names of the events that it passes on, such as ``("MetricLogged",)``; None: all."""

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        """Options for ``track(name, **options)``: JSON types that point below ``tmp_path`` or at a test service."""
        return {}

    def sent(self, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
        """What arrived at the backend, in order, read back from there.

        One mapping per event: ``event`` (the class name), ``run_id``, and whichever other fields of the event it keeps,
        such as ``global_step`` and ``values``. None: it cannot be read back; the tests that need it are then skipped.
        """
        return None

    def break_backend(self, options: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> bool:
        """Make the backend fail for the next run: a folder that is a file, a port where nobody listens. Return True.

        False: the suite makes ``on_event`` raise in its place.
        """
        return False

    @pytest.fixture
    def session(self) -> Session:
        """Installed plugins, those of ``plugins``, and the toy steps."""
        return suite_session(self.plugins, toys)

    @pytest.fixture
    def calls(self, session: Session, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> _Calls:
        """Calls of every tracker that the session makes."""
        calls = _Calls()
        load = session.load

        def watched(component: Any) -> Any:
            made = load(component)
            return (lambda options: _Watched(made(options), calls)) if component == entry.component else made

        monkeypatch.setattr(session, "load", watched)
        return calls

    # ---------------------------------------------------------------- what arrives

    def test_every_event_arrives_once_and_in_order(
        self, session: Session, options: dict[str, Any], tmp_path: Path
    ) -> None:
        """Two steps; what the backend has equals what an observer was told."""
        seen = self._run(session, options, tmp_path / "run")
        self._same(self._sent(options), seen.events)

    def test_metric_values_are_exact(self, session: Session, options: dict[str, Any], tmp_path: Path) -> None:
        """Every logged number comes back as the very same float."""
        if self.events is not None and "MetricLogged" not in self.events:
            pytest.skip("it passes on no metrics")
        seen = self._run(session, options, tmp_path / "run")
        sent = [each for each in self._sent(options) if each.get("event") == "MetricLogged"]
        logged = seen.of(MetricLogged)
        assert len(sent) == len(logged), f"{len(logged)} times numbers were logged, {len(sent)} arrived"
        for one, event in zip(sent, logged, strict=True):
            values = one.get("values")
            assert values == dict(event.values), (
                f"step {event.global_step}: logged {dict(event.values)!r}, the backend has {values!r}. "
                "Usual mistake: numbers formatted with a few digits, or stored as float32"
            )

    @pytest.mark.parametrize("status", ["finished", "failed", "cancelled"])
    def test_it_is_closed_after_the_last_event(
        self, session: Session, options: dict[str, Any], tmp_path: Path, calls: _Calls, status: str
    ) -> None:
        """However a run ends: one ``close``, after ``RunFinished``; nothing lost, no file or thread left open."""
        threads, files = set(threading.enumerate()), _open_files(tmp_path)
        seen = self._run(session, options, tmp_path / "run", status)
        assert seen.of(RunFinished)[-1].status == status
        assert not calls.errors, (
            f"in a run that {_ENDED[status]} it raised: {'; '.join(calls.errors)}. "
            "Usual mistake: the connection is closed at StepFinished or StepFailed, and events still come"
        )
        assert calls.names == [*seen.names(), "close"], f"calls were {calls.names}"
        sent = self.sent(options)
        if sent is not None:
            self._same(
                sent, seen.events, f"a run that {_ENDED[status]}: what is buffered must be written in close(), always"
            )
        left = [thread.name for thread in threading.enumerate() if thread not in threads and not thread.daemon]
        opened = sorted(_open_files(tmp_path) - files)
        assert not left, f"close() left threads running: {', '.join(left)}; join them"
        assert not opened, f"close() left files open: {', '.join(opened)}"

    def test_closing_without_an_event(self, session: Session, entry: Entry, options: dict[str, Any]) -> None:
        """A run can fail before its first event: close() is all that is called then."""
        self._make(session, entry, options).close()

    def test_two_runs_do_not_mix(self, session: Session, entry: Entry, options: dict[str, Any], tmp_path: Path) -> None:
        """Two trackers in one process get two runs' events in turn, as when a host runs pipelines in threads."""
        plain = Path(tmp_path / "plain")
        runs = [self._events(session, plain / name) for name in ("one", "two")]
        first, second = self._make(session, entry, options), self._make(session, entry, options)
        for one, two in zip(*runs, strict=True):
            first.on_event(one)
            second.on_event(two)
        first.close()
        second.close()
        sent = self._sent(options)
        for events in runs:
            run_id = events[0].run_id
            mine = [each for each in sent if each.get("run_id") == run_id]
            self._same(
                mine,
                events,
                f"run {run_id} beside another one. Usual mistakes: a buffer or a client in the class or the module in "
                "place of the instance, or a file that is opened anew with mode 'w'; `sent` must give run_id",
            )
        assert len(sent) == sum(len(self._kept(events)) for events in runs), "entries arrived that belong to no run"

    # ---------------------------------------------------------------- what it leaves alone

    def test_events_are_not_changed(self, session: Session, options: dict[str, Any], tmp_path: Path) -> None:
        """Observers share the event objects; the run's own file, written before they are told, is what they were."""
        seen = self._run(session, options, tmp_path / "run")
        written = _lines(tmp_path / "run" / "events.jsonl")
        for event, line in zip(seen.events, written, strict=True):
            assert _plain(event) == line, (
                f"{type(event).__name__} {event.seq} was {line} and is now {_plain(event)}. "
                "Usual mistake: values.pop(...) or values[...] = ... on event.values; copy it first: dict(event.values)"
            )

    def test_a_failing_backend_does_not_stop_the_run(
        self,
        session: Session,
        entry: Entry,
        options: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The run finishes, other observers hear everything, and the failure is reported once."""
        broken = self.break_backend(options, monkeypatch)
        if not broken:
            load = session.load

            def raising(component: Any) -> Any:
                made = load(component)
                return (lambda values: _Raising(made(values))) if component == entry.component else made

            monkeypatch.setattr(session, "load", raising)
        with caplog.at_level(logging.WARNING):
            seen = self._run(session, options, tmp_path / "run")
        seen.assert_ordered()
        assert seen.of(RunFinished)[-1].status == "finished"
        reports = [record for record in caplog.records if record.name == "tunekit" and "raised" in record.getMessage()]
        assert len(reports) <= 1, f"the failure was reported {len(reports)} times; once is due"
        if not reports:
            assert broken and self._lost_some(options, seen.events), (
                "nothing failed: no failure was reported, and every event arrived. break_backend has to make the "
                "backend of this very tracker fail"
            )

    def test_nothing_is_written_elsewhere(self, session: Session, options: dict[str, Any], tmp_path: Path) -> None:
        """The current directory and the home directory stay empty."""
        here, home = tmp_path / "here", tmp_path / "home"
        here.mkdir()
        home.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(here)
            patch.setenv("HOME", str(home))
            for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
                patch.delenv(variable, raising=False)
            self._run(session, options, tmp_path / "run")
        found = [str(path.relative_to(tmp_path)) for folder in (here, home) for path in sorted(folder.rglob("*"))]
        assert not found, (
            f"it wrote {', '.join(found)}. A tracker writes where its options say, never into the current or the home "
            "directory"
        )

    # ---------------------------------------------------------------- what survives

    def test_a_killed_run_keeps_its_events(
        self, session: Session, entry: Entry, options: dict[str, Any], tmp_path: Path
    ) -> None:
        """SIGKILL in the second step: everything up to there is at the backend."""
        if not self.durable:
            pytest.skip("durable is False: what is buffered may be lost when the process is killed")
        plugins = [reference(plugin) for plugin in self.plugins]
        call_in_child(
            "track",
            {
                "plugins": plugins,
                "name": self.name,
                "options": options,
                "workdir": str(tmp_path / "run"),
                "kill_at": 3,
            },
            killed=True,
        )
        expected = [line for line in _lines(tmp_path / "run" / "events.jsonl") if self._keeps(line["event"])]
        sent = self._sent(options)
        assert len(sent) == len(expected), (
            f"{len(expected)} events had happened before the kill, {len(sent)} are at the backend. "
            "Usual mistake: lines in a buffer that is flushed at the end; flush after each, or set durable = False"
        )

    # ---------------------------------------------------------------- helpers

    def _run(
        self, session: Session, options: Mapping[str, Any], workdir: Path, status: str = "finished"
    ) -> RecordingEvents:
        """Run two toy steps with the tracker; the second ends as ``status`` says."""
        from tunekit.pipeline import Pipeline

        seen, cancel = RecordingEvents(), CancelToken()
        line = Pipeline(model="toy-model").step("toy-work", steps=3)
        line = line.step("toy-work", name="second", steps=4, fail_at=3 if status == "failed" else None)

        def observe(event: Event) -> None:
            seen(event)
            if status == "cancelled" and event.step == "second" and isinstance(event, MetricLogged):
                cancel.cancel("by the test")

        expected: Any = {"failed": StepError, "cancelled": RunCancelled}.get(status)
        with pytest.raises(expected) if expected else contextlib.nullcontext():
            line.track(self.name, **options).run(workdir, session=session, on_event=observe, cancel=cancel)
        return seen

    @staticmethod
    def _events(session: Session, workdir: Path) -> list[Event]:
        """Events of a run without the tracker."""
        from tunekit.pipeline import Pipeline

        seen = RecordingEvents()
        Pipeline(model="toy-model").step("toy-work", steps=3).run(workdir, session=session, on_event=seen)
        return seen.events

    @staticmethod
    def _make(session: Session, entry: Entry, options: Mapping[str, Any]) -> Any:
        return session.load(entry.component)(session.parse_options(entry.component, options))

    def _keeps(self, name: str) -> bool:
        return self.events is None or name in self.events

    def _kept(self, events: Sequence[Event]) -> list[Event]:
        return [event for event in events if self._keeps(type(event).__name__)]

    def _lost_some(self, options: Mapping[str, Any], events: Sequence[Event]) -> bool:
        """Whether a backend that was broken misses events, as far as it can be asked."""
        try:
            sent = self.sent(options)
        except Exception:  # noqa: BLE001  (it is broken)
            return True
        return sent is None or len(sent) < len(self._kept(events))

    def _sent(self, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        sent = self.sent(options)
        if sent is None:
            pytest.skip("override sent(options) to say what arrived at the backend")
        return sent

    def _same(self, sent: Sequence[Mapping[str, Any]], events: Sequence[Event], what: str = "") -> None:
        expected = [_plain(event) for event in self._kept(events)]
        note = f" ({what})" if what else ""
        names = [each.get("event") for each in sent]
        wanted = [each["event"] for each in expected]
        at = _differs(names, wanted)
        assert names == wanted, (
            f"{len(names)} of {len(wanted)} events arrived; at {at} happened {wanted[at : at + 3] or 'nothing more'}, "
            f"arrived {names[at : at + 3] or 'nothing more'}{note}. Usual mistakes: only events that were foreseen are "
            "passed on, the last one waits for a flush, or the connection was closed before RunFinished"
        )
        for one, event in zip(sent, expected, strict=True):
            changed = {key: (value, event[key]) for key, value in one.items() if key in event and value != event[key]}
            assert not changed, f"event {event['seq']} {event['event']} arrived with other values: {changed}{note}"


class _Raising:
    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker

    def on_event(self, event: Event) -> None:
        raise ConnectionError("the backend is away")

    def close(self) -> None:
        self.tracker.close()


_ENDED = {"finished": "finished", "failed": "failed", "cancelled": "was cancelled"}


def _differs(one: Sequence[Any], two: Sequence[Any]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _plain(event: Event) -> dict[str, Any]:
    """The event as it comes back from JSON."""
    found: dict[str, Any] = json.loads(json.dumps(event_to_dict(event), default=str))
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def _open_files(folder: Path) -> set[str]:
    """Files below ``folder`` that this process has open, where the system tells."""
    found: set[str] = set()
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        return found
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith(f"{folder.resolve()}{os.sep}"):
                found.add(target)
    return found
