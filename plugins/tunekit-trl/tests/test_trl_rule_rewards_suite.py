"""The laws of rewards, for those that check by rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunekit.testing import RewardCase, RewardSuite


class TestExactMatch(RewardSuite):
    name = "tunekit-trl/exact-match"
    cases = (
        RewardCase(prompt="2+2?", completion="It is 4.", score=1.0, columns={"answer": "4"}),
        RewardCase(prompt="2+2?", completion="5", score=0.0, columns={"answer": "4"}),
        RewardCase(prompt="2+2?", completion="4", score=None, columns={"answer": None}),
        RewardCase(
            prompt=[{"role": "user", "content": "A half?"}],
            completion=r"\boxed{\frac12}",
            score=1.0,
            columns={"answer": "0.5"},
        ),
    )


class TestFormat(RewardSuite):
    name = "tunekit-trl/format"
    cases = (
        RewardCase(prompt="Why?", completion="<think>so</think><answer>4</answer>", score=1.0),
        RewardCase(prompt="Why?", completion="4", score=0.0),
    )


class TestLength(RewardSuite):
    name = "tunekit-trl/length"
    cases = (
        RewardCase(prompt="Say it.", completion="one two", score=0.0),
        RewardCase(prompt="Say it.", completion="one", score=-0.5),
    )

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {"unit": "words", "target": 2}
