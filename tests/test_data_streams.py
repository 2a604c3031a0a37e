"""Data that are not read to their end before training: large files, and streams that have no end."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data_plugin
import pytest
import toy_plugin

from tunekit.data import load_dataset, select, streams
from tunekit.data.dedupe import Exact
from tunekit.data.streams import Streamed, stream
from tunekit.errors import DataError
from tunekit.events import Notice
from tunekit.pipeline import Pipeline
from tunekit.session import Session

HEAD = 10_000
"""Rows of a large file that are read before training."""


@pytest.fixture
def session() -> Session:
    data_plugin.RUNS.clear()
    return Session(plugins=[data_plugin], autoload=False)


@pytest.fixture
def base(tmp_path: Path) -> str:
    toy_plugin.write_model(tmp_path / "base", 1.0)
    return str(tmp_path / "base")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """10,100 rows that count as large; row 10,050 is no row."""
    monkeypatch.setattr(select, "LARGE_BYTES", 1000)
    path = tmp_path / "large.jsonl"
    lines = [json.dumps({"text": f"row {number}"}) for number in range(1, HEAD + 101)]
    lines[HEAD + 49] = '{"text": 3}'
    path.write_text("\n".join(lines))
    return path


def numbers() -> Iterator[dict[str, Any]]:
    return ({"text": f"row {number}"} for number in itertools.count())


def notices(told: list[Any], code: str) -> list[str]:
    return [event.message for event in told if isinstance(event, Notice) and event.code == code]


def test_a_large_file_is_not_read_to_its_end(session: Session, base: str, tmp_path: Path, large: Path) -> None:
    """The bad row behind the first ones is met by nobody: not by check, the key, the manifest or the report."""
    pipeline = Pipeline(model=base).sft(data=str(large), take=20)
    assert [finding for finding in pipeline.check(session=session) if finding.level == "error"] == []
    result = pipeline.run(workdir=tmp_path / "w", session=session)
    facts = json.loads((tmp_path / "w" / "manifest.json").read_text())["data"]["sft"]
    assert (facts["rows"], facts["bad_rows"]) == (None, [])
    assert (tmp_path / "w" / "report.html").exists()
    assert result.step("sft").artifact.fingerprint


def test_its_rows_are_checked_while_they_are_read(session: Session, base: str, tmp_path: Path, large: Path) -> None:
    with pytest.raises(DataError, match=r"large.jsonl row 10050: field 'text' is a number") as caught:
        Pipeline(model=base).sft(data=str(large)).run(workdir=tmp_path / "w", session=session)
    details = caught.value.details
    assert (details["row"], details["field"], details["step"]) == (10050, "text", "sft")


def test_bad_rows_met_on_the_way_are_said_afterwards(session: Session, base: str, tmp_path: Path, large: Path) -> None:
    """T36: on_bad_row="skip" leaves nothing out silently, also where rows are only counted as they are read."""
    for take, said in ((20, 0), (HEAD + 60, 1)):
        told: list[Any] = []
        pipeline = Pipeline(model=base).sft(data=str(large), on_bad_row="skip", take=take)
        pipeline.run(workdir=tmp_path / "w", session=session, on_event=told.append)
        assert len(notices(told, "bad-rows")) == said
    assert "row 10050: field 'text' is a number" in notices(told, "bad-rows")[0]
    facts = json.loads((tmp_path / "w" / "manifest.json").read_text())["data"]["sft"]
    assert [row for row, _ in facts["bad_rows"]] == [10050]


def test_copies_of_own_validation_rows_are_left_out_as_they_come(
    session: Session, base: str, tmp_path: Path, large: Path
) -> None:
    told: list[Any] = []
    pipeline = Pipeline(model=base).sft(data=str(large), validation=[{"text": "row  2"}], take=5)
    pipeline.run(workdir=tmp_path / "w", session=session, on_event=told.append)
    seen = json.loads((tmp_path / "w" / "01-sft" / "seen.json").read_text())
    assert [row["text"] for row in seen["train"]] == ["row 1", "row 3", "row 4", "row 5", "row 6"]
    assert notices(told, "left-out-held-out-copy") == [
        "left out of large.jsonl: 1 row with the text of a held-out row (row 2: held out 1)"
    ]


def test_a_stream_without_an_end_can_be_trained_on(
    session: Session, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAM_ROWS", 500)
    monkeypatch.setattr(streams, "BUFFER", 50)
    told: list[Any] = []
    for _ in range(2):
        pipeline = Pipeline(model=base).sft(data=numbers(), shuffle=True, dedupe="exact", validation=10, take=300)
        pipeline.run(workdir=tmp_path / "w", session=session, on_event=told.append)
    assert data_plugin.RUNS == ["sft"], "equal first rows, equal stream"
    seen = json.loads((tmp_path / "w" / "01-sft" / "seen.json").read_text())
    train, held = ({row["text"] for row in seen[side]} for side in ("train", "validation"))
    assert (len(train), len(held), len(train & held)) == (300, 10, 0)
    assert seen["train"][0]["text"] != "row 0"
    [said, _] = notices(told, "stream")
    assert "goes on after 500" in said and "within a buffer of 50" in said


def test_a_generator_that_ends_is_a_data_set_like_any_other() -> None:
    assert not streams.is_endless(load_dataset(iter([{"text": "a"}, {"text": "b"}])))


def test_a_buffered_shuffle_gives_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BUFFER", 20)
    data = load_dataset([{"text": str(number % 90)} for number in range(100)])
    made, again, other = (
        [row["text"] for row in Streamed(data, lambda: [Exact()], shuffle=True, seed=seed).rows()] for seed in (1, 1, 2)
    )
    assert made == again != other
    assert Counter(made) == Counter(str(number) for number in range(90))
    assert all(int(text) < place + 20 + 1 for place, text in enumerate(made)), "no row comes before it was read"
    streamed = Streamed(data, lambda: [Exact()], shuffle=True)
    assert [len(list(streamed.rows())) for _ in range(2)] == [90, 90], "every pass begins anew"
    assert [(out.reason, out.rows) for out in streamed.left_out] == [("duplicate", 10)]


def test_a_share_of_a_stream_needs_a_limit() -> None:
    data = load_dataset(numbers())
    with pytest.raises(DataError, match="no known end"):
        stream(data, validation=0.1)
    train, held = stream(data, validation=0.1, limit=50)
    assert held is not None
    assert (len(held), len(train)) == (5, 45)
    with pytest.raises(DataError, match="nothing is left to train on"):
        stream(data, validation=50, limit=50)


def test_a_preview_of_a_large_file_reads_a_few_rows(session: Session, base: str, large: Path) -> None:
    """Which rows are held out is not known without a pass over all; the preview says so. With a limit it is."""
    view = Pipeline(model=base, session=session).sft(data=str(large), validation=0.1, dedupe="exact").preview(n=2)
    assert [row.target for row in view.rows] == ["row 1", "row 2"]
    [note] = [note for note in view.notes if "too large" in note]
    assert note.endswith("before dedupe, validation.")
    limited = Pipeline(model=base, session=session).sft(data=str(large), validation=0.5, limit=10).preview(n=10)
    assert len(limited.rows) == 5 and not [note for note in limited.notes if "too large" in note]
