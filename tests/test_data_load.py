"""Formats, shapes, objects in memory, and what load_dataset says when data do not fit."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.data import (
    FORMAT_NAMES,
    Dataset,
    Format,
    as_messages,
    canonical_dataset,
    load_dataset,
    mix,
    plain_pair,
    to_text,
)
from tunekit.data.rows import RowProblem
from tunekit.errors import DataError
from tunekit.plan import freeze


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "be brief"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}

FORMATS = [
    ("text", {"text": "a"}, {"text": "a"}),
    (
        "alpaca",
        {"instruction": "do", "input": "it", "output": "done"},
        {"prompt": [user("do\n\nit")], "completion": [bot("done")]},
    ),
    ("alpaca", {"instruction": "do", "output": "done"}, {"prompt": [user("do")], "completion": [bot("done")]}),
    (
        "alpaca",
        {"instruction": "do", "input": "", "output": "done", "system": "be brief", "history": [["q", "a"]]},
        {"prompt": [SYSTEM, user("q"), bot("a"), user("do")], "completion": [bot("done")]},
    ),
    ("prompt_completion", {"prompt": "a", "completion": " b"}, {"prompt": "a", "completion": " b"}),
    (
        "prompt_completion",
        {"prompt": [user("a")], "completion": [bot("b")], "id": 7},
        {"prompt": [user("a")], "completion": [bot("b")]},
    ),
    (
        "prompt_completion",
        {"prompt": [SYSTEM, user("a")], "completion": "b"},
        {"prompt": [SYSTEM, user("a")], "completion": [bot("b")]},
    ),
    ("question_answer", {"question": "a", "answer": "b"}, {"prompt": [user("a")], "completion": [bot("b")]}),
    ("prompt_response", {"prompt": "a", "response": "b"}, {"prompt": [user("a")], "completion": [bot("b")]}),
    ("query_response", {"query": "a", "response": "b"}, {"prompt": [user("a")], "completion": [bot("b")]}),
    ("instruction_response", {"instruction": "a", "response": "b"}, {"prompt": [user("a")], "completion": [bot("b")]}),
    ("input_output", {"input": "a", "output": "b"}, {"prompt": [user("a")], "completion": [bot("b")]}),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "be brief"},
        {"messages": [SYSTEM, user("a"), bot("b")]},
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": '[{"name": "f", "parameters": {}}]',
        },
        {
            "messages": [
                user("a"),
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "1"},
                bot("b"),
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
    ),
    ("openai", {"messages": [user("a"), bot("b")], "tools": "[]"}, {"messages": [user("a"), bot("b")]}),
    (
        "openai",
        {
            "messages": [
                user("a"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "1", "name": None},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            ]
        },
        {
            "messages": [
                user("a"),
                {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "1"}]},
                {"role": "tool", "content": "1", "tool_call_id": "1"},
                bot("b"),
            ]
        },
    ),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    (
        "preference",
        {"prompt": "a", "chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")], "score_chosen": 9.0},
        {"prompt": [user("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
    ),
    (
        "chosen_rejected",
        {"chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")]},
        {"prompt": [user("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
    ),
    (
        "hh",
        {
            "chosen": "\n\nHuman: a\n\nb\n\nAssistant: yes\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nb\n\nAssistant: yes\n\nHuman: c\n\nAssistant: e",
        },
        {"prompt": [user("a\n\nb"), bot("yes"), user("c")], "chosen": [bot("d")], "rejected": [bot("e")]},
    ),
    (
        "sharegpt_preference",
        {
            "conversations": [{"from": "system", "value": "be brief"}, {"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        {"prompt": [SYSTEM, user("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
    ),
    (
        "messages_preference",
        {"messages": [user("a")], "chosen": "b", "rejected": "c"},
        {"prompt": [user("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
    ),
    (
        "instruction_preference",
        {"instruction": "a", "input": "x", "chosen": "b", "rejected": "c"},
        {"prompt": [user("a\n\nx")], "chosen": [bot("b")], "rejected": [bot("c")]},
    ),
    (
        "question_preference",
        {"system": "be brief", "question": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [SYSTEM, user("a")], "chosen": [bot("b")], "rejected": [bot("c")]},
    ),
    (
        "kto",
        {"messages": [user("a"), bot("b")], "label": False},
        {"prompt": [user("a")], "completion": [bot("b")], "label": False},
    ),
    (
        "feedback",
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": "a", "completion": "b", "label": True},
    ),
    (
        "alpaca_kto",
        {"instruction": "a", "input": "", "output": "b", "kto_tag": "false"},
        {"prompt": [user("a")], "completion": [bot("b")], "label": False},
    ),
]


@pytest.mark.parametrize(("name", "row", "canonical"), FORMATS)
def test_formats(name: str, row: dict[str, Any], canonical: dict[str, Any]) -> None:
    detected = load_dataset([row])
    assert detected.format == name
    assert detected.peek() == [canonical]
    assert list(load_dataset([row], format=name).rows()) == [canonical]
    assert list(load_dataset(freeze([row])).rows()) == [canonical]  # as it stands in a plan
    # What is canonical already stays as it is.
    assert list(canonical_dataset("x", detected.schema, [canonical]).rows()) == [canonical]


def test_these_are_names_of_formats() -> None:
    rules = {"separated", "lines", "passages", "document"}
    assert {name for name, _, _ in FORMATS} | rules <= set(FORMAT_NAMES)


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"instruction": "a"}, "output", "is missing"),
        ({"instruction": "a", "output": None}, "output", "is null"),
        ({"instruction": "a", "output": " \n"}, "output", "is empty"),
        ({"instruction": "a", "output": 5}, "output", "is a number (5), not text"),
        ({"instruction": {"a": 1}, "output": "b"}, "instruction", "is an object, not text"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "history[0]", "is no [question, answer] pair"),
        ({"instruction": "a", "output": "b", "history": [[None, "a"]]}, "history[0][0]", "is null, not text"),
    ],
)
def test_bad_alpaca_rows(tmp_path: Path, row: dict[str, Any], field: str, reason: str) -> None:
    good = {"instruction": "a", "input": "", "output": "b"}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in [good, good, row, good]))
    with pytest.raises(DataError) as caught:
        list(load_dataset(path).rows())
    error = caught.value
    assert error.code == "bad-row"
    assert error.details == {"file": str(path), "row": 3, "line": 3, "field": field, "reason": reason}
    assert error.message == f"rows.jsonl row 3: field {field!r} {reason}."
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.details == error.details

    skipping = load_dataset(path, on_bad_row="skip")
    assert len(skipping) == 3
    assert skipping.bad_rows == [(3, f"field {field!r} {reason}")]
    assert skipping.describe() == "rows.jsonl: alpaca -> prompt_completion, 3 of 4 rows, 1 bad row left out"


def test_missing_field_in_the_first_row_is_named() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset([{"instruction": "a"}, {"instruction": "a", "output": "b"}]).peek()
    assert caught.value.details["row"] == 1
    assert caught.value.details["field"] == "output"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "is null"),
        ([], "is an empty list of messages"),
        ({"role": "user"}, "is an object, not a list of messages"),
        ("hello", "is text that is no JSON list of messages"),
        ([None], "is null, not a message"),
        ([{"content": "a"}], "has no role"),
        ([{"role": None, "content": "a"}], "has no role"),
        ([{"role": 3, "content": "a"}], "has a role that is a number (3)"),
        ([{"role": ["user"], "content": "a"}], "has a role that is a list"),
        ([{"role": "wizard", "content": "a"}], "has the unknown role 'wizard'"),
        ([{"role": "user"}], "has no content"),
        ([{"role": "user", "content": None}], "has no content"),
        ([{"role": "user", "content": 4}], "is a number (4), not text"),
        ([{"role": "user", "content": [None]}], "has a content part that is null"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has a content part of type 'image'"),
        ([user("a")], "has no assistant message with content"),
        ([user("a"), bot("")], "has no assistant message with content"),
        ([user("a"), {"role": "assistant", "tool_calls": [{"x": 1}]}], "has a function call without a name"),
        (
            [user("a"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}],
            "has function arguments that are not JSON",
        ),
        ([{"from": "function_call", "value": "f(x)"}], "has a function call that is not JSON"),
        ([user("a"), {**bot("b"), "name": "\ud83d"}], "holds something that is not JSON in UTF-8"),
        ([user("a"), {**bot("b"), "tool_call_id": object()}], "holds something that is not JSON in UTF-8"),
    ],
)
def test_bad_messages(messages: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset([{"messages": [user("a"), bot("b")]}, {"messages": messages}]).validate()
    assert caught.value.details["row"] == 2
    assert caught.value.details["field"].startswith("messages")
    assert reason in caught.value.details["reason"]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected", "equals 'chosen'"),
        ({"prompt": "a", "chosen": "b"}, "rejected", "is missing"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "chosen", "is null"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "chosen", "is a number (1), not a list of messages"),
        ({"prompt": "a", "chosen": [user("b")], "rejected": "b"}, "chosen[0]", "is a user message"),
        ({"prompt": [user("a"), bot("x")], "chosen": "b", "rejected": "c"}, "prompt", "ends with an assistant message"),
    ],
)
def test_bad_preference_rows(row: dict[str, Any], field: str, reason: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError) as caught:
        load_dataset([good, row]).validate()
    assert caught.value.details["row"] == 2
    assert caught.value.details["field"] == field
    assert reason in caught.value.details["reason"]


def test_one_empty_answer_is_a_preference() -> None:
    assert load_dataset([{"prompt": "a", "chosen": "", "rejected": "c"}]).peek()[0]["chosen"] == ""


@pytest.mark.parametrize("label", ["perhaps", 2, 0.5, None, []])
def test_bad_labels(label: Any) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset([{"prompt": "a", "completion": "b", "label": label}]).validate()
    assert caught.value.details["field"] == "label"


# Shapes


def test_conversions() -> None:
    pair = [{"prompt": [SYSTEM, user("a")], "completion": [bot("b")]}]
    chat = load_dataset(pair, accepts=("conversation",))
    assert chat.peek() == [{"messages": [SYSTEM, user("a"), bot("b")]}]
    assert chat.describe() == "list: prompt_completion -> conversation, 1 row"

    back = load_dataset([{"messages": [user("a"), bot("b"), user("c"), bot("d")]}], accepts=("prompt_completion",))
    assert back.peek() == [{"prompt": [user("a"), bot("b"), user("c")], "completion": [bot("d")]}]

    text = load_dataset(pair, accepts=("text",))
    assert text.peek() == [{"text": "System: be brief\n\nUser: a\n\nAssistant: b"}]
    assert load_dataset([{"prompt": "a", "completion": " b"}], accepts=("text",)).peek() == [{"text": "a b"}]


def test_conversion_of_a_single_row_may_fail() -> None:
    data = load_dataset([{"messages": [user("a"), bot("b"), user("c")]}], accepts=("prompt_completion",))
    with pytest.raises(DataError, match="ends with a user message"):
        data.validate()
    tools = {"messages": [user("a"), bot("b")], "tools": [{"name": "f"}]}
    with pytest.raises(DataError, match="cannot be written as plain text"):
        load_dataset([tools], accepts=("text",)).validate()


def test_native_shape_wins_over_order() -> None:
    data = load_dataset([{"messages": [user("a"), bot("b")]}], accepts=("prompt_completion", "conversation"))
    assert data.schema == "conversation"


def test_format_is_chosen_by_what_the_step_takes() -> None:
    row = {"prompt": "a", "chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")], "text": "t"}
    assert load_dataset([row], accepts=("preference",)).format == "preference"
    row = {"prompt": "a", "completion": "b", "text": "t"}
    assert load_dataset([row], accepts=("text",)).peek() == [{"text": "t"}]
    assert load_dataset([row], accepts=("prompt_completion",)).peek() == [{"prompt": "a", "completion": "b"}]


def test_wrong_shape_says_both_sides() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset([{"text": "a"}], accepts=("preference",))
    assert caught.value.code == "wrong-shape"
    assert caught.value.message == "list holds text rows (text), which this step does not take."
    assert "preference: {prompt, chosen, rejected}" in caught.value.asked


# Columns


def test_columns_rename() -> None:
    rows = [{"q": "a", "a": "b", "messages": "unrelated"}]
    data = load_dataset(rows, columns={"prompt": "q", "completion": "a"})
    assert data.peek() == [{"prompt": "a", "completion": "b"}]
    data = load_dataset(rows, format="question_answer", columns={"question": "q", "answer": "a"})
    assert data.peek() == [{"prompt": [user("a")], "completion": [bot("b")]}]
    assert load_dataset([{"body": "a", "x": 1}], columns={"text": "body"}).peek() == [{"text": "a"}]
    # Names can be swapped, and one field may keep its name.
    assert load_dataset(
        [{"prompt": "x", "completion": "y"}], columns={"prompt": "completion", "completion": "prompt"}
    ).peek() == [{"prompt": "y", "completion": "x"}]
    assert load_dataset([{"prompt": "x", "reply": "y"}], columns={"completion": "reply"}).peek() == [
        {"prompt": "x", "completion": "y"}
    ]


def test_lists_of_lines_become_text() -> None:
    rows = [{"title": "t", "paragraphs": ["one", "two"]}]
    assert load_dataset(rows, columns={"text": "paragraphs"}).peek() == [{"text": "one\ntwo"}]


def test_unknown_columns() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset([{"Instruktion": "a", "Output": "b"}], accepts=("prompt_completion", "conversation"))
    error = caught.value
    assert error.code == "unknown-columns"
    assert "'Instruktion', 'Output'" in error.found
    assert "prompt_completion: {prompt, completion} or conversation: {messages}" in error.asked
    assert error.suggestions == ("alpaca (instruction, output)",)
    assert "columns={" in error.fix
    assert "alpaca" in error.fix
    assert "kto" not in error.fix


def test_missing_column_names_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset([{"question": "a", "answer": "b"}], columns={"prompt": "qestion"})
    assert caught.value.code == "missing-column"
    assert caught.value.suggestions == ("question",)


def test_format_that_does_not_fit() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset([{"instructions": "a", "output": "b"}], format="alpaca")
    assert caught.value.code == "format-columns"
    assert caught.value.suggestions == ("instructions",)
    with pytest.raises(DataError) as caught:
        load_dataset([{"instruction": "a", "output": "b"}], format="alpacca")
    assert caught.value.code == "unknown-format"
    assert "alpaca" in caught.value.suggestions
    with pytest.raises(DataError, match="has no field 'prompt'"):
        load_dataset([{"instruction": "a", "output": "b"}], format="alpaca", columns={"prompt": "instruction"})


def test_text_rules_are_for_text_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="rule for plain text files"):
        load_dataset(path, format="lines")


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": True},
        {"limit": 1.5},
        {"on_bad_row": "ignore"},
        {"columns": {"text": 1}},
        {"accepts": "text"},
    ],
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        load_dataset([{"text": "a"}], **wrong)


# Objects


@pytest.mark.parametrize("thing", [5, None, {"text": ["a"]}, b"text", object()])
def test_no_data_set(thing: Any) -> None:
    with pytest.raises(DataError, match="is no data set"):
        load_dataset(thing)


def test_empty_objects() -> None:
    nothing: tuple[Any, ...] = ([], (), iter(()))
    for empty in nothing:
        with pytest.raises(DataError) as caught:
            load_dataset(empty)
        assert caught.value.code == "empty-dataset"


def test_rows_that_are_no_rows() -> None:
    with pytest.raises(DataError, match="row 1: is text, not a row with named fields"):
        load_dataset(["a"])
    with pytest.raises(DataError, match="row 2: is a list, not a row"):
        load_dataset([{"text": "a"}, ["b"]]).validate()


def test_generators_are_read_once_and_kept() -> None:
    taken = 0

    def numbers() -> Iterator[dict[str, Any]]:
        nonlocal taken
        while True:  # endless
            taken += 1
            yield {"text": f"row {taken}"}

    data = load_dataset(numbers(), limit=30)
    assert data.format == "text"
    first = list(data.rows())
    assert first == list(data.rows())
    assert len(first) == len(data) == 30
    assert taken <= 31
    assert data.describe() == "generator: text, the first 30 rows"


def test_a_generator_that_fails_never_looks_complete() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        for n in range(30):
            yield {"text": f"row {n}"}
        raise RuntimeError("lost connection")

    data = load_dataset(broken())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="lost connection"):
            list(data.rows())


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["a", "b", None], "completion": ["x", "y", "z"], "score": [1.5, None, 2]})
    data = load_dataset(frame, on_bad_row="skip")
    assert list(data.rows()) == [{"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "y"}]
    assert data.bad_rows == [(3, "field 'prompt' is null")]
    assert data.name == "DataFrame"
    numbers = pandas.DataFrame({"prompt": ["a", "b"], "completion": ["x", "y"], "label": [True, False]})
    assert [row["label"] for row in load_dataset(numbers).rows()] == [True, False]


def test_datasets_objects() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": [user("a"), bot(f"b{n}")]} for n in range(3)]
    data = load_dataset(datasets.Dataset.from_list(rows))
    assert list(data.rows()) == rows
    assert data.name == "datasets.Dataset"
    stream = load_dataset(datasets.Dataset.from_list(rows).to_iterable_dataset())
    assert list(stream.rows()) == list(stream.rows()) == rows
    with pytest.raises(DataError, match="several data sets") as caught:
        load_dataset(datasets.DatasetDict(train=datasets.Dataset.from_list(rows)))
    assert "train" in caught.value.found


def test_a_dataset_may_be_passed_on() -> None:
    first = load_dataset([{"instruction": f"q{n}", "output": "b"} for n in range(5)])
    second = load_dataset(first.take(3), accepts=("conversation",), limit=2)
    assert [row["messages"][0]["content"] for row in second.rows()] == ["q0", "q1"]
    with pytest.raises(DataError, match="canonical rows"):
        load_dataset(first, format="alpaca")


def test_hub_ids_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset("nobody-here/no-such-set")
    assert caught.value.code == "hub"
    assert "There is no file nobody-here/no-such-set" in caught.value.message
    # Spelt like a path in a folder that is there, or like a file: no hub.
    (tmp_path / "data").mkdir()
    for ref in ("data/alpaca", "owner/rows.jsonl", "./owner/name", "a/b/c"):
        with pytest.raises(DataError) as caught:
            load_dataset(ref)
        assert caught.value.code == "missing-file"


def test_strange_references() -> None:
    for ref in ("", "\x00", "x" * 5000, "~nobody-at-all/x.json"):
        with pytest.raises(DataError):
            load_dataset(ref)


# The data set itself


def rows_of(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(n)]


def test_rows_are_fresh_on_every_pass() -> None:
    data = load_dataset([{"messages": [user("a"), bot("b")]}])
    row = data.peek()[0]
    row["messages"][0]["content"] = "changed"
    row["messages"].clear()
    assert data.peek() == [{"messages": [user("a"), bot("b")]}]


def test_limit_counts_usable_rows() -> None:
    rows: list[dict[str, Any]] = [{"text": ""}, {"text": "a"}, {"text": None}, {"text": "b"}, {"text": "c"}]
    data = load_dataset(rows, limit=2, on_bad_row="skip")
    assert [row["text"] for row in data.rows()] == ["a", "b"]
    assert [number for number, _ in data.bad_rows] == [1, 3]
    assert data.take(1).peek(5) == [{"text": "a"}]
    with pytest.raises(DataError):
        data.take(0)


def test_nothing_left_is_empty() -> None:
    data = load_dataset([{"text": ""}, {"text": " "}], on_bad_row="skip")
    with pytest.raises(DataError) as caught:
        list(data.rows())
    assert caught.value.code == "empty-dataset"
    assert caught.value.message == "list: all 2 rows are bad."


def test_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows_of(5)))
    moved = tmp_path / "b.jsonl"
    moved.write_bytes(path.read_bytes())
    base = load_dataset(path).fingerprint()
    assert len(base) == 64
    assert load_dataset(path).fingerprint() == base == load_dataset(moved).fingerprint()
    others = [
        load_dataset(path, limit=3).fingerprint(),
        load_dataset(path, accepts=("conversation",)).fingerprint(),
        load_dataset(path, columns={"prompt": "completion", "completion": "prompt"}).fingerprint(),
        load_dataset(path, on_bad_row="skip").fingerprint(),
        load_dataset(path).take(4).fingerprint(),
    ]
    moved.write_bytes(path.read_bytes() + b"\n")
    others.append(load_dataset(moved).fingerprint())
    assert len({base, *others}) == 7

    memory = load_dataset(rows_of(5)).fingerprint()
    assert memory == load_dataset(iter(rows_of(5))).fingerprint() == load_dataset(freeze(rows_of(5))).fingerprint()
    assert memory != load_dataset(rows_of(6)).fingerprint()


def test_length_and_repr() -> None:
    data = load_dataset(rows_of(5), limit=3)
    assert bool(data)
    assert len(data) == 3
    assert repr(data) == "<Dataset 'list': prompt_completion -> prompt_completion, limit=3>"
    assert isinstance(data, Dataset)
    assert data.describe() == "list: prompt_completion, 3 of 5 rows"


def test_plain_text_of_messages() -> None:
    assert to_text("a") == "a"
    assert to_text([user("a")]) == "a"
    assert to_text([SYSTEM, user("a"), bot("b")]) == "System: be brief\n\nUser: a\n\nAssistant: b"
    assert (
        to_text([{"role": "assistant", "content": "", "tool_calls": [CALL]}])
        == '[{"name": "f", "arguments": {"x": 1}}]'
    )
    assert as_messages("a", "assistant") == [bot("a")]
    assert plain_pair("a", " b") == ("a", " b")
    assert plain_pair([user("a")], [bot("b")]) == ("a\n\n", "b")
    prompt, completion = plain_pair([user("a"), bot("b"), user("c")], [bot("d")])
    assert prompt + completion == to_text([user("a"), bot("b"), user("c"), bot("d")])
    assert prompt.endswith("Assistant:")


def test_import_is_light() -> None:
    code = (
        "import sys\n"
        "from tunekit.data import load_dataset\n"
        "assert load_dataset([{'text': 'a'}]).peek() == [{'text': 'a'}]\n"
        "heavy = {'torch', 'numpy', 'pandas', 'datasets', 'pyarrow', 'pydantic', 'yaml', 'pluggy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Formats that make several rows of one


def spread(row: dict[str, Any]) -> Any:
    if row["text"] is None:
        raise RowProblem("text", "is null")
    return [{"text": part} for part in row["text"].split()]


SPREAD = Format(name="spread", schema="text", columns=("text", "spread"), convert=spread, provider="acme")


def spread_rows(path: Path, *texts: str | None) -> Path:
    path.write_text("".join(json.dumps({"text": text, "spread": 1}) + "\n" for text in texts))
    return path


def test_one_row_may_give_several(tmp_path: Path) -> None:
    path = spread_rows(tmp_path / "a.jsonl", "a b", "", "c d e")
    data = load_dataset(path, format="spread", formats=[SPREAD])
    assert [row["text"] for row in data.rows()] == list("abcde")
    assert (len(data), data.total(), data.expands, data.bad_rows) == (5, 3, True, [])
    assert data.describe() == "a.jsonl: acme/spread -> text, 5 rows made of 3 rows"
    numbers = [raw.number for raw, _ in data.read()]
    assert numbers == [1, 1, 3, 3, 3]


def test_the_limit_counts_what_comes_of_the_rows(tmp_path: Path) -> None:
    path = spread_rows(tmp_path / "a.jsonl", "a b", "c d e", "f")
    data = load_dataset(path, format="spread", formats=[SPREAD], limit=3)
    assert [row["text"] for row in data.rows()] == list("abc") and len(data) == 3
    assert [row["text"] for row in data.take(1)] == ["a"]
    assert data.describe().endswith(", 3 rows")
    prints = {load_dataset(path, format="spread", formats=[SPREAD], limit=n).fingerprint() for n in (None, 3, 4)}
    assert len(prints) == 3


def test_a_fault_in_one_of_them_is_a_fault_of_the_row(tmp_path: Path) -> None:
    path = spread_rows(tmp_path / "a.jsonl", "a b", None, "c \x00 d", "e")
    with pytest.raises(DataError, match="row 2: field 'text' is null"):
        list(load_dataset(path, format="spread", formats=[SPREAD]).rows())
    data = load_dataset(path, format="spread", formats=[SPREAD], on_bad_row="skip")
    assert [row["text"] for row in data.rows()] == ["a", "b", "e"]
    assert [number for number, _ in data.bad_rows] == [2, 3]
    assert data.describe() == "a.jsonl: acme/spread -> text, 3 rows, 2 bad rows left out"


# Size


def test_opening_does_not_depend_on_the_size_of_the_file(tmp_path: Path) -> None:
    """A file of 6 GB of which only the start can be read: whatever reads on meets NULs, and a line without end."""
    path = tmp_path / "large.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(1000)))
    os.truncate(path, 6 << 30)
    data = load_dataset(path)
    assert data.describe() == "large.jsonl: text, 6,144 MB"
    assert load_dataset(path, limit=5).describe() == "large.jsonl: text, the first 5 rows"
    assert data.peek(2) == [{"text": "row 0"}, {"text": "row 1"}]
    assert load_dataset(mix({str(path): 1, str(tmp_path / "l*.jsonl"): 1})).describe().endswith("50% l*.jsonl (text)")
    assert len(load_dataset(path, limit=500)) == 500
    assert not [
        finding for finding in Pipeline().pretrain(data=path).check() if finding.step and finding.level == "error"
    ]
