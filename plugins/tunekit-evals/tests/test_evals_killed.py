"""An evaluation that is killed in the middle: the same result after continuing, and nothing is scored twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.testing import warm
from tunekit_evals import TransformersRunner

CHILD = """
import os, signal, sys
from tunekit import Pipeline
from tunekit_evals import TransformersRunner

run, seen = TransformersRunner.run, 0

def killed(self, prompts, todo):
    global seen
    for answer in run(self, prompts, todo):
        yield answer
        seen += 1
        if seen == {after}:
            os.kill(os.getpid(), signal.SIGKILL)

TransformersRunner.run = killed
Pipeline(model=sys.argv[1]).evaluate(["mmlu", "gsm8k"], max_new_tokens=8, batch_size=4).run(workdir=sys.argv[2], seed=0)
"""
AFTER = 53
"""Rows that are written when the process dies: all 48 of mmlu, and 5 of the 20 of gsm8k."""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_and_continued(stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    run = TransformersRunner.run

    def counted(self: Any, prompts: Sequence[Any], todo: Collection[int]) -> Iterator[Any]:
        asked.append(len(todo))
        return run(self, prompts, todo)

    monkeypatch.setattr(TransformersRunner, "run", counted)
    pipeline = Pipeline(model=str(stories260k)).evaluate(["mmlu", "gsm8k"], max_new_tokens=8, batch_size=4)
    whole = pipeline.run(workdir=tmp_path / "whole", seed=0)
    assert sum(asked) == 48 + 20
    asked.clear()

    arguments = ["-c", CHILD.format(after=AFTER), stories260k, tmp_path / "killed"]
    killed = warm.run(arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = pipeline.run(workdir=tmp_path / "killed", seed=0)
    assert sum(asked) == 48 + 20 - AFTER
    for name in ("mmlu", "gsm8k"):
        assert Path(again.scores[name].rows_path).read_bytes() == Path(whole.scores[name].rows_path).read_bytes()
        assert (again.scores[name].value, again.scores[name].protocol) == (
            whole.scores[name].value,
            whole.scores[name].protocol,
        )

    asked.clear()
    changed = Pipeline(model=str(stories260k)).evaluate(
        ["mmlu", "gsm8k"], max_new_tokens=8, batch_size=4, settings={"gsm8k": {"num_fewshot": 2}}
    )
    result = changed.run(workdir=tmp_path / "killed", seed=0)
    assert sum(asked) == 20, "the rows of mmlu are still good"
    assert result.scores["gsm8k"].protocol["shots"] == 2
    assert result.scores["mmlu"].value == whole.scores["mmlu"].value
