"""The reward ``code-tests``: HumanEval's own solutions pass, and broken ones do not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import StepError
from tunekit_evals.code_reward import CodeTests
from tunekit_evals.code_reward_options import CodeTestsOptions
from tunekit_evals.sandbox import isolation

needs_isolation = pytest.mark.skipif(isolation().level == "none", reason="programs cannot be isolated here")


@needs_isolation
def test_solutions_pass_as_continuations_and_as_answers(shared_data: Path) -> None:
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(next(stream)) for _ in range(4)]
    columns = {name: [row[name] for row in rows] for name in ("test", "entry_point", "prompt")}
    prompts = columns.pop("prompt")
    reward = CodeTests(CodeTestsOptions())
    assert reward(prompts, [row["canonical_solution"] for row in rows], **columns) == [1.0] * 4
    assert reward(prompts, ["    return None\n"] * 4, **columns) == [0.0] * 4

    asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    answers = [
        [{"role": "assistant", "content": f"Here:\n```python\n{row['prompt']}{row['canonical_solution']}```\n"}]
        for row in rows
    ]
    assert reward(asked, answers, **columns) == [1.0] * 4


@needs_isolation
def test_assertions_name_the_function_themselves() -> None:
    """MBPP's form; a row without tests is not scored, and a program cannot say that it passed."""
    reward = CodeTests(CodeTestsOptions(tests="test_list", passed=2.0, failed=-1.0))
    tests = ["assert sorted(twice(3)) == [3, 3]", "assert twice('a') == ['a', 'a']"]
    completions = [
        "```python\ndef twice(x):\n    return [x, x]\n```",
        "```python\ndef twice(x):\n    return [x]\n```",
        "```python\nimport os\nos._exit(0)\ndef twice(x):\n    return [x]\n```",
        "anything",
    ]
    scores = reward(["Write twice."] * 4, completions, test_list=[tests, tests, tests, None])
    assert scores == [2.0, -1.0, -1.0, None]


@pytest.mark.parametrize(
    ("columns", "says"),
    [({"tests": ["assert f(1)"]}, "needs a column 'test'"), ({"test": ["x = 1"]}, "which function is tested")],
)
def test_what_is_missing_is_said(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(StepError, match=says):
        CodeTests(CodeTestsOptions())(["p"], ["c"], **columns)
