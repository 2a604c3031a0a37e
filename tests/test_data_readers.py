"""Files as rows: every file type, and every way a file can be broken."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import load_dataset
from tunekit.data.readers import FileSource
from tunekit.errors import DataError

ROWS = [{"prompt": f"question {n}", "completion": f"answer {n} é 漢 \u2028 end"} for n in range(1, 8)]


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: list[dict[str, str]], delimiter: str, newline: str = "\n") -> str:
    lines = [delimiter.join(rows[0])] + [delimiter.join(row.values()) for row in rows]
    return newline.join(lines) + newline


CONTENTS = {
    "rows.json": json.dumps(ROWS, indent=1),
    "one-line.json": json.dumps(ROWS),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}),
    "wrapped-pretty.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "lines.json": jsonl(ROWS),
    "rows.jsonl": jsonl(ROWS),
    "rows.ndjson": "\n\n" + jsonl(ROWS).replace("\n", "\n\n"),
    "array.jsonl": json.dumps(ROWS, indent=1),
    "crlf.jsonl": jsonl(ROWS).replace("\n", "\r\n"),
    "rows.csv": table(ROWS, ","),
    "crlf.csv": table(ROWS, ",", "\r\n"),
    "semicolons.csv": table(ROWS, ";"),
    "rows.tsv": table(ROWS, "\t"),
    "crlf.tsv": table(ROWS, "\t", "\r\n"),
    "no-ending": json.dumps(ROWS),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("bom", [False, True])
def test_file_types(tmp_path: Path, name: str, gz: bool, bom: bool) -> None:
    path = write(tmp_path / (name + ".gz" * gz), ("\ufeff" if bom else "") + CONTENTS[name])
    data = load_dataset(path)
    assert list(data.rows()) == ROWS
    assert list(data.rows()) == ROWS  # again
    assert data.source == path
    assert len(data) == 7
    assert [row["prompt"] for row in data.peek(2)] == ["question 1", "question 2"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert list(load_dataset(path).rows()) == ROWS
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged\.parquet: is no Parquet file"):
        load_dataset(damaged)


def test_nulls_that_columnar_files_add_are_dropped(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            ]
        }
    ]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert load_dataset(path).peek()[0]["messages"] == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
        },
    ]


def test_single_object_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "one.json", json.dumps(ROWS[0], indent=2))
    assert list(load_dataset(path).rows()) == ROWS[:1]


def test_csv_quoting_and_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", 'prompt,completion\n"two\nlines, ""quoted""",yes\nplain,no\nragged\n')
    data = load_dataset(path)
    assert data.peek(2) == [
        {"prompt": 'two\nlines, "quoted"', "completion": "yes"},
        {"prompt": "plain", "completion": "no"},
    ]
    with pytest.raises(DataError) as caught:
        list(data.rows())
    assert caught.value.message == "q.csv row 3 (line 5): has 1 field, the header has 2."
    assert caught.value.details == {
        "file": str(path),
        "row": 3,
        "line": 5,
        "reason": "has 1 field, the header has 2",
    }


