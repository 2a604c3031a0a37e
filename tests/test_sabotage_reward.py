"""RewardSuite passes an honest reward, and each seeded bug fails the test that is there for it."""

from __future__ import annotations

import pytest
from sabotage_runner import run_suites

from tunekit.testing import RewardCase, RewardSuite

BUGS = [
    ("Constant", "test_known_completions_get_their_scores", "is worth 1.0, and got 0.5"),
    ("Normalised", "test_neighbours_do_not_matter", "scores are normalised over the batch"),
    ("OneForAll", "test_there_is_one_finite_number_for_each", "3 completions, 1 scores"),
    ("Divides", "test_whatever_a_model_writes_gets_a_score", "division by zero"),
    ("NotFinite", "test_whatever_a_model_writes_gets_a_score", "it gave -inf"),
    ("Changing", "test_asking_twice_changes_nothing", "copy them first"),
    ("Counting", "test_asking_twice_changes_nothing", "state kept between calls"),
    ("Stringly", "test_texts_and_messages_are_one", "as a message"),
    ("Closed", "test_other_columns_do_no_harm", "Take **columns"),
    ("Undeclared", "test_the_columns_it_needs_are_declared", "Declare what it needs"),
    ("Silent", "test_the_columns_it_needs_are_declared", "return None for what cannot be judged"),
]

CASES = """(
        RewardCase(prompt="2 + 2?", completion="four", score=1.0, columns={"answer": "four"}),
        RewardCase(prompt="2 + 2?", completion="five", score=-0.75, columns={"answer": "four"}),
        RewardCase(prompt="2 + 3?", completion="five", score=1.0, columns={"answer": "five"}),
    )"""

SOURCE = f"""
from tunekit.testing import RewardCase, RewardSuite


class Base(RewardSuite):
    plugins = ("sabotage_rewards",)
    cases = {CASES}

"""


class TestMatch(RewardSuite):
    name = "inline/match"
    plugins = ("sabotage_rewards",)
    cases = (
        RewardCase(prompt="2 + 2?", completion="four", score=1.0, columns={"answer": "four"}),
        RewardCase(prompt="2 + 2?", completion="five", score=-0.75, columns={"answer": "four"}),
        RewardCase(prompt=[{"role": "user", "content": "3?"}], completion="3", score=1.0, columns={"answer": "3"}),
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    classes = "\n".join(f"class Test{bug}(Base):\n    name = {bug.lower()!r}\n" for bug, _, _ in BUGS)
    wanted = [f"Test{bug}::{test}" for bug, test, _ in BUGS]
    return run_suites(tmp_path_factory.mktemp("rewards"), SOURCE + classes, wanted)


@pytest.mark.parametrize(("bug", "test", "said"), BUGS)
def test_the_bug_is_caught(outcomes: dict[tuple[str, str], str], bug: str, test: str, said: str) -> None:
    outcome = outcomes[f"Test{bug}", test]
    assert outcome not in ("passed", "skipped"), f"{test} did not notice {bug}"
    assert said in outcome, outcome
