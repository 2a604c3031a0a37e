"""What a step is given besides its rows: held-out rows, further data, a cache folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import data_plugin
import pytest
import toy_plugin

from tunekit._step_data import open_step
from tunekit._stream import History, read_metrics
from tunekit.errors import CheckFailed, DataError
from tunekit.events import Notice
from tunekit.pipeline import Pipeline
from tunekit.plugins import Options
from tunekit.session import Session

ROWS = [{"text": f"line number {number}"} for number in range(40)]


@pytest.fixture
def session() -> Session:
    data_plugin.RUNS.clear()
    return Session(plugins=[data_plugin], autoload=False)


@pytest.fixture
def base(tmp_path: Path) -> str:
    toy_plugin.write_model(tmp_path / "base", 1.0)
    return str(tmp_path / "base")


def seen(folder: Path, step: str = "01-sft") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / step / "seen.json").read_text())
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(rows: list[dict[str, Any]]) -> set[str]:
    return {row["text"] for row in rows}


@pytest.mark.parametrize(("validation", "held"), [(0.1, 4), (7, 7), (0.01, 1)])
def test_a_share_or_a_number_of_rows_is_held_out(
    session: Session, base: str, tmp_path: Path, validation: float | int, held: int
) -> None:
    Pipeline(model=base).sft(data=ROWS, validation=validation).run(workdir=tmp_path / "w", session=session)
    found = seen(tmp_path / "w")
    assert len(found["validation"]) == held
    assert len(found["train"]) == 40 - held
    assert texts(found["train"]) | texts(found["validation"]) == texts(ROWS)
    facts = json.loads((tmp_path / "w" / "manifest.json").read_text())["data"]["sft"]
    assert (facts["rows"], facts["validation"]["rows"]) == (40 - held, held)
    assert facts["fingerprint"] != facts["validation"]["fingerprint"]


@pytest.mark.parametrize("kind", ["path", "rows", "object"])
def test_validation_data_of_its_own_are_held_out_and_not_trained_on(
    session: Session, base: str, tmp_path: Path, kind: str
) -> None:
    """T33/T36: what is measured on was never trained on, and what was left out for it is said."""
    own = [{"text": "line  number 3"}, {"text": "something new"}]
    value: Any = own
    if kind == "path":
        value = write_rows(tmp_path / "held.jsonl", own)
    elif kind == "object":
        value = iter(own)
    told: list[Any] = []
    pipeline = Pipeline(model=base).sft(data=ROWS, validation=value)
    pipeline.run(workdir=tmp_path / "w", session=session, on_event=told.append)
    found = seen(tmp_path / "w")
    assert found["validation"] == own
    assert found["train"] == [row for row in ROWS if row["text"] != "line number 3"]
    assert [
        event.message for event in told if isinstance(event, Notice) and event.code == "left-out-held-out-copy"
    ] == ["left out of list: 1 row with the text of a held-out row (row 4: held out 1)"]


def test_further_data_arrive_under_their_name(session: Session, base: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "replay.jsonl", ROWS[:5])
    Pipeline(model=base).sft(data=ROWS, replay_data=path, replay_limit=3).run(workdir=tmp_path / "w", session=session)
    assert seen(tmp_path / "w")["further"] == {"replay_data": ROWS[:3]}
    facts = json.loads((tmp_path / "w" / "manifest.json").read_text())["data"]["sft"]
    assert facts["further_data"]["replay_data"]["rows"] == 3


def test_a_step_runs_again_when_other_data_changed_and_only_then(session: Session, base: str, tmp_path: Path) -> None:
    """The content counts, not the place: a renamed file with the same rows is the same data."""
    held, replay = tmp_path / "held.jsonl", tmp_path / "replay.jsonl"

    def run(held: Path, replay: Path) -> int:
        pipeline = Pipeline(model=base).sft(data=ROWS, validation=str(held), replay_data=str(replay))
        pipeline.run(workdir=tmp_path / "w", session=session)
        return len(data_plugin.RUNS)

    write_rows(held, [{"text": "held"}])
    write_rows(replay, [{"text": "replay"}])
    assert run(held, replay) == 1
    moved = tmp_path / "moved.jsonl"
    shutil.copy(held, moved)
    assert run(moved, replay) == 1, "the same rows under another name"
    write_rows(replay, [{"text": "other"}])
    assert run(moved, replay) == 2
    write_rows(moved, [{"text": "other"}])
    assert run(moved, replay) == 3


def test_an_object_in_memory_counts_by_its_rows(session: Session, base: str, tmp_path: Path) -> None:
    """A reference to an object holds its address, which is another one in every process."""
    for _ in range(2):
        replay, held = iter([{"text": "replay"}]), iter([{"text": "held"}])
        pipeline = Pipeline(model=base).sft(data=ROWS, validation=held, replay_data=replay)
        pipeline.run(workdir=tmp_path / "w", session=session)
    assert data_plugin.RUNS == ["sft"]


def test_the_cache_is_kept_apart_from_results(session: Session, base: str, tmp_path: Path) -> None:
    Pipeline(model=base).sft(data=ROWS).run(workdir=tmp_path / "w", session=session)
    assert (tmp_path / "w" / "cache" / "sft.txt").read_text() == "derived"
    shutil.rmtree(tmp_path / "w" / "cache")
    Pipeline(model=base).sft(data=ROWS).run(workdir=tmp_path / "w", session=session)
    assert data_plugin.RUNS == ["sft"], "a result needs no cache"


def test_a_killed_step_continues_with_the_same_split(base: str, tmp_path: Path) -> None:
    """T33: after SIGKILL the rows, their order and the held-out ones are those of before; the trainer compares."""
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    code = (
        "import data_plugin\nfrom tunekit.pipeline import Pipeline\nfrom tunekit.session import Session\n"
        f"pipeline = Pipeline(model={base!r}).sft(data={path!r}, shuffle=True, validation=0.2)\n"
        "session = Session(plugins=[data_plugin], autoload=False)\n"
        f"pipeline.run(workdir={str(tmp_path / 'w')!r}, session=session, seed=3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(data_plugin.__file__).parent)}
    killed = subprocess.run([sys.executable, "-c", code], env={**environment, "WATCH_DIE": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    [before] = (tmp_path / "w" / ".partial").glob("*/checkpoints/seen.json")
    rows = json.loads(before.read_text())
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert seen(tmp_path / "w") == rows
    assert len(rows["validation"]) == 8


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"validation": "missing.jsonl"}, "missing-file", "Option 'validation': There is no data file missing.jsonl"),
        ({"replay_data": "missing.jsonl"}, "missing-file", "Option 'replay_data': There is no data file missing.jsonl"),
        ({"replay_data": [{"text": 3}]}, "bad-row", "Option 'replay_data': list row 1: field 'text' is a number"),
        ({"validation": [{"prompt": "a", "chosen": "b", "rejected": "c"}]}, "wrong-shape", "Option 'validation': "),
        ({"validation": 40}, "nothing-left", "nothing is left to train on when 40 of 40 rows are held out"),
        ({"validation": 10, "limit": 10}, "nothing-left", "when 10 of 10 rows are held out"),
        ({"validation": 1.0}, "option-value", "a share of the rows is above 0 and below 1"),
        ({"validation": 0}, "option-value", "a number of rows is at least 1"),
        ({"validation": True}, "option-value", "data of its own"),
        ({"keep_best": True}, "option-value", "validation is not given"),
        ({"validate_every": 5, "early_stopping": 2}, "option-value", "validate_every and early_stopping measure on"),
    ],
)
def test_check_names_the_step_and_the_option(
    session: Session, base: str, options: dict[str, Any], code: str, says: str
) -> None:
    findings = [f for f in Pipeline(model=base).sft(data=ROWS, **options).check(session=session) if f.level == "error"]
    assert [(finding.step, finding.code) for finding in findings] == [("sft", code)]
    assert says in findings[0].message
    assert findings[0].fix or findings[0].details.get("suggestions")


@pytest.mark.parametrize("validation", [40, 400, 0.999])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(
    session: Session, base: str, tmp_path: Path, validation: float | int
) -> None:
    with pytest.raises((DataError, CheckFailed), match="nothing is left to train on"):
        Pipeline(model=base).sft(data=ROWS, validation=validation).run(workdir=tmp_path / "w", session=session)
    assert not data_plugin.RUNS


def test_explain_says_which_rows_are_used(session: Session, base: str) -> None:
    """In the order in which it is decided; the address of an object in memory is not shown."""

    pipeline = Pipeline(model=base)
    lines = (
        pipeline.sft(data="a.jsonl", shuffle=True, dedupe="near", decontaminate=True, validation=0.1, limit=50),
        pipeline.sft(data="a.jsonl", validation=500),
        pipeline.sft(data="a.jsonl", validation=iter([{"text": "x"}])),
    )
    shown = [text.explain(session=session) for text in lines]
    assert (
        "a.jsonl, copies and near-copies left out, benchmark text left out, shuffled, 10% held out  limit=50"
        in shown[0]
    )
    assert "a.jsonl, 500 rows held out" in shown[1]
    assert "a.jsonl, held out: list_iterator in memory" in shown[2]


class OwnOptions(Options):
    """A component's own options that happen to be called like those of the core."""

    data: Any = None
    shuffle: bool = True
    validation: str = "strict"
    dedupe: str = "by-id"


