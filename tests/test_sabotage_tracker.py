"""TrackerSuite passes an honest tracker, and each seeded bug fails the test that is there for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sabotage_runner import run_suites

from tunekit.testing import TrackerSuite

BUGS = [
    (
        "DropsTheLast",
        "test_every_event_arrives_once_and_in_order",
        "26 of 27 events arrived; at 26 happened ['RunFinished']",
    ),
    (
        "OneBehind",
        "test_every_event_arrives_once_and_in_order",
        "26 of 27 events arrived; at 26 happened ['RunFinished']",
    ),
    ("SharedBuffer", "test_two_runs_do_not_mix", "a buffer or a client in the class"),
    ("Overwrites", "test_two_runs_do_not_mix", "opened anew"),
    ("ClosesEarly", "test_it_is_closed_after_the_last_event", "the connection is closed at StepFinished"),
    ("ConfiguresLogging", "test_closing_without_an_event", "logging root level"),
    ("LosesOnFailure", "test_it_is_closed_after_the_last_event", "what is buffered must be written in close"),
    ("Buffers", "test_a_killed_run_keeps_its_events", "0 are at the backend"),
    ("Rounds", "test_metric_values_are_exact", "numbers formatted with a few digits"),
    ("ChangesEvents", "test_events_are_not_changed", "copy it first"),
    ("LeavesOpen", "test_it_is_closed_after_the_last_event", "close() left files open"),
    ("WritesHere", "test_nothing_is_written_elsewhere", "here/journal.log"),
]

SOURCE = """
import json
from pathlib import Path

import pytest

from tunekit.testing import TrackerSuite


class Base(TrackerSuite):
    plugins = ("sabotage_trackers",)
    durable = True

    @pytest.fixture
    def options(self, tmp_path):
        return {"path": str(tmp_path / "journal.jsonl")}

    def sent(self, options):
        return [json.loads(line) for line in Path(options["path"]).read_text("utf-8").splitlines()]

"""


class TestJournal(TrackerSuite):
    name = "inline/journal"
    plugins = ("sabotage_trackers",)
    durable = True

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": str(tmp_path / "journal.jsonl")}

    def sent(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(options["path"]).read_text("utf-8").splitlines()]


class TestJournalThatFails(TestJournal):
    """The same with a backend that really breaks: the file is closed under it."""

    def break_backend(self, options: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> bool:
        import sabotage_trackers

        monkeypatch.setattr(sabotage_trackers.Journal, "on_event", lambda self, event: self.stream.detach().fileno())
        return True


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    classes = "\n".join(f"class Test{bug}(Base):\n    name = {bug.lower()!r}\n" for bug, _, _ in BUGS)
    wanted = [f"Test{bug}::{test}" for bug, test, _ in BUGS]
    return run_suites(tmp_path_factory.mktemp("trackers"), SOURCE + classes, wanted)


@pytest.mark.parametrize(("bug", "test", "said"), BUGS)
def test_the_bug_is_caught(outcomes: dict[tuple[str, str], str], bug: str, test: str, said: str) -> None:
    outcome = outcomes[f"Test{bug}", test]
    assert outcome not in ("passed", "skipped"), f"{test} did not notice {bug}"
    assert said in outcome, outcome
