"""The program that runs a plan in a process of its own and kills itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.events import StepStarted
from tunekit.testing import RecordingEvents, isolated_session, tiny_pair, toy_rows, warm
from tunekit.testing.driver import write_job

SUPPORT = Path(__file__).parent / "support"


def drive(job: Path, *, heavy: bool = False) -> tuple[int, list[Any]]:
    path = os.pathsep.join(filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path}
    command = ["-m", "tunekit.testing.driver", str(job)]
    if heavy:
        done = warm.run(command, env=env)
    else:
        done = subprocess.run(
            [sys.executable, *command], env=env, capture_output=True, text=True, timeout=120, check=False
        )
    losses = job.with_name(f"{job.stem}.losses.json")
    assert losses.exists(), done.stderr
    return done.returncode, json.loads(losses.read_text())


def test_a_job_dies_at_its_checkpoint_and_the_next_one_continues_there(tmp_path: Path) -> None:
    pipeline = Pipeline().pretrain(data=[{"text": "abc"}], steps=3).sft(data=[{"text": "abcdef"}], steps=6)
    common: dict[str, Any] = {"plugins": ["toy_plugin"], "seed": 3, "autoload": False}
    whole = write_job(tmp_path, pipeline, workdir=tmp_path / "whole", name="whole", **common)
    dying = write_job(tmp_path, pipeline, workdir=tmp_path / "cut", name="dying", die=("sft", 4), **common)
    rest = write_job(tmp_path, pipeline, workdir=tmp_path / "cut", name="rest", **common)

    code, expected = drive(whole)
    assert code == 0 and [tuple(row[:2]) for row in expected] == [
        *(("pretrain", step) for step in (1, 2, 3)),
        *(("sft", step) for step in (1, 2, 3, 4, 5, 6)),
    ]
    code, before = drive(dying)
    assert code == -signal.SIGKILL and before == expected[:7]
    code, after = drive(rest)
    assert code == 0 and after == expected[7:]


@pytest.mark.slow
def test_the_model_of_a_job_is_the_one_in_memory_here(tmp_path: Path) -> None:
    pipeline = Pipeline(model=tiny_pair(seed=4)).sft(data=toy_rows("prompt_completion", 8), max_steps=2, batch_size=4)
    job = write_job(tmp_path, pipeline, workdir=tmp_path / "run", model={"seed": 4})
    code, losses = drive(job, heavy=True)
    assert code == 0 and [step for _, step, _ in losses] == [1, 2]
    events = RecordingEvents()
    pipeline.run(workdir=tmp_path / "run", session=isolated_session(), on_event=events)
    assert [event.reused for event in events.of(StepStarted)] == [True]
    other = Pipeline(model=tiny_pair(seed=5)).sft(data=toy_rows("prompt_completion", 8), max_steps=2, batch_size=4)
    again = RecordingEvents()
    other.run(workdir=tmp_path / "run", session=isolated_session(), on_event=again)
    assert [event.reused for event in again.of(StepStarted)] == [False]


def test_a_model_in_memory_is_left_out_of_the_job(tmp_path: Path) -> None:
    pipeline = Pipeline(model=({"w": 1.0}, None)).sft(data=[{"text": "a"}])
    job = json.loads(write_job(tmp_path, pipeline, workdir="w", model={"seed": 4}).read_text())
    assert "model" not in job["plan"] and job["model"] == {"seed": 4}
