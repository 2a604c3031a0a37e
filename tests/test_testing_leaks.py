"""The search for leaked answers says when it could try nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tunekit.plugins import ChoiceRequest, Response, ScoredRow
from tunekit.testing import benchmark_probes as probes

RIGHT = {"a/0": "A", "a/1": "B", "a/2": "A"}
ROWS = [{"id": name, "question": f"Question {name}?"} for name in RIGHT]


class Hidden:
    """Knows the answers by the id, so that no field of a row holds one."""

    def request(self, row: Mapping[str, Any]) -> ChoiceRequest:
        return ChoiceRequest(context=row["question"], choices=("A", "B"))

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        target = RIGHT[row["id"]]
        said = "AB"[response.logprobs.index(max(response.logprobs))]
        return ScoredRow(id=row["id"], prompt_hash="", prediction=said, target=target, correct=said == target)


class Shown(Hidden):
    """The same with the answer in a field."""

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        said = "AB"[response.logprobs.index(max(response.logprobs))]
        return ScoredRow(
            id=row["id"], prompt_hash="", prediction=said, target=row["answer"], correct=said == row["answer"]
        )


def test_answers_that_no_field_holds_cannot_be_looked_for() -> None:
    with pytest.raises(AssertionError, match="whether the answer leaks cannot be tried: changing any field"):
        probes.answer_leaks(Hidden(), ROWS, None)


def test_a_field_that_is_named_but_not_there_is_no_trial() -> None:
    rows = [{**row, "answer": RIGHT[row["id"]]} for row in ROWS]
    assert probes.answer_leaks(Shown(), rows, None) == []
    with pytest.raises(AssertionError, match="changing the fields gold of a row"):
        probes.answer_leaks(Shown(), rows, ("gold",))


def test_one_right_answer_for_all_rows_leaves_nothing_to_try() -> None:
    rows = [{**row, "answer": "A"} for row in ROWS]
    assert probes.answer_leaks(Shown(), rows, None) == []