def test_options_of_a_components_own_are_left_to_it() -> None:
    made = open_step(ROWS, None, OwnOptions(), seed=0, session=Session(plugins=[], autoload=False))
    assert made.data is not None
    assert list(made.data.rows()) == ROWS
    assert made.validation is None


def test_the_history_keeps_training_and_validation_loss_of_one_step(tmp_path: Path) -> None:
    """T33: entries of steps that run again are replaced, those of the same step in the same run are not."""
    path = tmp_path / "metrics.jsonl"
    history = History(path)
    for step in (1, 2):
        history.record(step, {"loss": float(step)})
    history.record(2, {"eval_loss": 5.0})
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 5.0}]
    resumed = History(path)
    resumed.record(2, {"loss": 3.0})
    resumed.record(2, {"eval_loss": 4.0})
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0}, {"step": 2, "eval_loss": 4.0}]


def test_check_refuses_validation_data_of_a_shape_that_the_run_refuses(base: str) -> None:
    """The run brings validation rows to the shape of the training rows, which plain text cannot take."""
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(4)]
    session = Session()
    found = Pipeline(model=base).sft(data=rows, validation=[{"text": "a"}]).check(session=session)
    assert "wrong-shape" in [finding.code for finding in found if finding.level == "error"]
    fine = Pipeline(model=base).sft(data=rows, validation=rows[:1]).check(session=session)
    assert "wrong-shape" not in [finding.code for finding in fine]


def test_rankings_of_ties_are_counted_and_listed() -> None:
    from types import SimpleNamespace

    from tunekit.plugins.options import DataOptions

    rows = [{"prompt": f"q{n}", "completions": ["a", "b"], "ranks": [0, n % 2]} for n in range(6)]
    for options in (DataOptions(), DataOptions(shuffle=True)):
        told: list[tuple[str, str]] = []
        spec = SimpleNamespace(data=("preference",))
        told_to = told.append
        read = open_step(rows, spec, options, seed=0, session=Session(), notify=lambda *said, to=told_to: to(said))
        assert [out.facts() for out in read.left_out] == [
            {"reason": "undecided", "rows": 3, "examples": [{"row": 1}, {"row": 3}, {"row": 5}]}
        ]
        assert [code for code, _ in told] == ["left-out-undecided"] and "3 rows without a verdict" in told[0][1]
