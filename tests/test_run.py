"""Running: work folder, reuse, resume, isolation. With a plugin whose weights are one number: it takes no time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_plugin
import yaml

from tunekit import storage
from tunekit._stream import EventStream, History, read_metrics
from tunekit.cancel import CancelToken
from tunekit.errors import (
    ArtifactError,
    CheckFailed,
    DataError,
    PipelineError,
    RunCancelled,
    StepError,
    WorkdirLockedError,
)
from tunekit.events import (
    ArtifactWritten,
    CheckpointSaved,
    Event,
    MetricLogged,
    Notice,
    RunFinished,
    RunStarted,
    StepFailed,
    StepFinished,
    StepStarted,
)
from tunekit.pipeline import Pipeline
from tunekit.session import Session

TEXT = [{"text": "one two three"}, {"text": "four"}]
PAIRS = [{"prompt": "a", "chosen": "good", "rejected": "bad"}]


@pytest.fixture
def session() -> Session:
    return Session(plugins=[toy_plugin], autoload=False)


@pytest.fixture(autouse=True)
def _counters() -> Iterator[None]:
    toy_plugin.LOADS.clear()
    toy_plugin.RUNS.clear()
    toy_plugin.ToyTracker.EVENTS.clear()
    toy_plugin.ToyTracker.CLOSED.clear()
    yield


def chain(**evaluate: Any) -> Pipeline:
    return (
        Pipeline()
        .pretrain(data=TEXT)
        .sft(data=TEXT)
        .align(method="dpo", data=PAIRS)
        .quantize("int4")
        .evaluate(["toybench"], **evaluate)
    )


def base_model(folder: Path, value: float = 3.0) -> str:
    toy_plugin.write_model(folder, value)
    return str(folder)


def test_a_report_that_fails_is_a_notice_and_no_end_of_the_run(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("tunekit.report.render_report", broken)
    seen: list[Event] = []
    result = Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=session, on_event=seen.append)
    assert result.status == "finished" and result.model is not None
    (notice,) = [event for event in seen if isinstance(event, Notice) and event.code == "report-failed"]
    assert "IndexError: list index out of range" in notice.message
    assert notice.message in result.notices
    manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and notice.message in manifest["notices"]
    assert any(record.exc_info and record.exc_info[0] is IndexError for record in caplog.records)


def test_a_run_leaves_the_documented_files(session: Session, tmp_path: Path) -> None:
    seen: list[Event] = []
    result = chain().run(workdir=tmp_path / "w", session=session, on_event=seen.append, seed=5)

    assert [step.name for step in result.steps] == ["pretrain", "sft", "align", "quantize", "evaluate"]
    names = {path.name for path in (tmp_path / "w").iterdir()}
    assert names >= {
        "plan.yaml", "plan.lock.yaml", "manifest.json", "events.jsonl", "report.html",
        "01-pretrain", "02-sft", "03-align", "04-quantize", "05-evaluate",
    }  # fmt: skip
    assert not (tmp_path / "w" / ".partial").exists()
    for name in ("options.json", "result.json", "metrics.jsonl", "checkpoints", "model"):
        assert (tmp_path / "w" / "02-sft" / name).exists(), name

    manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["seed"] == 5
    assert manifest["data"]["sft"]["rows"] == 2
    assert manifest["packages"]["pluggy"]
    assert manifest["steps"]["sft"]["model"]["weights_hash"] == result.step("sft").artifact.model.weights_hash
    assert yaml.safe_load((tmp_path / "w" / "plan.lock.yaml").read_text())["steps"][1]["component"]["name"] == "sft"

    logged = [json.loads(line) for line in (tmp_path / "w" / "events.jsonl").read_text().splitlines()]
    assert [event["seq"] for event in logged] == list(range(len(logged))) == [event.seq for event in seen]
    kinds = [type(event) for event in seen if event.step in (None, "sft") and not isinstance(event, Notice)]
    assert kinds[0] is RunStarted and kinds[-1] is RunFinished
    order = [
        kind for kind in kinds if kind in (StepStarted, MetricLogged, CheckpointSaved, ArtifactWritten, StepFinished)
    ]
    assert order == [StepStarted, *[MetricLogged, CheckpointSaved] * 4, ArtifactWritten, StepFinished]

    history = result.step("sft").history
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    losses = [entry["loss"] for entry in history]
    assert losses == sorted(losses, reverse=True)
    score = result.scores["toybench"]
    assert score.weights_hash == result.step("quantize").artifact.model.weights_hash
    assert score.rows[0].id == "0"
    assert result.step("quantize").artifact.details["calibration"]


def test_models_stay_in_memory_between_steps(session: Session, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    pipeline = Pipeline(model=base).sft(data=TEXT).sft(data=TEXT).align(method="dpo", data=PAIRS).evaluate(["toybench"])
    pipeline.run(workdir=tmp_path / "w", session=session)
    assert [base] == toy_plugin.LOADS, "the base is read once, and no step reads what the one before it wrote"


def test_what_another_process_wrote_is_read_once(session: Session, tmp_path: Path) -> None:
    pipeline = Pipeline().pretrain(data=TEXT).quantize("int4").evaluate(["toybench"]).evaluate(["otherbench"])
    pipeline.run(workdir=tmp_path / "w", session=session)
    assert [str(tmp_path / "w" / "02-quantize" / "model")] * 1 == toy_plugin.LOADS


def test_a_branch_starts_from_the_weights_that_were_written(session: Session, tmp_path: Path) -> None:
    """A step that trains takes the model out of memory, so a second branch cannot see weights that were changed."""
    base = base_model(tmp_path / "base")
    forked = (
        Pipeline(model=base)
        .sft(data=TEXT, steps=1)
        .sft(data=TEXT, steps=3, name="left")
        .sft(data=TEXT, steps=3, input="sft", name="right")
    )
    result = forked.run(workdir=tmp_path / "w", session=session)
    assert result.step("left").artifact.model.weights_hash == result.step("right").artifact.model.weights_hash


def test_running_again_reuses_everything(session: Session, tmp_path: Path) -> None:
    first = chain().run(workdir=tmp_path / "w", session=session)
    toy_plugin.RUNS.clear()
    second = chain().run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == []
    assert all(step.reused for step in second.steps)
    assert second.scores["toybench"].value == first.scores["toybench"].value
    assert second.step("sft").history == first.step("sft").history


def test_a_changed_evaluate_option_runs_only_evaluate(session: Session, tmp_path: Path) -> None:
    chain().run(workdir=tmp_path / "w", session=session)
    toy_plugin.RUNS.clear()
    result = chain(limit=1).run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == ["evaluate"]
    assert [step.reused for step in result.steps] == [True, True, True, True, False]


def test_a_changed_step_runs_what_depends_on_it_and_keeps_the_old(session: Session, tmp_path: Path) -> None:
    def variant(rate: float) -> Pipeline:
        return Pipeline().pretrain(data=TEXT).sft(data=TEXT, rate=rate).evaluate(["toybench"])

    variant(0.5).run(workdir=tmp_path / "w", session=session)
    toy_plugin.RUNS.clear()
    variant(0.25).run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == ["sft", "evaluate"]
    assert len(list((tmp_path / "w" / "superseded").iterdir())) == 2

    toy_plugin.RUNS.clear()
    back = variant(0.5).run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == [], "the superseded steps are taken back"
    assert all(step.reused for step in back.steps)


def test_an_inserted_step_does_not_repeat_the_ones_before(session: Session, tmp_path: Path) -> None:
    Pipeline().pretrain(data=TEXT).evaluate(["toybench"]).run(workdir=tmp_path / "w", session=session)
    toy_plugin.RUNS.clear()
    longer = (
        Pipeline()
        .pretrain(data=TEXT)
        .evaluate(["toybench"], name="before", limit=1)
        .evaluate(["toybench"], input="pretrain")
    )
    result = longer.run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == ["before"]
    assert result.step("evaluate").folder.name == "03-evaluate"


def test_data_counts_by_content_not_by_path(session: Session, tmp_path: Path) -> None:
    for name, text in (("a.jsonl", "same"), ("b.jsonl", "same"), ("c.jsonl", "other")):
        (tmp_path / name).write_text(json.dumps({"text": text}) + "\n")

    def run(name: str) -> None:
        Pipeline().pretrain(data=str(tmp_path / name)).run(workdir=tmp_path / "w", session=session)

    run("a.jsonl")
    run("b.jsonl")
    assert toy_plugin.RUNS == ["pretrain"]
    run("c.jsonl")
    assert toy_plugin.RUNS == ["pretrain", "pretrain"]


def test_the_seed_is_part_of_the_key(session: Session, tmp_path: Path) -> None:
    for seed in (1, 2):
        Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=session, seed=seed)
    assert toy_plugin.RUNS == ["pretrain", "pretrain"]


def test_damaged_weights_are_named_and_made_again(session: Session, tmp_path: Path) -> None:
    pipeline = Pipeline().pretrain(data=TEXT).sft(data=TEXT)
    pipeline.run(workdir=tmp_path / "w", session=session)
    weights = tmp_path / "w" / "01-pretrain" / "model" / "weights.safetensors"
    weights.write_text("99.0")
    toy_plugin.RUNS.clear()
    result = pipeline.run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == ["pretrain"]
    assert any(str(weights.parent) in notice for notice in result.notices)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("{}x")])
def test_a_damaged_file_beside_the_weights_is_named_too(session: Session, tmp_path: Path, change: Any) -> None:
    pipeline = Pipeline().pretrain(data=TEXT)
    pipeline.run(workdir=tmp_path / "w", session=session)
    config = tmp_path / "w" / "01-pretrain" / "model" / "toy.json"
    change(config)
    result = pipeline.run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == ["pretrain", "pretrain"]
    assert any(str(config) in notice for notice in result.notices)


@pytest.mark.parametrize("wrong", [{"workdir": ""}, {"on_event": 5}])
def test_arguments_that_cannot_be_meant(session: Session, wrong: dict[str, Any]) -> None:
    with pytest.raises(PipelineError):
        Pipeline().pretrain(data=TEXT).run(session=session, **wrong)
    assert toy_plugin.RUNS == []


def test_swapped_weights_cannot_be_used_or_scored(session: Session, tmp_path: Path) -> None:
    result = Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=session)
    (tmp_path / "w" / "01-pretrain" / "model" / "weights.safetensors").write_text("99.0")
    with pytest.raises(ArtifactError, match="not the ones this run wrote"):
        result.model.load()

    class Swap:
        def __call__(self, event: Event) -> None:
            if isinstance(event, StepStarted) and event.kind == "evaluate":
                (tmp_path / "v" / "02-quantize" / "model" / "weights.safetensors").write_text("99.0")

    with pytest.raises(ArtifactError, match="not the ones that step quantize wrote"):
        Pipeline().pretrain(data=TEXT).quantize("int4").evaluate(["toybench"]).run(
            workdir=tmp_path / "v", session=session, on_event=Swap()
        )


DRIVER = """
import sys
import toy_plugin
from tunekit import Pipeline, Session
text = [{"text": "one two three"}, {"text": "four"}]
pipeline = Pipeline().pretrain(data=text).sft(data=text, steps=6).evaluate(["toybench"])
result = pipeline.run(workdir=sys.argv[1], session=Session(plugins=[toy_plugin], autoload=False))
print(",".join(toy_plugin.RUNS))
"""


def drive(workdir: Path, die: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TOY_DIE": die, "PYTHONPATH": str(Path(__file__).parent / "support")}
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(workdir)], env=env, capture_output=True, text=True, timeout=120
    )


def test_a_killed_run_continues_on_the_same_curve(tmp_path: Path) -> None:
    whole = drive(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = drive(tmp_path / "killed", die="sft:3")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "02-sft").exists(), "a half-finished step has no name"
    again = drive(tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == "sft,evaluate", "the finished step is not repeated"
    curves = [(tmp_path / run / "02-sft" / "metrics.jsonl").read_text() for run in ("whole", "killed")]
    assert curves[0] == curves[1]
    assert len(curves[0].splitlines()) == 6


def test_history_written_past_the_last_checkpoint_is_replaced(session: Session, tmp_path: Path) -> None:
    """A kill between logging a step and saving its checkpoint must not leave that step in the history twice."""
    killed = drive(tmp_path / "w", die="sft:3")
    assert killed.returncode == -signal.SIGKILL
    (partial,) = (tmp_path / "w" / ".partial").glob("02-sft-*")
    with (partial / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "loss": 123.0}\n{"step": 5, "lo')
    assert drive(tmp_path / "w").returncode == 0
    entries = [json.loads(line) for line in (tmp_path / "w" / "02-sft" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert all(entry["loss"] != 123.0 for entry in entries)


def test_two_runs_in_one_workdir(session: Session, tmp_path: Path) -> None:
    slow = Pipeline().pretrain(data=TEXT, steps=50, pause=0.05)
    handle = slow.start(workdir=tmp_path / "w", session=session)
    first = next(event for event in handle.events() if isinstance(event, StepStarted))
    with pytest.raises(WorkdirLockedError) as caught:
        slow.run(workdir=tmp_path / "w", session=session)
    assert str(os.getpid()) in str(caught.value)
    assert first.run_id in str(caught.value)
    other = drive(tmp_path / "w")
    assert "Another run is using" in other.stderr
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=20)


def test_cancel_leaves_a_checkpoint_to_continue_from(session: Session, tmp_path: Path) -> None:
    slow = Pipeline().pretrain(data=TEXT, steps=8, pause=0.02)
    token = CancelToken()

    def stop(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.global_step == 3:
            token.cancel("enough")

    with pytest.raises(RunCancelled, match="enough"):
        slow.run(workdir=tmp_path / "w", session=session, cancel=token, on_event=stop)
    assert json.loads((tmp_path / "w" / "manifest.json").read_text())["status"] == "cancelled"
    steps: list[int] = []
    result = slow.run(
        workdir=tmp_path / "w",
        session=session,
        on_event=lambda event: steps.append(event.global_step) if isinstance(event, MetricLogged) else None,
    )
    assert steps == [4, 5, 6, 7, 8]
    assert [entry["step"] for entry in result.steps[0].history] == list(range(1, 9))


def test_start_gives_events_and_the_result(session: Session, tmp_path: Path) -> None:
    handle = chain().start(workdir=tmp_path / "w", session=session)
    kinds = [type(event).__name__ for event in handle.events()]
    assert kinds[0] == "RunStarted" and kinds[-1] == "RunFinished"
    assert handle.result(timeout=20).scores["toybench"].n == 1
    assert list(handle.events()) == []


def test_two_runs_in_one_process_do_not_meet(session: Session, tmp_path: Path) -> None:
    handles = [chain().start(workdir=tmp_path / name, session=session, seed=7) for name in "ab"]
    values = {handle.result(timeout=30).scores["toybench"].value for handle in handles}
    assert len(values) == 1


def test_a_failing_step_keeps_what_is_finished(session: Session, tmp_path: Path) -> None:
    seen: list[Event] = []
    with pytest.raises(StepError) as caught:
        Pipeline().pretrain(data=TEXT).sft(data=TEXT, fail_at=2).run(
            workdir=tmp_path / "w", session=session, on_event=seen.append
        )
    assert caught.value.details["step"] == "sft"
    assert any(isinstance(event, StepFailed) and event.step == "sft" for event in seen)
    assert isinstance(seen[-1], RunFinished) and seen[-1].status == "failed"
    assert (tmp_path / "w" / "01-pretrain" / "model").is_dir()


def test_a_crash_in_a_component_says_where(session: Session, tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        Pipeline(model=base_model(tmp_path / "base")).sft(method="crash", data=TEXT).run(
            workdir=tmp_path / "w", session=session
        )
    assert "ZeroDivisionError: one over nothing" in str(caught.value)
    assert "ToyCrash" not in str(caught.value) and "toy_plugin.py" in caught.value.details["traceback"]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_observers_and_trackers_that_raise_do_not_stop_a_run(
    session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(event: Event) -> None:
        raise RuntimeError("observer trouble")

    result = chain().track("toy", raises=True).run(workdir=tmp_path / "w", session=session, on_event=bad)
    assert result.status == "finished"
    assert toy_plugin.ToyTracker.EVENTS[0] == "RunStarted" and toy_plugin.ToyTracker.EVENTS[-1] == "RunFinished"
    assert toy_plugin.ToyTracker.CLOSED == [True]
    reported = [record for record in caplog.records if "the run goes on" in record.message]
    assert len(reported) == 2, "each is reported once"


def test_embedded_defaults_are_noticed_and_strict_refuses_them(session: Session, tmp_path: Path) -> None:
    result = Pipeline().pretrain(limit=3).run(workdir=tmp_path / "w", session=session)
    assert any("embedded default" in notice and "stdlib-text" in notice for notice in result.notices)
    with pytest.raises(CheckFailed, match="stdlib-text"):
        Pipeline().pretrain(limit=3).run(workdir=tmp_path / "x", session=session, strict=True)
    assert not (tmp_path / "x").exists()


def test_an_empty_data_set_is_an_error_before_anything_runs(session: Session, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises((CheckFailed, DataError), match=r"no rows|empty"):
        Pipeline().pretrain(data=TEXT).sft(data=str(tmp_path / "empty.jsonl")).run(
            workdir=tmp_path / "w", session=session
        )
    assert toy_plugin.RUNS == []


def test_a_bad_row_far_down_is_found_before_anything_runs(session: Session, tmp_path: Path) -> None:
    rows = [json.dumps({"text": "fine"})] * 5000
    rows[4321] = json.dumps({"text": None})
    (tmp_path / "long.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError) as caught:
        Pipeline().pretrain(data=TEXT).sft(data=str(tmp_path / "long.jsonl")).run(
            workdir=tmp_path / "w", session=session
        )
    assert caught.value.details["row"] == 4322
    assert "long.jsonl" in caught.value.details["file"]
    assert toy_plugin.RUNS == []


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    return make_disk("256k")


def test_a_full_disk_is_a_clear_error_and_loses_nothing(session: Session, small_disk: Path) -> None:
    pipeline = Pipeline().pretrain(data=TEXT).sft(data=TEXT, steps=5)
    filler = small_disk / "filler"

    def fill(event: Event) -> None:
        if isinstance(event, MetricLogged) and event.step == "sft" and not filler.exists():
            with filler.open("wb", buffering=0) as stream, pytest.raises(OSError, match="space"):
                while True:
                    stream.write(b"x" * 1024)

    with pytest.raises(ArtifactError) as caught:
        pipeline.run(workdir=small_disk / "w", session=session, on_event=fill)
    assert caught.value.code == "disk-full"
    assert "MB free" in str(caught.value) and "free some space" in str(caught.value)
    filler.unlink()
    toy_plugin.RUNS.clear()
    result = pipeline.run(workdir=small_disk / "w", session=session)
    assert toy_plugin.RUNS == ["sft"]
    assert [entry["step"] for entry in result.step("sft").history] == [1, 2, 3, 4, 5]


def test_a_read_only_workdir_is_refused_before_anything_runs(session: Session, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for workdir in (small_disk / "w", small_disk):
        with pytest.raises(ArtifactError, match="read-only") as caught:
            chain().run(workdir=workdir, session=session)
        assert "workdir" in caught.value.fix
    assert toy_plugin.RUNS == []


def test_a_workdir_that_is_a_file(session: Session, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("")
    with pytest.raises(ArtifactError):
        chain().run(workdir=tmp_path / "w", session=session)


def test_the_default_workdir_is_named_after_the_plan(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = Pipeline().pretrain(data=TEXT)
    result = pipeline.run(session=session)
    assert result.workdir == tmp_path / "runs" / pipeline.plan.fingerprint()[:8]
    assert pipeline.run(session=session).steps[0].reused


def test_library_code_leaves_the_process_alone(
    session: Session, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (dict(os.environ), Path.cwd(), signal.getsignal(signal.SIGINT), threading.active_count())
    chain().run(workdir=tmp_path / "w", session=session)
    assert (dict(os.environ), Path.cwd(), signal.getsignal(signal.SIGINT), threading.active_count()) == before
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_a_workdir_can_be_moved(session: Session, tmp_path: Path) -> None:
    chain().run(workdir=tmp_path / "w", session=session)
    shutil.move(tmp_path / "w", tmp_path / "moved")
    toy_plugin.RUNS.clear()
    time.sleep(0.01)
    result = chain().run(workdir=tmp_path / "moved", session=session)
    assert toy_plugin.RUNS == []
    assert result.scores["toybench"].rows


# Found in review.


def test_a_torn_last_line_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    history = History(path)
    history.record(2, {"loss": 1.5})
    history.record(3, {"loss": 1.0})
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3]
    History(path).record(2, {"loss": 1.4})
    assert [entry["loss"] for entry in read_metrics(path)] == [2.0, 1.4]

    stream_path = tmp_path / "events.jsonl"
    stream_path.write_text('{"seq": 0}\n{"seq"')
    EventStream("r", stream_path, []).emit(Notice, code="a", message="b")
    assert json.loads(stream_path.read_text().splitlines()[-1])["code"] == "a"


def test_observers_are_told_even_if_the_event_cannot_be_written(tmp_path: Path) -> None:
    seen: list[Event] = []
    stream = EventStream("r", tmp_path / "missing" / "events.jsonl", [seen.append])
    with pytest.raises(ArtifactError):
        stream.emit(RunFinished, status="failed", seconds=1.0)
    assert [event.status for event in seen if isinstance(event, RunFinished)] == ["failed"]


def test_scores_of_other_weights_are_not_reused(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that has to run again may come out differently, on another machine; what was made of the old one goes."""
    pipeline = Pipeline().pretrain(data=TEXT).evaluate(["toybench"])
    pipeline.run(workdir=tmp_path / "w", session=session)
    shutil.rmtree(tmp_path / "w" / "01-pretrain")
    write = toy_plugin.write_model
    monkeypatch.setattr(toy_plugin, "write_model", lambda folder, value: write(folder, value + 1.0))
    toy_plugin.RUNS.clear()
    result = pipeline.run(workdir=tmp_path / "w", session=session)
    assert toy_plugin.RUNS == ["pretrain", "evaluate"]
    assert result.scores["toybench"].weights_hash == result.model.card.weights_hash
    toy_plugin.RUNS.clear()
    assert all(step.reused for step in pipeline.run(workdir=tmp_path / "w", session=session).steps)


