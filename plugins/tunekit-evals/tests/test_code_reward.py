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


RIGHT = "```python\ndef f(x):\n    return x + 1\n```"
TESTS = [
    "assert str(f(1)) == '2'",
    "assert isinstance(f(1), int) and f(1) == 2",
    "assert isclose(f(1), 2)",
    "assert pow(f(1), 2) == 4",
    "assert divmod(f(1), 2) == (1, 0)",
    "assert type(f(1)) is int and f(1) == 2",
    "assert repr(f(1)) == '2'",
    "assert math.isclose(f(1), 2, rel_tol=1e-9)",
    "from math import isclose as near\nassert near(f(1), 2)",
    "assert 2 == f(1)",
    "x = f(1)\nassert x == 2",
    "assert list(map(f, [1, 2])) == [2, 3]",
    "assert not f(1) != 2",
    "for given, wanted in [(1, 2), (2, 3)]:\n    assert f(given) == wanted",
    "def same(a, b):\n    return a == b\n\nassert same(f(1), 2)",
    "assert [f(n) for n in range(2)] == [1, 2]",
    "def check(candidate):\n    assert candidate(1) == 2",
    "METADATA = {}\n\ndef check(candidate):\n    assert all(candidate(n) == n + 1 for n in range(3))",
    ["assert f(1) == 2", "assert f(2) == 3"],
]


@needs_isolation
def test_tests_of_any_form_find_the_function() -> None:
    """A right program passes and a wrong one fails, whatever the assertions look like; nothing ends the training."""
    reward = CodeTests(CodeTestsOptions())
    wrong = RIGHT.replace("x + 1", "x + 2")
    assert reward([""] * len(TESTS), [RIGHT] * len(TESTS), test=TESTS) == [1.0] * len(TESTS)
    assert reward([""] * len(TESTS), [wrong] * len(TESTS), test=TESTS) == [0.0] * len(TESTS)
    assert reward([""] * 3, ["no code"] * 3, test=[TESTS[0], TESTS[2], TESTS[16]]) == [0.0] * 3


@needs_isolation
def test_mbpps_columns_set_the_tests_up() -> None:
    """``test_imports`` of the sanitized and ``test_setup_code`` of the full set stand before the tests."""
    reward = CodeTests(CodeTestsOptions(tests="test_list"))
    columns = {
        "test_list": [["assert close(f(1), 2)"], ["assert f(START) == 2"]],
        "test_imports": [["from math import isclose as close"], []],
        "test_setup_code": ["", "START = 1"],
    }
    assert reward([""] * 2, [RIGHT] * 2, **columns) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"tests": ["assert f(1)"]}, "needs a column 'test'"),
        ({"test": ["x = 1"]}, "which function is tested"),
        ({"test": ["assert f(1"]}, "not Python"),
    ],
)
def test_what_is_missing_is_said(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(StepError, match=says):
        CodeTests(CodeTestsOptions())(["p"], ["c"], **columns)


@pytest.mark.parametrize(
    ("tests", "code"), [("x = 1", "reward-column"), ("assert f(1", "reward-tests"), ("assert f(1) == 2", None)]
)
def test_rows_are_looked_at_before_anything_is_generated(tests: str, code: str | None) -> None:
    rows = [{"prompt": "p", "columns": {"test": "assert f(1)"}}, {"prompt": "q", "columns": {"test": tests}}]
    if code is None:
        CodeTestsOptions().check_rows("prompt", rows, True)
        return
    with pytest.raises(StepError) as caught:
        CodeTestsOptions().check_rows("prompt", rows, True)
    assert caught.value.code == code
