"""Whatever JSON stands in the fields: a row is refused, or what it becomes is canonical. Never another exception."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tunekit.data import SCHEMAS, load_dataset
from tunekit.data.detection import detect
from tunekit.data.formats import FORMATS, Format
from tunekit.data.rows import RowProblem
from tunekit.data.schemas import CONVERSIONS, validate_row
from tunekit.errors import DataError
from tunekit.testing.data_format_suite import BUILT_IN_ROWS

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

some = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

WORDS = st.sampled_from(
    ["user", "assistant", "prompter", "human", "gpt", "function_call", "tool", "hello", "true", "1", "-1", "0.5",
     "1e999", "nan", '{"name": "f"}', '[{"role": "user", "content": "a"}]', "\n\nHuman: a\n\nAssistant: b", "", " ",
     "\x00", "\ud800", "[" * 2000]
)  # fmt: skip
KEYS = st.sampled_from(
    ["role", "content", "from", "value", "text", "replies", "rank", "emojis", "+1", "-1", "tool_calls", "function",
     "name", "arguments", "type", "response", "answer", "score", "annotations", "Rating", "deleted", "thinking"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | WORDS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)
COLUMNS = sorted(
    {name for form in FORMATS for name in (*form.columns, *form.optional)}
    | {
        name
        for form in FORMATS
        for groups in form.aliases.values()
        for group in groups
        for name in group.strip("?").split()
    }
    | {str(number) for number in range(1, 5)}
)


def canonical(made: Any, schema: str) -> None:
    """Each row is of the shape, stays what it is when it is checked again, and can be stored as JSON in UTF-8."""
    for row in made if isinstance(made, list) else [made]:
        checked = validate_row(row, schema)
        assert set(SCHEMAS[schema]) <= set(checked)
        stored = json.dumps(checked, ensure_ascii=False, allow_nan=False).encode()
        assert validate_row(copy.deepcopy(checked), schema) == checked == json.loads(stored)
        for (have, want), (change, _) in CONVERSIONS.items():
            if have == schema:
                try:
                    changed = change(copy.deepcopy(checked))
                except RowProblem:
                    continue
                for one in changed if isinstance(changed, list) else [changed]:
                    assert validate_row(one, want) == one


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A good value in which any part may be anything."""
    if draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    if isinstance(value, dict):
        return {key: mutated(draw, item) for key, item in value.items()} | draw(
            st.dictionaries(KEYS, VALUES, max_size=1)
        )
    if isinstance(value, list):
        return [mutated(draw, item) for item in value] + draw(st.lists(VALUES, max_size=1))
    return value


@st.composite
def spoilt(draw: st.DrawFn, row: dict[str, Any]) -> dict[str, Any]:
    return {str(key): mutated(draw, value) for key, value in row.items()}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_format_converts_or_refuses(form: Format) -> None:
    names = st.sampled_from([*form.columns, *form.optional, "tools", "system", "history"])
    rows = st.one_of(spoilt(BUILT_IN_ROWS[form.name]), st.dictionaries(names, VALUES, max_size=6))

    @some
    @given(row=rows)
    def run(row: dict[str, Any]) -> None:
        before = copy.deepcopy(row)
        assert form.looks([row]) in (0, 1, 2)
        try:
            made = form.convert(row)
            canonical(made, form.schema)
        except RowProblem as problem:
            assert problem.reason
        assert repr(row) == repr(before), "the row is the caller's"

    run()


@some
@given(rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6), min_size=1, max_size=4))
def test_detection_finds_readings_or_none(rows: list[dict[str, Any]]) -> None:
    for reading in detect(rows):
        assert reading.level in (1, 2)
        assert set(reading.columns.values()) <= {name for row in rows for name in row}
    for accepts in (
        (),
        ("classification",),
        ("prompt_completion", "conversation", "text"),
        ("preference",),
        ("regression",),
    ):
        try:
            data = load_dataset(rows, accepts=accepts, on_bad_row="skip")
            read = list(data.rows())
        except DataError as error:
            assert str(error) and error.code
            continue
        assert not accepts or data.schema in accepts
        for row in read:
            assert validate_row(row, data.schema) == row


@some
@given(
    rows=st.lists(
        st.lists(WORDS | st.sampled_from(["one two three", "4", "2.5", "x"]), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    ),
    accepts=st.sampled_from([(), *((schema,) for schema in SCHEMAS)]),
)
def test_tables_without_names(rows: list[list[str]], accepts: tuple[str, ...]) -> None:
    table = [{str(number): cell for number, cell in enumerate(row, 1)} for row in rows]
    try:
        data = load_dataset(table, accepts=accepts, on_bad_row="skip")
        for row in data.rows():
            assert validate_row(row, data.schema) == row
    except DataError as error:
        assert str(error) and error.code


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    deep: Any = "x"
    tree: dict[str, Any] = {"text": "end", "role": "assistant", "replies": []}
    huge = 10**5000
    for level in range(3000):
        deep = {"a": deep} if level % 2 else [deep]
        tree = {"text": "a", "role": "prompter" if level % 2 else "assistant", "replies": [tree]}
    for form in FORMATS:
        for name in (*form.columns, "tools"):
            for value in (deep, [deep], huge, [huge, huge]):
                row = {**BUILT_IN_ROWS[form.name], name: value}
                try:
                    assert form.looks([row]) in (0, 1, 2)
                    canonical(form.convert(row), form.schema)
                except RowProblem:
                    continue
    for form in FORMATS:
        if form.rivals == "tree":
            row = {**tree, "message_tree_id": "1", "prompt": tree}
            with pytest.raises(RowProblem, match="nested more than 500 deep"):
                form.convert(row)
