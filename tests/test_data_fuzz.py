"""Whatever the bytes: a DataError, or rows that are canonical. Never a crash, never a hang."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import SCHEMAS, load_dataset
from tunekit.data.readers import FileSource, file_kind
from tunekit.data.schemas import validate_row
from tunekit.errors import DataError

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ENDINGS = ["json", "jsonl", "csv", "tsv", "txt", "json.gz", "parquet", "conll", "conll.gz", "csv.gz"]

often = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

fragments = st.sampled_from(
    [b'{"text": "a"}', b"{", b"}", b"[", b"]", b",", b'"', b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\xff", b"\x00",
     b"\t", b"text", b"prompt,completion", b"a,b", b"null", b'\\ud800', b"\xe2\x80\xa8", b"1e999", b"<|endoftext|>",
     b"\xff\xfe", b"\xfe\xff\x00t", b"\xff\xfe\x00\x00", b"\x1f\x8b\x08\x00", b"PAR1", b"O", b"B-X", b"#",
     b"-DOCSTART-",
     b"a\tO\n", b"\n\n", b"1", b"NaN", b"-Infinity", b'{"data": [', b'{"text": "a", "text": 1}', b"9" * 5000,
     b"[" * 3000, b'{"a":' * 3000, b"text\tlabel\n"]
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


# Against other writers: what the csv module, json, gzip and pyarrow write is read back as it was.

cell = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r\n\t"), max_size=12)


def raw_rows(path: Path, **options: Any) -> list[Any]:
    """The rows before any format looks at them."""
    return [row.value for row in FileSource(path, file_kind(path) or "", **options).rows()]


@often
@given(
    table=st.integers(2, 4).flatmap(lambda n: st.lists(st.lists(cell, min_size=n, max_size=n), min_size=1, max_size=6)),
    newline=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    packed=st.booleans(),
)
def test_tables_come_back(tmp_path: Path, table: list[list[str]], newline: str, bom: bool, packed: bool) -> None:
    names = [f"c{n}" for n in range(len(table[0]))]
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows([names, *table])
    content = ("\ufeff" * bom + stream.getvalue()).encode()
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert raw_rows(path, header="names") == [dict(zip(names, row, strict=True)) for row in table]
    plain = [[value.replace('"', "'") or "x" for value in row] for row in table]
    path = tmp_path / "t.tsv"
    path.write_bytes(("\ufeff" * bom + newline.join("\t".join(row) for row in [names, *plain])).encode())
    assert raw_rows(path, header="names") == [dict(zip(names, row, strict=True)) for row in plain]


@often
@given(rows=st.lists(st.dictionaries(st.text(max_size=6), values, max_size=4), min_size=1, max_size=5),
       escaped=st.booleans(), indent=st.sampled_from([None, 1]))  # fmt: skip
def test_json_comes_back(tmp_path: Path, rows: list[Any], escaped: bool, indent: int | None) -> None:
    def same(one: Any, other: Any) -> bool:
        return repr(one) == repr(other)  # NaN is not equal to itself

    try:
        array = json.dumps(rows, ensure_ascii=escaped, indent=indent).encode()
        lines = "\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows).encode()
    except UnicodeEncodeError:
        return
    (tmp_path / "a.json").write_bytes(array)
    assert same(raw_rows(tmp_path / "a.json"), json.loads(array))
    (tmp_path / "a.jsonl").write_bytes(lines)
    wrapped = len(rows) == 1 and any(key in rows[0] for key in ("data", "rows", "examples", "train"))
    assert wrapped or same(raw_rows(tmp_path / "a.jsonl"), json.loads(array))


@often
@given(sentences=st.lists(st.lists(st.tuples(
    st.text(st.characters(categories=("L", "N", "P"), exclude_characters="#-"), min_size=1, max_size=6),
    st.sampled_from(["O", "B-X", "I-X"])), min_size=1, max_size=4), min_size=1, max_size=4),
    newline=st.sampled_from(["\n", "\r\n"]), blank=st.sampled_from(["", "\t", " "]))  # fmt: skip
def test_sentences_come_back(tmp_path: Path, sentences: list[Any], newline: str, blank: str) -> None:
    text = f"{newline}{blank}{newline}".join(newline.join(f"{a}\t{b}" for a, b in one) for one in sentences)
    wanted = [{"tokens": [a for a, _ in one], "tags": [b for _, b in one]} for one in sentences]
    for name in ("s.conll", "s.tsv"):  # detected in the second one
        (tmp_path / name).write_bytes(text.encode())
        assert list(load_dataset(tmp_path / name).rows()) == wanted


@settings(often, max_examples=40)
@given(rows=st.lists(st.fixed_dictionaries({"text": st.text(st.characters(exclude_categories=("Cs",))) | st.none(),
       "n": st.integers(-2**63, 2**63 - 1) | st.none(), "list": st.lists(st.text(max_size=3) | st.none(), max_size=2)}),
       min_size=1, max_size=5), cut=st.integers(0, 200),
       flips=st.lists(st.floats(0, 0.9999), min_size=1, max_size=3))  # fmt: skip
def test_parquet_comes_back_or_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], cut: int, flips: list[float]
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    fields = {"text": arrow.string(), "n": arrow.int64(), "list": arrow.list_(arrow.string())}
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows, schema=arrow.schema(fields)), path)
    assert raw_rows(path) == rows
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + cut] + b"\x00" * min(cut, 4))
    read(path)
    damaged = bytearray(content)
    for flip in flips:
        damaged[int(flip * len(content))] ^= 1 << (cut % 8)
    path.write_bytes(damaged)
    read(path)


def test_parquet_text_that_is_no_utf8_is_a_bad_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = arrow.array([b"good", b"bad \xff", b"fine"], arrow.binary())
    column = arrow.Array.from_buffers(arrow.string(), 3, raw.buffers())
    parquet.write_table(arrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet row 2: cannot be read: 'utf-8' codec"):
        list(load_dataset(tmp_path / "a.parquet").rows())
    assert [row["text"] for row in load_dataset(tmp_path / "a.parquet", on_bad_row="skip").rows()] == ["good", "fine"]


@often
@given(content=data_bytes, cut=st.integers(0, 60), flip=st.integers(0, 60))
def test_damaged_gzip(tmp_path: Path, content: bytes, cut: int, flip: int) -> None:
    packed = bytearray(gzip.compress(content))
    if flip < len(packed):
        packed[flip] ^= 0x55
    for ending in ("jsonl.gz", "csv.gz", "txt.gz", "conll.gz"):
        path = tmp_path / f"fuzz.{ending}"
        path.write_bytes(bytes(packed[: max(1, len(packed) - cut)]))
        read(path)


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1", "utf-8-sig"]
)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt", "conll"])
def test_encodings(tmp_path: Path, encoding: str, ending: str) -> None:
    texts = {"jsonl": '{"text": "caf\u00e9 and more"}\n', "json": '[{"text": "caf\u00e9 and more"}]',
             "csv": "text\ncaf\u00e9 and more\n", "txt": "caf\u00e9 and more\n", "conll": "caf\u00e9\tO\n"}  # fmt: skip
    path = tmp_path / f"a.{ending}"
    path.write_bytes(texts[ending].encode(encoding))
    if encoding == "utf-8-sig":
        row = load_dataset(path).peek()[0]
        assert row in ({"text": "caf\u00e9 and more"}, {"tokens": ["caf\u00e9"], "tags": ["O"]})
        return
    with pytest.raises(DataError) as caught:
        list(load_dataset(path).rows())
    wide = encoding.startswith("utf") and not (encoding == "utf-32-be" or ending == "conll")
    assert caught.value.code in (
        {"encoding"} if wide else {"encoding", "bad-row", "nul-byte", "json-syntax", "csv-syntax"}
    )


@pytest.mark.parametrize(
    ("name", "start", "end", "ok"),
    [
        ("a.jsonl", b'{"text": "', b'"}', True),
        ("a.json", b'[{"text": "', b'"}]', True),
        ("a.csv", b'text\n"', b'"', True),
        ("a.tsv", b"text\n", b"", True),
        ("a.txt", b"", b"", True),
        ("a.jsonl", b"", b"", False),
        ("a.json", b"[", b"", False),
        ("a.json", b'["', b"", False),
        ("a.json", b'{"text": "', b"", False),
        ("a.conll", b"", b"", False),
    ],
)
def test_ten_megabytes_in_one_line(tmp_path: Path, name: str, start: bytes, end: bytes, ok: bool) -> None:
    path = tmp_path / name
    path.write_bytes(start + b"x" * 10_000_000 + end)
    if ok:
        assert len(load_dataset(path).peek()[0]["text"]) == 10_000_000
        return
    with pytest.raises(DataError):
        list(load_dataset(path).rows())


@pytest.mark.parametrize(
    ("name", "start", "body"),
    [
        ("a.jsonl", b"", b"garbage "),
        ("a.json", b'["', b"garbage "),
        ("a.json", b'{"a": "', b"garbage "),
        ("a.json", b'{\n"a": "', b"garbage\n"),
        ("a.csv", b'text\n"', b"garbage "),
        ("a.csv", b'text\n"', b"garbage\n"),
        ("a.tsv", b"", b"garbage\t"),
        ("a.txt", b"", b"garbage "),
        ("a.conll", b"", b"garbage\tO\n"),
        ("a.jsonl.gz", b"", b"garbage "),
    ],
)
def test_rows_without_end_take_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: bytes, body: bytes
) -> None:
    """A row is at most 64 MB, here 256 kB; a file of 16 MB (or 200,000 tokens) that is one row is never held whole."""
    for module in ("files", "readers", "tables"):
        monkeypatch.setattr(f"tunekit.data.{module}.MAX_ROW", 1 << 18)
    monkeypatch.setattr("tunekit.data.readers.MAX_WHOLE", 1 << 20)
    monkeypatch.setattr("tunekit.data.conll.MAX_TOKENS", 1 << 12)
    path = tmp_path / name
    with gzip.open(path, "wb") if name.endswith(".gz") else path.open("wb") as stream:
        stream.write(start)
        for _ in range(24 if name == "a.conll" else 256):
            stream.write(body * ((1 << 16) // len(body)))
    tracemalloc.start()
    try:
        for skip in ("error", "skip"):
            with pytest.raises(DataError):
                list(load_dataset(path, on_bad_row=skip).rows())
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