def test_csv_fields_longer_than_the_module_default(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    text = "x" * 300_000
    path = write(tmp_path / "long.csv", f"text\n{text}\n")
    assert load_dataset(path).peek() == [{"text": text}]
    assert csv.field_size_limit() == before


def test_tsv_quotes_are_text_unless_they_wrap_a_field(tmp_path: Path) -> None:
    path = write(tmp_path / "q.tsv", 'prompt\tcompletion\n"start only\tx\n"a ""b"""\ty\n')
    assert list(load_dataset(path).rows()) == [
        {"prompt": '"start only', "completion": "x"},
        {"prompt": 'a "b"', "completion": "y"},
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_text_rules(tmp_path: Path, newline: str) -> None:
    long_lines = write(tmp_path / "lines.txt", newline.join(["a" * 400, "b" * 300, "c" * 200]))
    data = load_dataset(long_lines)
    assert data.format == "lines"
    assert [row["text"] for row in data.rows()] == ["a" * 400, "b" * 300, "c" * 200]

    paragraphs = [f"Name {n}:{newline}{'word ' * 80}" for n in range(40)]
    play = write(tmp_path / "play.txt", (newline * 2).join(paragraphs))
    data = load_dataset(play)
    rows = [row["text"] for row in data.rows()]
    assert data.format == "passages"
    assert "passages of about 2,000 characters" in data.describe()
    assert "\n\n".join(rows) == "\n\n".join(paragraphs).replace("\r\n", "\n")
    assert all(row.startswith("Name ") for row in rows)  # cut at blank lines only
    assert len(rows) == 8

    marked = write(tmp_path / "marked.txt", f"one{newline}<|endoftext|>{newline}two<|endoftext|>three{newline}")
    data = load_dataset(marked)
    assert data.format == "separated"
    assert [row["text"] for row in data.rows()] == ["one", "two", "three"]

    assert [row["text"] for row in load_dataset(marked, format="document").rows()] == [
        "one\n<|endoftext|>\ntwo<|endoftext|>three"
    ]
    assert load_dataset(play, format="lines").peek()[0] == {"text": "Name 0:"}


def test_passages_are_bounded_without_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "wrapped.txt", "\n".join(["short line of text"] * 3000))
    rows = [row["text"] for row in load_dataset(path).rows()]
    assert "\n".join(rows) == "\n".join(["short line of text"] * 3000)
    assert max(map(len, rows)) <= 8000


def test_arrays_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, escapes and numbers that are cut anywhere by the end of a piece are read whole."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for _ in range(60):
        text = "".join(rng.choice(string.printable + '\\"é漢🙂\u2028') for _ in range(rng.randrange(1, 60)))
        rows.append({"text": text, "n": [rng.random(), -12345, None, True], "nested": {"a": [{}, [], ""]}})
    path = write(tmp_path / "rows.json", json.dumps(rows, indent=1, ensure_ascii=rng.random() < 0.5))
    for size in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr("tunekit.data.files.CHUNK", size)
        read = list(FileSource(path, "json").rows())
        assert [row.value for row in read] == rows
        assert [row.number for row in read] == list(range(1, 61))
    lines = path.read_text(encoding="utf-8").split("\n")
    assert all(lines[row.line - 1].strip().startswith("{") for row in read if row.line)


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("empty.json", b"", "empty-dataset", "empty.json holds no rows"),
        ("empty-array.json", b"[]", "empty-dataset", "holds no rows"),
        ("empty-wrapped.json", b'{"data": []}', "empty-dataset", "holds no rows"),
        ("empty.jsonl", b"\n \n\n", "empty-dataset", "holds no rows"),
        ("empty.csv", b"", "empty-dataset", "holds no rows"),
        ("header-only.csv", b"prompt,completion\n", "empty-dataset", "holds no rows"),
        ("empty.tsv", b"\n\n", "empty-dataset", "holds no rows"),
        ("empty.txt", b" \n\n", "empty-dataset", "holds no rows"),
        ("bom-only.jsonl", b"\xef\xbb\xbf", "empty-dataset", "holds no rows"),
        ("empty.jsonl.gz", b"", "empty-dataset", "holds no rows"),
        ("cut.json", b'[{"text": "a"},\n {"text": "b"', "json-syntax", "line 2 column"),
        ("cut-string.json", b'[{"text": "a', "json-syntax", "Unterminated string"),
        ("comma.json", b'[{"text": "a"},]', "json-syntax", "a comma before the closing bracket"),
        ("no-comma.json", b'[{"text": "a"} {"text": "b"}]', "json-syntax", "line 1 column 16 (row 1)"),
        ("open.json", b'[{"text": "a"}', "json-syntax", "the array does not end"),
        ("tail.json", b'[{"text": "a"}]\n[]', "json-syntax", "line 2 column 1 (row 1): more text after the array"),
        ("object.json", b'{"text": "a",\n oops}', "json-syntax", "line 2 column 2"),
        ("not-json.jsonl", b"hello\n", "bad-row", "row 1: is not JSON: Expecting value at column 1"),
        ("list-rows.jsonl", b'["a"]\n["b"]\n', "json-syntax", "more text after the array"),
        ("numbers.json", b"[1, 2]", "bad-row", "row 1: a row must be an object with named fields, found 1"),
        (
            "mixed.json",
            b'[{"text": "a"}, 5]',
            "bad-row",
            "row 2 (line 1): is a number (5), not an object with named fields",
        ),
        ("nul.jsonl", b'{"text": "a"}\n{"text": "b\x00"}\n', "bad-row", "row 2: NUL at byte 12"),
        ("nul.json", b'[{"text": "b\x00"}]', "nul-byte", "NUL"),
        ("nul.txt", b"some text\x00\n", "bad-row", "NUL"),
        ("escaped-nul.jsonl", b'{"text": "b\\u0000"}\n', "bad-row", "field 'text' holds a NUL character"),
        ("surrogate.jsonl", b'{"text": "b\\ud83d"}\n', "bad-row", "half of a surrogate pair"),
        ("latin1.jsonl", '{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"), "bad-row", "row 2: byte 0xe9 at byte 11"),
        ("latin1.json", '[{"text": "a"},\n{"text": "é"}]'.encode("latin-1"), "encoding", "byte 0xe9 at byte 27"),
        ("latin1.csv", "text\na\né\n".encode("latin-1"), "encoding", "line 3: byte 0xe9"),
        ("latin1.tsv", "text\na\né\n".encode("latin-1"), "bad-row", "row 2 (line 3): byte 0xe9"),
        ("latin1.txt", "é\n".encode("latin-1"), "bad-row", "byte 0xe9"),
        ("wide.jsonl", '{"text": "a"}\n'.encode("utf-16"), "encoding", "is UTF-16, not UTF-8"),
        ("wide-no-mark.json", '[{"text": "abcdef"}]'.encode("utf-16-le"), "encoding", "is UTF-16, not UTF-8"),
        ("wide32.csv", "text\na\n".encode("utf-32"), "encoding", "is UTF-32, not UTF-8"),
        ("open-quote.csv", b'text\n"abc\n', "csv-syntax", "a quoted field does not end"),
        ("after-quote.csv", b'text\n"abc"d\n', "csv-syntax", "line 2"),
        ("double.csv", b"text,text\na,b\n", "csv-header", "'text' twice"),
        ("ragged.tsv", b"prompt\tcompletion\na\tb\na\tb\tc\n", "bad-row", "row 2 (line 3): has 3 fields"),
        ("no-gzip.jsonl.gz", None, "unreadable-file", "is no gzip file"),
        ("what.xyz", b"abc", "unknown-file-type", "does not say what is in it"),
        ("open-brackets.jsonl", b"[" * 3, "json-syntax", "JSON syntax error"),
        ("deep-object.jsonl", b'{"a":' * 100_000 + b"\n", "bad-row", "row 1"),
        ("huge-number.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "bad-row", "not usable JSON"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes | None, code: str, says: str) -> None:
    path = tmp_path / name
    if content is None:
        path.write_bytes(b"plain bytes")
    else:
        write(path, content)
    with pytest.raises(DataError) as caught:
        list(load_dataset(path).rows())
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.details["file"] == str(path)


def test_truncated_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", jsonl(ROWS * 500))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut short|damaged"):
        list(load_dataset(path).rows())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no file modes to take away")
def test_unreadable_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write(Path(folder) / "rows.jsonl", jsonl(ROWS))
        load_dataset(path)  # imports what it needs while everything may be read
        path.chmod(0)
        me = os.geteuid()
        if me == 0:  # root may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(DataError, match="may not be read"):
                load_dataset(path)
        finally:
            os.seteuid(me)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose bytes cannot be read")
def test_read_error_of_the_system() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("/proc/self/mem")
    assert caught.value.code == "unreadable-file"
    assert "Input/output error" in caught.value.message


def test_file_that_vanishes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl(ROWS))
    data = load_dataset(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(data.rows())


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "alpaca.json", "[]")
    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path / "alpacca.json"))
    assert caught.value.code == "missing-file"
    assert caught.value.suggestions == (str(tmp_path / "alpaca.json"),)


