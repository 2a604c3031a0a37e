"""Scores of several rewards, checked and added up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tunekit._reward_callables import fitted
from tunekit.context import BoundReward
from tunekit.errors import DataError, StepError
from tunekit.plugins import hf


def _reward(scores: Any, name: str = "r", weight: float = 1.0) -> BoundReward:
    def give(prompts: Any, completions: Any, **columns: Any) -> Any:
        return scores(columns) if callable(scores) else scores

    return BoundReward(name=name, reward=give, weight=weight)


def test_weights_multiply_what_each_reward_says() -> None:
    made = hf.score(
        [_reward([1, None, 0.5], "a", 2.0), _reward([None, 3.0, -1.0], "b", 0.5)], ["p"] * 3, ["x", "y", "z"], {}
    )
    assert made.total == [2.0, 1.5, 0.5]
    assert made.by_name == {"a": [1.0, None, 0.5], "b": [None, 3.0, -1.0]}
    assert made.mean("a") == 0.75 and made.mean("b") == 1.0


def test_a_sum_that_is_too_large_is_an_error() -> None:
    """Each score is finite, their weighted sum is not: training would go on with infinite or undefined advantages."""
    for weight, scores in ((1e10, [1e300, 0.0]), (1.0, [1.7e308, 0.0]), (-1e10, [1e300, 0.0])):
        with pytest.raises(StepError, match="sum of the rewards is not finite") as caught:
            hf.score([_reward(scores, "a", weight), _reward(scores, "b", 1.0)], ["p"] * 2, ["x", "y"], {})
        assert caught.value.code == "reward-not-finite" and "a: " in str(caught.value)


def test_what_a_reward_changes_nobody_else_sees() -> None:
    """The scores of the second reward, and the caller's lists, are as if the first one had changed nothing."""

    def spoil(prompts: Any, completions: Any, **columns: Any) -> Any:
        completions.sort(key=lambda one: one[0]["content"])
        for one in (*prompts, *completions):
            one[0]["content"] = ""
        columns["tests"][0].clear()
        columns["answer"].reverse()
        prompts.clear()
        return [0.0] * len(completions)

    def see(prompts: Any, completions: Any, **columns: Any) -> Any:
        return [
            float(prompt[0]["content"] + made[0]["content"] == answer and tests == ["t"])
            for prompt, made, answer, tests in zip(
                prompts, completions, columns["answer"], columns["tests"], strict=True
            )
        ]

    prompts = [[{"role": "user", "content": one}] for one in "pq"]
    completions = [[{"role": "assistant", "content": one}] for one in "zy"]
    columns = {"answer": ["pz", "qy"], "tests": [["t"], ["t"]]}
    rewards = [BoundReward(name="spoil", reward=spoil), BoundReward(name="see", reward=see)]  # type: ignore[arg-type]
    assert hf.score(rewards, prompts, completions, columns).total == [1.0, 1.0]
    assert completions[0][0]["content"] == "z" and columns == {"answer": ["pz", "qy"], "tests": [["t"], ["t"]]}


def test_columns_are_handed_on() -> None:
    made = hf.score(
        [_reward(lambda columns: [float(value) for value in columns["answer"]])], ["p"], ["x"], {"answer": ["7"]}
    )
    assert made.total == [7.0]


class _Tensor:
    """What arrays and tensors have."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def tolist(self) -> list[float]:
        return self.values


def test_arrays_are_lists_and_truth_is_a_number() -> None:
    assert hf.score([_reward(_Tensor([1.0, 2.0]))], ["p"] * 2, ["x"] * 2, {}).total == [1.0, 2.0]
    assert hf.score([_reward((True, False))], ["p"] * 2, ["x"] * 2, {}).total == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "code", "says"),
    [
        ([1.0], "reward-scores", "1 scores for 2"),
        (1.0, "reward-scores", "no list"),
        ("ab", "reward-scores", "no list"),
        ([1.0, "2"], "reward-scores", "no number"),
        ([math.nan, 1.0], "reward-not-finite", "not finite"),
        ([1.0, math.inf], "reward-not-finite", "not finite"),
        ([10**400, 1.0], "reward-not-finite", "not finite"),
        ([1.0, None], "no-score", "No reward has anything to say"),
        (lambda columns: 1 / 0, "reward-failed", "ZeroDivisionError"),
        (lambda columns: columns["answr"], "reward-column", "a column that the rows do not have"),
    ],
)
def test_what_is_wrong_names_the_reward(scores: Any, code: str, says: str) -> None:
    with pytest.raises(StepError, match=says) as caught:
        hf.score([_reward(scores, "mine")], ["p"] * 2, ["x", "y"], {"answer": [1, 2]})
    assert caught.value.code == code
    assert "mine" in str(caught.value)
    if code == "reward-column":
        assert caught.value.suggestions == ("answer",)


TABLE = {"yes": 1.0}


@pytest.mark.parametrize(
    ("give", "code"),
    [
        (lambda prompts, completions, **kwargs: [kwargs["answr"][row] for row in range(2)], "reward-column"),
        (lambda prompts, completions, **kwargs: [TABLE[one] for one in kwargs.pop("answr")], "reward-column"),
        (lambda prompts, completions, **kwargs: [row["answr"] for row in kwargs["rows"]], "reward-failed"),
        (lambda prompts, completions, **kwargs: [TABLE[one] for one in completions], "reward-failed"),
        (lambda prompts, completions, **kwargs: kwargs["rows"][0]["answr"], "reward-failed"),
        (lambda prompts, completions, **kwargs: [kwargs["table"][one] for one in completions], "reward-failed"),
        (lambda prompts, completions, **kwargs: [{}[one] for one in completions], "reward-failed"),
    ],
)
def test_a_missing_key_is_a_missing_column_only_among_the_columns(give: Any, code: str) -> None:
    columns = {"rows": [{"answer": 1}] * 2, "table": {"yes": 1.0, "no": 0.0}}
    with pytest.raises(StepError) as caught:
        hf.score([BoundReward(name="r", reward=give)], ["p"] * 2, ["maybe", "no"], columns)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert ("traceback" in caught.value.details) == (code == "reward-failed")


def test_a_reward_that_needs_a_column_names_it() -> None:
    def give(prompts: Any, completions: Any, answer: Any) -> Any:
        return [float(one == two) for one, two in zip(completions, answer, strict=True)]

    made = fitted(give)
    assert hf.score(
        [BoundReward(name="r", reward=made)], ["p"], ["x"], {"answer": ["x"], "finished": [True]}
    ).total == [1.0]
    with pytest.raises(StepError, match="a column that the rows do not have") as caught:
        hf.score([BoundReward(name="r", reward=made)], ["p"], ["x"], {"answr": ["x"]})
    assert caught.value.suggestions == ("answr",)


def test_errors_of_tunekit_pass() -> None:
    def fail(prompts: Any, completions: Any, **columns: Any) -> Any:
        raise DataError("mine")

    with pytest.raises(DataError, match="mine"):
        hf.score([BoundReward(name="r", reward=fail)], ["p"], ["x"], {})


def test_arguments_that_do_not_fit_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no reward"):
        hf.score([], ["p"], ["x"], {})
    with pytest.raises(ValueError, match="2 prompts for 1"):
        hf.score([_reward([1])], ["p", "q"], ["x"], {})
    with pytest.raises(ValueError, match="Column a has 2 values"):
        hf.score([_reward([1])], ["p"], ["x"], {"a": [1, 2]})
    with pytest.raises(ValueError, match="one name"):
        hf.score([_reward([1], "a"), _reward([1], "a")], ["p"], ["x"], {})
