"""What check() knows of rows before anything runs: objectives, labels, weights of rewards. No torch."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.testing import tiny_pair

PAIRS = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
RATED = [{"prompt": f"p{n}", "completion": "a", "score": float(n)} for n in range(4)]
JUDGED = [{"prompt": f"p{n}", "completion": "a", "label": n % 2 == 0} for n in range(4)]
MANY = [{"prompt": f"p{n}", "completion": "a", "label": n < 300} for n in range(400)]
PROMPTS = [{"prompt": f"p{n}", "answer": "4"} for n in range(4)]


def good(rows: list[dict[str, Any]], label: bool) -> list[dict[str, Any]]:
    return [{**row, "label": label} for row in rows]


def found(kind: str, **options: Any) -> list[str]:
    line = getattr(Pipeline(model=tiny_pair()), kind)(**options)
    return [finding.code for finding in line.check() if finding.level == "error"]


@pytest.mark.parametrize(
    ("kind", "options", "codes"),
    [
        ("reward", {"data": PAIRS, "objective": "regression"}, ["reward-objective"]),
        ("reward", {"data": PAIRS, "objective": "plackett-luce"}, []),
        ("reward", {"data": RATED, "objective": "bradley-terry"}, ["reward-objective"]),
        ("reward", {"data": RATED, "objective": "logistic"}, ["reward-objective"]),
        ("reward", {"data": [{**row, "score": 1.0} for row in RATED], "objective": "logistic"}, []),
        ("reward", {"data": RATED, "center_rewards_coefficient": 0.1}, ["option-without-effect"]),
        ("reward", {"data": RATED}, []),
        ("align", {"method": "kto", "data": good(JUDGED, True)}, ["one-sided-feedback"]),
        ("align", {"method": "bco", "data": good(JUDGED, False)}, ["one-sided-feedback"]),
        ("align", {"method": "kto", "data": [{**row, "prompt": "p"} for row in JUDGED]}, ["one-prompt"]),
        ("align", {"method": "bco", "data": [{**row, "prompt": "p"} for row in JUDGED]}, []),
        ("align", {"method": "kto", "data": JUDGED}, []),
        # Of more rows than check looks at, the others may be bad.
        ("align", {"method": "kto", "data": MANY}, []),
        ("align", {"method": "grpo", "data": PROMPTS, "reward": {"exact-match": 0}}, ["reward-weights"]),
        ("align", {"method": "grpo", "data": PROMPTS, "reward": {"exact-match": 0, "length": 1.0}}, []),
    ],
)
def test_rows_that_nothing_can_be_learned_from(kind: str, options: dict[str, Any], codes: list[str]) -> None:
    assert found(kind, **options) == codes