def test_how_often_checkpoints_are_written_does_not_repeat_a_step(session: Session, tmp_path: Path) -> None:
    for every in (1, 2):
        result = Pipeline().pretrain(data=TEXT, checkpoint_every=every).run(workdir=tmp_path / "w", session=session)
    assert result.steps[0].reused


def test_benchmark_data_in_the_home_folder(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bench" / "toybench").mkdir(parents=True)
    (tmp_path / "bench" / "toybench" / "rows.csv").write_text("a\n")
    model = base_model(tmp_path / "base")
    result = Pipeline(model=model).evaluate(["toybench"], data="~/bench").run(workdir=tmp_path / "w", session=session)
    assert result.scores["toybench"].source == str(tmp_path / "bench" / "toybench")


@pytest.mark.parametrize("seed", [-1, "0", True, 2**32])
def test_what_is_no_seed_is_refused(seed: Any, session: Session, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="seed"):
        chain().run(workdir=tmp_path / "w", session=session, seed=seed)
    assert not (tmp_path / "w").exists()


def test_an_error_that_is_no_storage_error_keeps_its_traceback(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionError("the server went away")

    monkeypatch.setattr(toy_plugin.ToyCrash, "run", refuse)
    with pytest.raises(StepError, match="the server went away") as caught:
        Pipeline(model=base_model(tmp_path / "base")).sft(method="crash", data=TEXT).run(
            workdir=tmp_path / "w", session=session
        )
    assert "refuse" in caught.value.details["traceback"]


def test_a_model_is_read_once_however_often_it_is_asked_for(session: Session, tmp_path: Path) -> None:
    result = Pipeline().pretrain(data=TEXT).run(workdir=tmp_path / "w", session=session)
    toy_plugin.LOADS.clear()
    assert result.model is not None
    for _ in range(2):
        result.model.load()
        result.step("pretrain").model.load()
    assert len(toy_plugin.LOADS) == 1


def test_numbers_of_numpy_stay_numbers(tmp_path: Path) -> None:
    import numpy as np

    storage.write_json(tmp_path / "a.json", {"loss": np.float32(0.5), "rows": np.arange(2), "path": Path("x")})
    assert storage.read_json(tmp_path / "a.json") == {"loss": 0.5, "rows": [0, 1], "path": "x"}