def test_a_large_jsonl_streams(tmp_path: Path) -> None:
    """Taking ten rows of a 60 MB file reads its start only; a single long line is one row."""
    import tracemalloc

    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "x" * 5000}) + "\n"
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(12_000):
            stream.write(line)
    tracemalloc.start()
    data = load_dataset(path)
    assert len(data.peek(10)) == 10
    assert data.validate() == 12_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20

    long = write(tmp_path / "long.jsonl", json.dumps({"text": "y" * 10_000_000}) + "\n")
    assert len(load_dataset(long).peek()[0]["text"]) == 10_000_000


def test_a_large_array_streams(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "large.json"
    item = json.dumps({"text": "x" * 5000})
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[")
        stream.write(",\n".join([item] * 6000))
        stream.write("]")
    tracemalloc.start()
    assert load_dataset(path).validate() == 6000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def test_size_and_length_without_reading(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = jsonl([{"text": "x" * 100}] * 1000)
    packed = write(tmp_path / "a.jsonl.gz", text)
    assert packed.stat().st_size < 2000
    assert load_dataset(packed).size_bytes() == len(text)
    parquet.write_table(arrow.table({"text": ["a"] * 5000}), tmp_path / "a.parquet")
    data = load_dataset(tmp_path / "a.parquet")
    data._raw.rows = lambda: pytest.fail("the rows were read")  # type: ignore[method-assign]
    assert data.total() == 5000 and data.describe().endswith("5,000 rows")


@pytest.mark.parametrize("name", ["one.jsonl", "one.json", "one.jsonl.gz"])
def test_a_row_with_a_list_called_like_a_wrapper_is_a_row(tmp_path: Path, name: str) -> None:
    row = {"prompt": "a", "completion": "b", "examples": [{"prompt": "x", "completion": "y"}]}
    path = write(tmp_path / name, json.dumps(row) + "\n")
    assert list(load_dataset(path).rows()) == [{"prompt": "a", "completion": "b"}]


def test_what_is_unwrapped(tmp_path: Path) -> None:
    def values(name: str, value: Any) -> list[Any]:
        return [row.value for row in FileSource(write(tmp_path / name, json.dumps(value)), "json").rows()]

    wrapped: dict[str, Any] = {"version": "1", "data": [{"a": 1}]}
    assert values("a.jsonl", wrapped) == values("a.json", wrapped) == [{"a": 1}]
    for more in ({"images": ["x"]}, {"text": "t"}):
        assert values("b.jsonl", wrapped | more) == [wrapped | more]
    assert values("c.jsonl", {"data": [], "note": 1}) == [{"data": [], "note": 1}]


def test_a_blank_before_a_quoted_field_is_none_of_its_text(tmp_path: Path) -> None:
    text = 'question, answer\n"a b", "c, ""d"""\n x,  y\n"e",\t"f"\n"two\n, ""lines",g\n'
    rows = list(load_dataset(write(tmp_path / "a.csv", text), format="question_answer").rows())
    said = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows]
    assert said == [("a b", 'c, "d"'), (" x", "  y"), ("e", "f"), ('two\n, "lines', "g")]
    odd = write(tmp_path / "b.csv", 'text,label\n"He said, ""hi"" to me", x\nc, "d" e\n')
    assert [row["label"] for row in load_dataset(odd, format="classification").rows()] == ["x", '"d" e']


def test_parquet_of_datasets_gives_the_names_of_classes_and_double_columns_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    label = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]}).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [row["label"] for row in load_dataset(tmp_path / "a.parquet").rows()] == ["pos", "neg", "-1"]
    features = {"tokens": [{"_type": "Value"}], "ner_tags": {"feature": label, "_type": "Sequence"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "b.parquet")
    assert [row["tags"] for row in load_dataset(tmp_path / "b.parquet").rows()] == [["neg", "pos"]]
    double = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(double, tmp_path / "c.parquet")
    frame = pytest.importorskip("pandas").DataFrame([["a", "b"]], columns=["text", "text"])
    for ref in (tmp_path / "c.parquet", frame):
        with pytest.raises(DataError, match="2 columns 'text'"):
            list(load_dataset(ref).rows())
