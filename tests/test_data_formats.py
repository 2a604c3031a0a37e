"""Formats of judged, ranked, nested and labelled data: how they are recognised, and what their rows become."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import Format, label_counts, label_names, load_dataset
from tunekit.data.formats import FORMATS
from tunekit.data.schemas import MOST_PAIRS, SCHEMAS, validate_row
from tunekit.errors import DataError

SFT = ("prompt_completion", "conversation", "text")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def thumb(label: bool, asked: str = "a", answer: str = "b") -> dict[str, Any]:
    return {"prompt": [user(asked)], "completion": [bot(answer)], "label": label}


CASES: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("thumbs", {"prompt": "a", "response": "b", "label": True}, [thumb(True)]),
    ("thumbs", {"question": "a", "answer": "b", "thumbs": "\N{THUMBS DOWN SIGN}"}, [thumb(False)]),
    ("thumbs", {"instruction": "a", "input": "x", "output": "b", "rating": "Good"}, [thumb(True, "a\n\nx")]),
    ("thumbs", {"prompt": "a", "completion": "b", "rating": -1}, [thumb(False)]),
    ("thumbs", {"query": "a", "response": "b", "vote": "up", "id": 3}, [thumb(True)]),
    ("kto", {"messages": [user("a"), bot("b")], "feedback": "thumbs_down"}, [thumb(False)]),
    ("votes", {"prompt": "a", "response": "b", "thumbs_up": 3, "thumbs_down": 1}, [thumb(True)]),
    ("votes", {"question": "a", "answer": "b", "likes": "0", "dislikes": "2"}, [thumb(False)]),
    ("emojis", {"prompt": "a", "response": "b", "emojis": {"+1": 1, "-1": 4, "_skip_reply": 9}}, [thumb(False)]),
    (
        "ranked",
        {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [7, 1, "7"]},
        [{"prompt": "a", "completions": ["b", "c", "d"], "ranks": [1, 0, 1]}],
    ),
    (
        "best_first",
        {"instruction": "a", "input": "", "output": ["b", "c"], "history": [["q", "r"]]},
        [{"prompt": [user("q"), bot("r"), user("a")], "completions": [[bot("b")], [bot("c")]], "ranks": [0, 1]}],
    ),
    (
        "scored",
        {"prompt": "a", "responses": ["b", "c", "d"], "scores": [0.5, "2", 0.5]},
        [{"prompt": [user("a")], "completions": [[bot("b")], [bot("c")], [bot("d")]], "ranks": [1, 0, 1]}],
    ),
    (
        # UltraFeedback as published: the ratings of the aspects say more than overall_score, which is often wrong.
        "rated",
        {
            "source": "x",
            "instruction": "a",
            "models": ["m", "n"],
            "completions": [
                {"response": "b", "overall_score": 10, "annotations": {"truth": {"Rating": "1"}, "x": {"Rating": 2}}},
                {"response": "c", "overall_score": 5, "annotations": {"t": {"Rating": "N/A"}, "x": [{"Rating": 4}]}},
            ],
        },
        [{"prompt": [user("a")], "completions": [[bot("b")], [bot("c")]], "ranks": [1, 0]}],
    ),
    (
        # Nectar
        "rated",
        {"prompt": "\n\nHuman: a\n\nAssistant:", "answers": [{"answer": "b", "rank": 2.0}, {"answer": "c", "rank": 1}]},
        [{"prompt": [user("a")], "completions": [[bot("b")], [bot("c")]], "ranks": [1, 0]}],
    ),
    (
        # UltraFeedback, binarized: prompt, conversation and scores beside the two
        "preference",
        {
            "prompt": "a",
            "prompt_id": "1",
            "messages": [user("a"), bot("b")],
            "chosen": [user("a"), bot("b")],
            "rejected": [user("a"), bot("c")],
            "score_chosen": 8.5,
            "score_rejected": 7.0,
        },
        [{"prompt": [user("a")], "chosen": [bot("b")], "rejected": [bot("c")]}],
    ),
    ("classification", {"text": "a", "label": 1}, [{"text": "a", "label": "1"}]),
    ("classification", {"sentence": "a", "category": "x", "idx": 4}, [{"text": "a", "label": "x"}]),
    ("classification", {"review": "a", "sentiment": False}, [{"text": "a", "label": "false"}]),
    (
        "classification",
        {"premise": "a", "hypothesis": "b", "label": 2.0},
        [{"text": "a", "text_pair": "b", "label": "2"}],
    ),
    ("classification", {"question": "a", "intent": "x"}, [{"text": "a", "label": "x"}]),
    ("classification", {"ID": 4, "Text": "a", "Sentiment": "x"}, [{"text": "a", "label": "x"}]),
    ("alpaca", {"Instruction": "a", "Input": "", "Output": "b"}, [{"prompt": [user("a")], "completion": [bot("b")]}]),
    ("regression", {"text": "a", "score": 3}, [{"text": "a", "score": 3.0}]),
    (
        "regression",
        {"sentence1": "a", "sentence2": "b", "label": 3.8},
        [{"text": "a", "text_pair": "b", "score": 3.8}],
    ),
    ("regression", {"review": "a", "stars": "4.5"}, [{"text": "a", "score": 4.5}]),
    ("token_classification", {"words": ["a"], "tags": ["B-X"]}, [{"tokens": ["a"], "tags": ["B-X"]}]),
    (
        "token_classification",
        {"id": "0", "tokens": ["a", "b"], "pos_tags": [1, 2], "chunk_tags": [3, 4], "ner_tags": [0, 5]},
        [{"tokens": ["a", "b"], "tags": ["0", "5"]}],
    ),
    ("paragraphs", {"title": "t", "content": ["a", "b"]}, [{"text": "t\na\nb"}]),
    ("content", {"content": "a", "url": "u"}, [{"text": "a"}]),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "tool_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "tool-response", "value": "1"},
                {"from": "AI", "value": "b"},
            ]
        },
        [
            {
                "messages": [
                    user("a"),
                    bot("") | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
                    {"role": "tool", "content": "1"},
                    bot("b"),
                ]
            }
        ],
    ),
    (
        "openai",
        {"messages": [user("a"), {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]}]},
        [{"messages": [user("a"), bot("b")]}],
    ),
    (
        "instruction_response",
        {"instruction": "a", "context": "c", "response": "b", "category": "x"},
        [{"prompt": [user("a\n\nc")], "completion": [bot("b")]}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "canonical"), CASES)
def test_formats(name: str, row: dict[str, Any], canonical: list[dict[str, Any]]) -> None:
    data = load_dataset([row])
    assert data.format == name
    assert list(data.rows()) == canonical
    assert list(load_dataset([row], accepts=(data.schema,)).rows()) == canonical
    assert list(load_dataset([row], format=name).rows()) == canonical
    for made in canonical:
        assert validate_row(made, data.schema) == made


def test_every_shape_has_a_format_with_its_fields() -> None:
    """Rows written in a canonical shape are read as that shape."""
    assert all(any(form.schema == schema and form.columns == SCHEMAS[schema] for form in FORMATS) for schema in (
        "ranked", "classification", "token_classification", "regression", "feedback", "preference", "text"
    ))  # fmt: skip
    assert len({form.name for form in FORMATS}) == len(FORMATS)


def test_the_table_of_formats_is_complete_and_true() -> None:
    page = (Path(__file__).parents[1] / "docs/how-to/use-your-data.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| (\w+) \| `(\{.*\})` \|$", page, re.M)
    assert sorted(name for name, _, _ in table) == sorted(form.name for form in FORMATS)
    for name, schema, written in table:
        data = load_dataset([json.loads(written)], accepts=(schema,))
        assert (data.format, data.schema) == (name, schema)
        assert len(data) == 1


# ---------------------------------------------------------------- which format it is


def test_a_bad_first_row_does_not_hide_the_format(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": None}, *({"instruction": "a", "output": ["b", "c"]} for _ in range(4))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    nulls = load_dataset([{"text": "a", "label": None}] * 3 + [{"text": "a", "label": "x"}], on_bad_row="skip")
    assert (nulls.format, len(nulls)) == ("classification", 1)
    data = load_dataset(path, on_bad_row="skip")
    assert (data.format, len(data), data.bad_rows) == ("best_first", 4, [(1, "field 'output' is null")])


def test_the_description_says_what_was_decided() -> None:
    data = load_dataset([{"sentence": "a", "category": "x"}])
    assert data.describe() == "list: classification (text: sentence, label: category), 1 row"
    assert data.columns == {"text": "sentence", "label": "category"}
    same = load_dataset([{"sentence": "a", "category": "x"}], columns={"text": "sentence", "label": "category"})
    assert same.describe() == "list: classification, 1 row" and same.fingerprint() == data.fingerprint()
    data = load_dataset(
        [{"prompt": "a", "response": "b", "up": 2, "down": 2}, {"prompt": "a", "response": "b", "up": 1}]
    )
    with pytest.raises(DataError, match="'thumbs_down' is missing"):
        list(data.rows())
    rated = load_dataset([{"prompt": "a", "response": "b", "rating": n} for n in (1, 5, 4)])
    assert rated.describe() == "list: prompt_response -> prompt_completion (not used: rating), 3 rows"
    data = load_dataset([{"prompt": "a", "response": str(n), "up": n, "down": 2} for n in range(5)])
    assert "the majority of the votes; answers without one are left out" in data.describe()
    assert [row["label"] for row in data.rows()] == [False, False, True, True]


@pytest.mark.parametrize(
    ("row", "accepts", "schema"),
    [
        ({"text": "a", "label": 3}, ("regression",), "regression"),
        ({"text": "a", "rating": 3}, ("classification",), "classification"),
        ({"text": "a", "rating": 3}, ("regression",), "regression"),
        ({"text": "a", "score": 3}, ("classification",), "classification"),
        ({"text": "a", "label": "x"}, ("text",), "text"),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, ("regression",), "regression"),
    ],
)
def test_the_step_decides_between_two_readings(row: dict[str, Any], accepts: tuple[str, ...], schema: str) -> None:
    assert load_dataset([row], accepts=accepts).schema == schema


@pytest.mark.parametrize(
    ("rows", "accepts", "code", "fix"),
    [
        ([{"text": "a", "rating": 3}], (), "ambiguous-format", 'format="classification", columns={\'label\': '),
        ([{"text": "a", "rating": 3}], (), "ambiguous-format", 'format="regression", columns={\'score\': \'rating\'}'),
        ([{"text": "a", "class": "x", "topic": "y"}], ("classification",), "ambiguous-columns", "{'label': 'topic'}"),
        ([{"tweet": "a", "review": "b", "label": 1}], (), "ambiguous-columns", "columns={'text': 'tweet'} or"),
        ([{"text": "a", "label": 1.5}], ("classification",), "wrong-shape", "regression"),
        ([{"text": "a", "label": 1}], SFT, "wrong-shape", 'format="text"'),
        ([{"prompt": "a", "response": "b", "rating": n} for n in (-1, 0, 1)], ("feedback",), "wrong-shape", "'rating'"),
        ([{"prompt": "a", "response": "b", "rating": n} for n in (1, 5, 4)], ("feedback",), "wrong-shape", "true or"),
        ([{"prompt": "a", "response": "b", "thumbs": "up"}], SFT, "wrong-shape", "select them"),
        ([{"prompt": "a", "response": "b", "up": 1, "down": 2}], SFT, "wrong-shape", 'format="prompt_response"'),
        ([{"prompt": "a", "response": "b", "rating": n} for n in (1, 0)], SFT, "wrong-shape", "select them"),
        ([{"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"}], (), "unknown-columns", "columns={"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_not_guessed(rows: list[Any], accepts: tuple[str, ...], code: str, fix: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(rows, accepts=accepts)
    assert caught.value.code == code
    assert fix in str(caught.value)


TABLES = [
    ([["9", "b c d"], ["10", "e f g"], ["12", "h i j"]], (), None),
    ([["one two three", "x"], ["four five six", "y"], ["a b c", "x"], ["d e f", "y"]], (), {"text": "1", "label": "2"}),
    ([["x", "one two three"], ["y", "four five six"], ["x", "a b c"], ["x", "d e f"]], (), {"text": "2", "label": "1"}),
    ([["1", "one two three", "0.5"], ["2", "four five six", "1"]], (), {"text": "2", "score": "3"}),
    ([["what is it?", "it is this one"], ["who is it?", "it is not me"]], (), {"question": "1", "answer": "2"}),
    ([["what is it?", "4"], ["who is it?", "70"]], ("classification",), {"text": "1", "label": "2"}),
    ([["one two three"], ["four five six"]], (), {"text": "1"}),
    ([["a b c", "d e f", "no"], ["g h i", "j k l", "no"]], (), {"text": "1", "text_pair": "2", "label": "3"}),
]


@pytest.mark.parametrize(("cells", "accepts", "columns"), TABLES)
def test_columns_without_names_are_told_by_their_values(
    cells: list[list[str]], accepts: tuple[str, ...], columns: dict[str, str] | None
) -> None:
    rows = [{str(number): cell for number, cell in enumerate(line, 1)} for line in cells]
    if columns is None:
        with pytest.raises(DataError, match="without a header"):
            load_dataset(rows, accepts=accepts)
    else:
        assert load_dataset(rows, accepts=accepts).columns == columns


def test_columns_name_the_fields_of_every_format() -> None:
    """One row per format: every column renamed, and named with ``columns=``."""
    from tunekit.testing.data_format_suite import BUILT_IN_ROWS

    for form in FORMATS:
        row = BUILT_IN_ROWS[form.name]
        plain = load_dataset([row], format=form.name)
        named = dict(plain.columns) | {field: field for field in form.columns if field not in plain.columns}
        strange = {f"{column} of mine": row[column] for column in named.values()}
        columns = {field: f"{column} of mine" for field, column in named.items()}
        rest = {name: value for name, value in row.items() if name not in named.values()}
        data = load_dataset([{**strange, **rest}], format=form.name, columns=columns)
        assert list(data.rows()) == list(plain.rows()), form.name


# ---------------------------------------------------------------- rankings


def test_pairs_of_a_ranking_are_bounded_and_the_clearest() -> None:
    answers = [f"answer {number}" for number in range(9)]
    row = {"prompt": "a", "completions": answers, "ranks": list(range(9))}
    pairs = list(load_dataset([row], accepts=("preference",)).rows())
    gaps = [answers.index(pair["rejected"]) - answers.index(pair["chosen"]) for pair in pairs]
    assert len(pairs) == MOST_PAIRS == 10
    assert sorted(gaps) == [5, 5, 5, 5, 6, 6, 6, 7, 7, 8]
    assert pairs[0]["chosen"] == "answer 0"


def test_equal_ranks_and_equal_answers_make_no_pair() -> None:
    row = {"prompt": "a", "completions": ["b", "b", "c", "d"], "ranks": [0, 1, 1, 1], "tools": '[{"name": "f"}]'}
    pairs = list(load_dataset([row], accepts=("preference",)).rows())
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("b", "c"), ("b", "d")]
    assert all(pair["tools"] == [{"type": "function", "function": {"name": "f"}}] for pair in pairs)
    pairs[0]["tools"][0]["function"]["name"] = "changed"
    assert pairs[1]["tools"][0]["function"]["name"] == "f"


def test_a_tree_in_its_published_wrapper() -> None:
    """The full OpenAssistant release wraps each tree; deleted and rejected messages are left out with their replies."""
    reply = {"role": "assistant", "replies": [], "deleted": False, "review_result": True, "emojis": {}}
    root = {
        "text": "a",
        "role": "prompter",
        "replies": [
            {**reply, "text": "gone", "deleted": True, "rank": 0},
            {**reply, "text": "worse", "rank": 2, "emojis": {"+1": 1}},
            {**reply, "text": "spam", "review_result": False, "rank": 1},
            {**reply, "text": "better", "rank": 1, "emojis": {"+1": 0, "-1": 2}},
        ],
    }
    rows = [{"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": root}]
    ranked = list(load_dataset(rows, accepts=("ranked",)).rows())
    assert ranked == [{"prompt": [user("a")], "completions": [[bot("worse")], [bot("better")]], "ranks": [1, 0]}]
    thumbs = list(load_dataset(rows, accepts=("feedback",)).rows())
    assert thumbs == [thumb(True, answer="worse"), thumb(False, answer="better")]
    # More thumbs down than up: not to be learned from, whatever its rank.
    assert list(load_dataset(rows, accepts=SFT).rows()) == [{"messages": [user("a"), bot("worse")]}]


# ---------------------------------------------------------------- what a row must be


@pytest.mark.parametrize(
    ("schema", "row", "field", "reason"),
    [
        ("ranked", {"prompt": "a", "completions": ["b"], "ranks": [0]}, "completions", "a ranking needs two"),
        ("ranked", {"prompt": "a", "completions": ["b", "c"], "ranks": [0]}, "ranks", "has 1 entries for 2"),
        ("ranked", {"prompt": "a", "completions": ["b", "c"], "ranks": [0, 0.5]}, "ranks[1]", "whole numbers"),
        ("ranked", {"prompt": "a", "completions": ["b", "c"], "ranks": [0, True]}, "ranks[1]", "whole numbers"),
        ("ranked", {"prompt": "a", "completions": ["", " "], "ranks": [0, 1]}, "completions", "are all empty"),
        ("ranked", {"prompt": "a", "completions": "bc", "ranks": [0, 1]}, "completions", "is text, not a list"),
        ("classification", {"text": "", "label": "x"}, "text", "is empty"),
        ("classification", {"text": "a", "label": 0.5}, "label", "a measure is a score"),
        ("classification", {"text": "a", "label": ["x"]}, "label", "is a list of 1; a row has one class"),
        ("classification", {"text": "a", "label": " "}, "label", "is empty"),
        ("token_classification", {"tokens": ["a"], "tags": ["O", "O"]}, "tags", "has 2 entries for 1 tokens"),
        ("token_classification", {"tokens": ["a", ""], "tags": ["O", "O"]}, "tokens[1]", "is empty"),
        ("token_classification", {"tokens": [], "tags": []}, "tokens", "is empty"),
        ("token_classification", {"tokens": ["a", 3], "tags": ["O", "O"]}, "tokens[1]", "is a number (3), not text"),
        ("regression", {"text": "a", "score": "x"}, "score", "is 'x', not a number"),
        ("regression", {"text": "a", "score": True}, "score", "is a boolean (True), not a number"),
        ("regression", {"text": "a", "score": "inf"}, "score", "not a finite number"),
        ("regression", {"text": "a", "score": 10**400}, "score", "too large"),
        ("regression", {"text": "a", "score": 1, "text_pair": 3}, "text_pair", "not text"),
    ],
)  # fmt: skip
def test_bad_rows(schema: str, row: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        list(load_dataset([row], format=schema).rows())
    assert caught.value.details["field"] == field
    assert reason in caught.value.details["reason"]


def test_messages_in_rankings_are_all_messages() -> None:
    row = {"prompt": [user("a")], "completions": ["b", [user("a"), bot("c")], bot("d")], "ranks": [3, 2, 1]}
    assert validate_row(row, "ranked") == {
        "prompt": [user("a")],
        "completions": [[bot("b")], [bot("c")], [bot("d")]],
        "ranks": [2, 1, 0],
    }


# ---------------------------------------------------------------- null keys of columnar files


def test_keys_that_arrow_adds_are_dropped() -> None:
    """T11: Arrow gives every object all keys that any object has; neither tools nor arguments may show them."""
    datasets = pytest.importorskip("datasets")

    def row(name: str, arguments: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        parameters = {"type": "object", "properties": schema}
        return {
            "messages": [
                user("go"),
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "1", "tool_call_id": name},
                {"role": "assistant", "content": "done", "reasoning_content": "so"},
            ],
            "tools": [{"type": "function", "function": {"name": name, "parameters": parameters}}],
        }

    rows = [
        row("weather", {"city": "Paris", "days": {"from": 1}}, {"city": {"type": "string", "enum": ["a", "b"]}}),
        row("sum", {"x": 1, "days": {"to": 2}}, {"x": {"type": "number", "default": 0}}),
    ]
    stored = datasets.Dataset.from_list(rows)
    assert stored[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["x"] is None, "the trap is set"
    assert stored[0]["tools"][0]["function"]["parameters"]["properties"]["x"] is None
    assert list(load_dataset(stored).rows()) == rows
    pairs = load_dataset(stored, accepts=("prompt_completion",)).peek()
    assert pairs[0]["tools"] == rows[0]["tools"]
    split = [{"prompt": row["messages"][:1], "completion": row["messages"][1:2], "tools": row["tools"]} for row in rows]
    assert list(load_dataset(datasets.Dataset.from_list(split)).rows()) == split


def test_nulls_in_json_text_are_meant() -> None:
    call = {"name": "f", "arguments": '{"x": null}'}
    rows = [
        {
            "messages": [user("a"), {"role": "assistant", "tool_calls": [call]}],
            "tools": '[{"name": "f", "parameters": {"default": null}}]',
        }
    ]
    (row,) = load_dataset(rows).rows()
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": None}
    assert row["tools"][0]["function"]["parameters"] == {"default": None}


# ---------------------------------------------------------------- labels


def test_label_names_are_sorted_by_what_they_are() -> None:
    def names(*labels: Any) -> list[str]:
        return label_names(load_dataset([{"text": "a", "label": label} for label in labels]))

    assert names(10, 2, -1, 0, 2) == ["-1", "0", "2", "10"]
    assert names("b", "a", "c") == ["a", "b", "c"]
    assert names("b", "10", "9") == ["10", "9", "b"]
    assert names(True, False) == ["false", "true"]
    tagged = [{"tokens": ["a"] * 6, "tags": ["I-PER", "O", "B-LOC", "B-PER", "I-LOC", "E-LOC"]}]
    assert label_names(load_dataset(tagged)) == ["O", "B-LOC", "I-LOC", "E-LOC", "B-PER", "I-PER"]
    assert label_counts(load_dataset([{"text": "a", "label": label} for label in "baabc"])) == {"a": 2, "b": 2, "c": 1}


def test_class_numbers_of_datasets_objects_get_their_names() -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    stored = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    for data in (load_dataset(stored), load_dataset(stored.to_iterable_dataset())):
        assert [row["label"] for row in data.rows()] == ["good", "bad", "-1"]
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER", "I-PER"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags})
    stored = datasets.Dataset.from_dict({"tokens": [["In", "Ann", "Lee"]], "ner_tags": [[0, 1, 2]]}, features=features)
    assert load_dataset(stored).peek() == [{"tokens": ["In", "Ann", "Lee"], "tags": ["O", "B-PER", "I-PER"]}]
    assert load_dataset(stored).total() == 1


def test_labels_that_make_no_classes() -> None:
    many = load_dataset([{"text": "a", "label": f"l{number}"} for number in range(50)])
    assert len(label_names(many)) == 50
    with pytest.raises(DataError, match="more than 20 different labels in its first 21 rows") as caught:
        label_names(many, most=20)
    assert caught.value.code == "too-many-labels"
    with pytest.raises(DataError, match="nothing to tell apart") as caught:
        label_names(load_dataset([{"text": "a", "label": "x"}] * 3))
    assert caught.value.code == "one-label"
    with pytest.raises(DataError, match="has no class and no tags"):
        label_names(load_dataset([{"text": "a"}]))


# ---------------------------------------------------------------- formats of plugins


def test_a_plugins_format_may_give_several_rows_of_a_new_shape() -> None:
    def convert(row: Any) -> Any:
        return [{"text": line, "label": row["verdict"]} for line in row["lines"].split("\n") if line]

    form = Format(
        name="lines_of", provider="acme", schema="classification", columns=("lines", "verdict"), convert=convert
    )
    data = load_dataset([{"lines": "a\nb", "verdict": 1}, {"lines": "", "verdict": 0}], formats=[form])
    assert list(data.rows()) == [{"text": "a", "label": "1"}, {"text": "b", "label": "1"}]
    assert data.format == "acme/lines_of"
    bad = load_dataset([{"lines": "a\nb", "verdict": 1}, {"lines": "c", "verdict": 0.5}], formats=[form])
    with pytest.raises(DataError, match="row 2: field 'label' is a number"):
        list(bad.rows())


# ---------------------------------------------------------------- nothing that belongs to a question is dropped


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"system": "s", "prompt": "a", "completion": "b"}, ["s", "a"]),
        ({"system_prompt": "s", "prompt": [user("a")], "completion": [bot("b")]}, ["s", "a"]),
        ({"system": "s", "prompt": "a", "chosen": "b", "rejected": "c"}, ["s", "a"]),
        (
            {"system": "s", "prompt": "a", "chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")]},
            ["s", "a"],
        ),
        ({"system": "s", "prompt": "a", "completion": "b", "label": True}, ["s", "a"]),
        ({"system": "s", "prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]}, ["s", "a"]),
        ({"system": "s", "chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")]}, ["s", "a"]),
        ({"system": "s", "prompt": "\n\nHuman: a\n\nAssistant:", "answers": ["b", "c"], "scores": [0, 1]}, ["s", "a"]),
        ({"prompt": "a", "input": "x", "response": "b"}, ["a\n\nx"]),
        ({"instruction": "a", "context": "x", "output": "b"}, ["a\n\nx"]),
        ({"input": "a", "context": "x", "output": "b"}, ["a\n\nx"]),
        ({"question": "a", "input": "x", "answer": "b"}, ["a\n\nx"]),
        ({"query": "a", "context": "x", "response": "b", "label": 1}, ["a\n\nx"]),
        ({"system_prompt": "s", "question": "a", "response": "b", "id": "niv.1"}, ["s", "a"]),  # OpenOrca
    ],
)
def test_system_prompts_and_contexts_reach_the_prompt(row: dict[str, Any], prompt: list[str]) -> None:
    [made] = load_dataset([row]).rows()
    assert [message["content"] for message in made["prompt"]] == prompt
    assert "system" not in prompt or made["prompt"][0]["role"] == "system"
    answers = [made[name] for name in ("completion", "chosen", "rejected") if name in made]
    for answer in [*answers, *made.get("completions", [])]:
        assert answer in ([bot("b")], [bot("c")])


def test_two_system_prompts_are_refused_and_unread_columns_are_named() -> None:
    two = {"system": "s", "messages": [{"role": "system", "content": "t"}, user("a"), bot("b")]}
    with pytest.raises(DataError, match="'system' differs from the system message"):
        list(load_dataset([two]).rows())
    data = load_dataset([{"prompt": "a", "completion": "b", "input": "x", "history": []}])
    assert "(not used: input, history)" in data.describe()


def test_answers_of_a_ranking_may_be_called_responses() -> None:
    [row] = load_dataset([{"prompt": "a", "responses": ["b", "c"], "ranks": [2, 1]}]).rows()
    assert row == {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 0]}


@pytest.mark.parametrize(("good", "bad"), [("good", "bad"), ("up", "down"), (1, -1), ("yes", "no"), ("1", "-1")])
def test_every_verdict_is_read_wherever_answers_are_judged(good: Any, bad: Any) -> None:
    messages = {"messages": [user("a"), bot("b")]}
    for row, name in (
        ({"prompt": "a", "completion": "b"}, "label"),
        ({"instruction": "a", "output": "b"}, "kto_tag"),
        ({"prompt": "a", "response": "b"}, "label"),
        (messages, "label"),
    ):
        rows = [{**row, name: value} for value in (good, bad)]
        assert [made["label"] for made in load_dataset(rows, accepts=("feedback",)).rows()] == [True, False], row


def test_whole_numbers_have_one_spelling_as_labels() -> None:
    labels = ["0.0", "1.0", 1.0, 1, "1", "1.00", "v1.0"]
    rows = [{"text": "a", "label": label} for label in labels]
    made = [row["label"] for row in load_dataset(rows, format="classification").rows()]
    assert made == ["0", "1", "1", "1", "1", "1", "v1.0"]


def test_a_table_of_classes_titles_and_texts_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_text(
        "".join(f'"{3 + n % 2}","Wall St. falls {n} times","Reuters - Sellers see green {n}."\n' for n in range(8))
    )
    row = load_dataset(path).peek()[0]
    assert row == {"text": "Wall St. falls 0 times", "text_pair": "Reuters - Sellers see green 0.", "label": "3"}
    path.write_text("".join(f"{n * n % 97},a longer text {n},short{n},x y z {n}\n" for n in range(4, 12)))
    with pytest.raises(DataError) as caught:
        load_dataset(path, accepts=("classification",))
    assert "columns={'text': '2', 'label': '1'}" in caught.value.fix


@pytest.mark.parametrize("more", [{"reasoning_content": "hm"}, {"train": False}, {"weight": 0}, {"loss": False}])
def test_plain_text_does_not_lose_what_messages_say(more: dict[str, Any]) -> None:
    rows = [{"messages": [user("a"), {**bot("b"), **more}]}]
    with pytest.raises(DataError, match=r"messages\[1\]"):
        list(load_dataset(rows, accepts=("text",)).rows())
    assert list(load_dataset(rows, accepts=("conversation",)).rows()) == rows


def test_metadata_in_messages_that_is_no_json_does_not_refuse_the_row() -> None:
    import datetime

    sent = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    [row] = load_dataset([{"messages": [{**user("a"), "sent": sent, "lang": "en"}, bot("b")]}]).rows()
    assert row["messages"] == [{**user("a"), "lang": "en"}, bot("b")]
