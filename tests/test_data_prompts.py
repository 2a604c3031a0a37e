"""Prompts with the columns that rewards look at, ratings, and margins of pairs."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.data import load_dataset
from tunekit.data.schemas import CONVERSIONS, SCHEMAS, validate_row
from tunekit.errors import DataError
from tunekit.testing import toy_rows

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def prompts(row: Any, **options: Any) -> dict[str, Any]:
    (made,) = load_dataset([row], accepts=("prompt",), **options).rows()
    return made


@pytest.mark.parametrize(
    ("row", "prompt", "columns"),
    [
        ({"prompt": "Hi"}, "Hi", None),
        ({"prompt": "2 + 2 =", "answer": "4", "level": 1}, "2 + 2 =", {"answer": "4", "level": 1}),
        ({"prompt": [USER], "answer": "4"}, [USER], {"answer": "4"}),
        ({"prompt": "Hi", "system": "Be kind."}, [{"role": "system", "content": "Be kind."}, USER], None),
        ({"prompt": "Hi", "columns": {"answer": "4"}}, "Hi", {"answer": "4"}),
        ({"question": "Hi", "answer": "#### 4"}, [USER], {"answer": "#### 4"}),
        ({"instruction": "Hi", "input": "", "output": "x"}, [USER], {"output": "x"}),
        ({"messages": [USER, BOT, USER, BOT], "topic": "t"}, [USER, BOT, USER], {"topic": "t", "completion": [BOT]}),
        ({"messages": [USER]}, [USER], None),
        ({"prompt": "Hi", "completion": "Hello"}, "Hi", {"completion": "Hello"}),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "Hi", {"chosen": "a", "rejected": "b"}),
        (
            {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "No"}]},
            [USER],
            {"chosen": [BOT], "rejected": [{**BOT, "content": "No"}]},
        ),
        ({"messages": [USER, BOT], "label": True}, [USER], {"completion": [BOT], "label": True}),
        ({"text": "Once upon"}, "Once upon", None),
        ({"text": "Once upon", "label": "good"}, "Once upon", {"label": "good"}),
    ],
)
def test_the_prompt_of_any_row_and_what_it_says_besides(row: Any, prompt: Any, columns: Any) -> None:
    made = prompts(row)
    assert made["prompt"] == prompt and made.get("columns") == columns
    assert set(made) <= {"prompt", "columns"}


def test_columns_named_by_the_user() -> None:
    """The column that is the prompt is no column for rewards; the others are, whatever they are called."""
    row = {"prompt": "an old name", "ask": "Hi", "reply": "Hello", "answer": 4}
    made = prompts(row, columns={"prompt": "ask"})
    assert made == {"prompt": "Hi", "columns": {"prompt": "an old name", "reply": "Hello", "answer": 4}}
    assert prompts({"ask": "Hi", "answer": 4}, format="prompt", columns={"prompt": "ask"})["columns"] == {"answer": 4}


def test_arguments_of_rewards_are_no_columns() -> None:
    row = {"prompt": "Hi", "completions": ["a"], "prompts": 1, "completion_ids": [2], "finished": True, "answer": 3}
    assert prompts(row)["columns"] == {"answer": 3}
    ranked = load_dataset(toy_rows("ranked", 2), accepts=("prompt",)).peek(1)[0]
    assert sorted(ranked["columns"]) == ["ranks"]


def test_tools_stay_a_field_and_nulls_are_kept() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    made = prompts({"messages": [USER, BOT], "tools": [tool], "answer": None})
    assert made["tools"][0]["function"]["name"] == "add" and made["columns"] == {"answer": None, "completion": [BOT]}


def test_prompts_are_read_only_where_they_are_asked_for() -> None:
    """Most rows hold a prompt; for who asks for nothing, or for something else, they are what they were."""
    assert load_dataset([{"prompt": "a", "completion": "b"}]).schema == "prompt_completion"
    assert load_dataset([{"prompt": "a", "completion": "b", "score": 3}]).schema == "prompt_completion"
    assert load_dataset([{"question": "a", "answer": "b"}]).schema == "prompt_completion"
    with pytest.raises(DataError) as caught:
        load_dataset([{"prompt": "a", "rply": "b"}], accepts=("prompt_completion",))
    assert caught.value.code == "unknown-columns"
    with pytest.raises(DataError, match="different shapes"):
        load_dataset({"mix": [{"data": toy_rows("text", 4)}, {"data": toy_rows("token_classification", 4)}]})
    with pytest.raises(DataError, match="different shapes"):
        load_dataset({"mix": [{"data": toy_rows("preference", 4)}, {"data": toy_rows("feedback", 4)}]})
    mixed = load_dataset(
        {"mix": [{"data": toy_rows("preference", 4)}, {"data": toy_rows("prompt", 4)}]}, accepts=("prompt",)
    )
    assert mixed.schema == "prompt" and all(set(row) <= {"prompt", "columns"} for row in mixed.peek(4))


def test_every_shape_with_a_prompt_becomes_one() -> None:
    for schema in SCHEMAS:
        if schema in ("prompt", "token_classification", "regression"):
            assert (schema, "prompt") not in CONVERSIONS
        else:
            assert load_dataset(toy_rows(schema, 3), accepts=("prompt",)).peek(1)[0]["prompt"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": [USER, BOT]}, "prompt"),
        ({"prompt": "Hi", "columns": [1]}, "columns"),
    ],
)
def test_bad_prompts_are_named(row: Any, field: str) -> None:
    with pytest.raises(DataError) as caught:
        prompts(row)
    assert caught.value.details["field"] == field


@pytest.mark.parametrize(("margin", "expected"), [(1, 1.0), ("0.25", 0.25), (-2.5, -2.5), (None, None)])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": "a", "rejected": "b"},
        {"question": "Hi", "chosen": "a", "rejected": "b"},
    ],
)
def test_a_pair_may_have_a_margin(row: dict[str, Any], margin: Any, expected: float | None) -> None:
    (made,) = load_dataset([{**row, "margin": margin}], accepts=("preference",)).rows()
    assert made.get("margin") == expected and ("margin" in made) == (margin is not None)


@pytest.mark.parametrize("margin", ["wide", True, float("inf"), [1]])
def test_a_margin_is_a_finite_number(margin: Any) -> None:
    with pytest.raises(DataError) as caught:
        list(load_dataset([{"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": margin}]).rows())
    assert caught.value.details["field"] == "margin"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello", "score": 4.5},
        {"prompt": "Hi", "response": "Hello", "rating": "4.5"},
        {"question": "Hi", "answer": "Hello", "stars": 4.5},
        {"prompt": [USER], "completion": [BOT], "reward": 4.5},
    ],
)
def test_answers_with_a_rating(row: dict[str, Any]) -> None:
    (made,) = load_dataset([row], accepts=("preference", "ranked", "rated")).rows()
    assert made["score"] == 4.5 and set(made) == {"prompt", "completion", "score"}
    assert validate_row(made, "rated") == made


def test_rows_that_a_rating_does_not_fit() -> None:
    """Pairs stay pairs, and a rating is no thumb: where good ends on its scale is for the user to say."""
    assert load_dataset(toy_rows("preference", 2), accepts=("preference", "rated")).schema == "preference"
    with pytest.raises(DataError, match="where good ends on its scale"):
        load_dataset([{"prompt": "Hi", "response": "Hello", "rating": 4}], accepts=("feedback",))
    with pytest.raises(DataError) as caught:
        list(load_dataset([{"prompt": "a", "completion": "b", "score": s} for s in (1, 2, None)], accepts=("rated",)))
    assert (caught.value.details["row"], caught.value.details["field"]) == (3, "score")


def test_of_a_message_tree_a_step_reads_what_it_likes_best() -> None:
    """A tree holds rankings, thumbs and conversations; which of them counts, the step says, or the user."""
    replies = [
        {"role": "assistant", "text": text, "rank": rank, "emojis": {"+1": 1 - rank, "-1": rank}, "replies": []}
        for rank, text in enumerate(("Four.", "Five."))
    ]
    tree = {"role": "prompter", "text": "2 + 2?", "replies": replies}
    assert load_dataset([tree], accepts=("preference", "ranked", "rated", "feedback")).format == "tree_ranked"
    assert load_dataset([tree], accepts=("feedback", "ranked")).format == "tree_feedback"
    with pytest.raises(DataError) as caught:
        load_dataset([tree])
    assert caught.value.code == "ambiguous-format"
