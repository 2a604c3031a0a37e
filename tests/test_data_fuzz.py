"""Whatever the bytes: a DataError, or rows that are canonical. Never a crash, never a hang."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import SCHEMAS, load_dataset
from tunekit.data.schemas import validate_row
from tunekit.errors import DataError

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ENDINGS = ["json", "jsonl", "csv", "tsv", "txt", "json.gz", "parquet"]

often = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

fragments = st.sampled_from(
    [b'{"text": "a"}', b"{", b"}", b"[", b"]", b",", b'"', b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\xff", b"\x00",
     b"\t", b"text", b"prompt,completion", b"a,b", b"null", b'\\ud800', b"\xe2\x80\xa8", b"1e999", b"<|endoftext|>"]
)  # fmt: skip
data_bytes = st.one_of(st.binary(max_size=200), st.lists(fragments, max_size=25).map(b"".join))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
names = st.sampled_from(
    ["text", "prompt", "completion", "chosen", "rejected", "label", "messages", "conversations", "instruction", "input",
     "output", "tools", "history", "system", "question", "answer"]
)  # fmt: skip
message = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "tool_calls", "name"]),
    st.sampled_from(["user", "assistant", "human", "gpt", "function_call", "hello", '{"name": "f"}', ""]) | values,
    max_size=4,
)
cells = values | st.lists(message, max_size=3)


def read(ref: Any, **options: Any) -> None:
    for skip in ("error", "skip"):
        try:
            data = load_dataset(ref, on_bad_row=skip, **options)
            rows = list(data.rows())
        except DataError as error:
            assert str(error)
            assert error.code
            continue
        assert len(data) == len(rows) > 0
        for row in rows:
            assert set(SCHEMAS[data.schema]) <= set(row)
            assert validate_row(row, data.schema) == row
            json.dumps(row, ensure_ascii=False).encode()
        assert data.describe()


@often
@given(content=data_bytes, ending=st.sampled_from(ENDINGS))
def test_any_bytes(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"fuzz.{ending}"
    path.write_bytes(content)
    read(path)


@often
@given(rows=st.lists(st.dictionaries(names, cells, max_size=6), max_size=4))
def test_any_rows(rows: list[dict[str, Any]]) -> None:
    read(rows)
    for accepts in (("text",), ("prompt_completion",), ("conversation",), ("preference",)):
        read(rows, accepts=accepts)


@often
@given(rows=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=5))
def test_csv_agrees_with_the_csv_module(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("prompt", "completion"), *rows])
    path = tmp_path / "fuzz.csv"
    try:
        path.write_bytes(stream.getvalue().encode())
    except UnicodeEncodeError:
        return
    try:
        data = list(load_dataset(path, on_bad_row="skip").rows())
    except DataError as error:
        assert error.code in ("empty-dataset", "encoding", "csv-syntax")
        return
    good = [(a, b) for a, b in rows if a.strip() and b.strip()]
    assert [(row["prompt"], row["completion"]) for row in data] == [
        (a.replace("\r\n", "\n"), b.replace("\r\n", "\n")) for a, b in good
    ]
