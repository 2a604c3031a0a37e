"""Folders and globs: every file of one kind, in order; what does not belong together is refused and named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.data import load_dataset
from tunekit.data.tables import has_header
from tunekit.errors import DataError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts(ref: Any, **options: Any) -> list[str]:
    return [row["text"] for row in load_dataset(ref, **options).rows()]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    write(folder / "b.jsonl", lines("b1", "b2"))
    write(folder / "a.jsonl.gz", lines("a1"))
    write(folder / "deep/c.json", '[{"text": "c1"}]')
    for beside in ("README.md", "LICENSE", "notes.log", ".hidden.jsonl", "_SUCCESS", "deep/.git/x.jsonl"):
        write(folder / beside, "no data")
    return folder


def test_a_folder_is_read_in_the_order_of_its_paths(corpus: Path) -> None:
    assert texts(corpus) == texts(str(corpus) + "/") == ["a1", "b1", "b2", "c1"]
    data = load_dataset(corpus)
    assert data.describe() == f"{corpus}/: text (3 files, not read: notes.log), 4 rows"
    assert (len(data), data.total(), data.source) == (4, 4, corpus)
    assert [f.code for f in Pipeline().pretrain(data=corpus).check() if f.level == "error" and f.step] == []


def test_patterns(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts(f"{corpus}/*.jsonl*") == ["a1", "b1", "b2"]
    assert texts(f"{corpus}/**/*.json*") == ["a1", "b1", "b2", "c1"]
    monkeypatch.chdir(corpus)
    assert texts("*.jsonl") == texts("[ab].jsonl") == ["b1", "b2"]
    write(corpus / "odd[1].jsonl", lines("odd"))
    assert texts("odd[1].jsonl") == ["odd"]  # a file of that very name wins
    with pytest.raises(DataError) as caught:
        load_dataset("bb*.jsonl")
    assert caught.value.code == "missing-file" and "b.jsonl" in caught.value.suggestions


def test_a_bad_row_is_named_by_its_file(corpus: Path) -> None:
    bad = write(corpus / "b2.jsonl", lines("x") + '\n{"text": 5}\n')
    with pytest.raises(DataError, match=r"b2\.jsonl row 2 \(line 3\): field 'text'") as caught:
        texts(corpus)
    assert {key: caught.value.details[key] for key in ("file", "row", "line", "field")} == {
        "file": str(bad), "row": 2, "line": 3, "field": "text",
    }  # fmt: skip
    data = load_dataset(corpus, on_bad_row="skip")
    assert data.bad_rows == [(5, "b2.jsonl row 2: field 'text' is a number (5), not text")]


def test_the_fingerprint_covers_every_file(corpus: Path) -> None:
    seen = {load_dataset(corpus).fingerprint()}
    for change in (
        lambda: write(corpus / "z.jsonl", lines("z")),
        lambda: write(corpus / "z.jsonl", lines("y")),
        lambda: (corpus / "z.jsonl").rename(corpus / "0.jsonl"),
        lambda: (corpus / "0.jsonl").unlink(),
    ):
        change()
        seen.add(load_dataset(corpus).fingerprint())
    assert len(seen) == 4  # the last change takes the others back


def test_splits_are_not_read_as_one(tmp_path: Path) -> None:
    """Held-out rows must not be trained on only because they lie beside the others."""
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / name, lines(name))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert caught.value.code == "folder-splits" and str(tmp_path / "train.jsonl") in caught.value.fix
    assert texts(f"{tmp_path}/*.jsonl") == ["test.jsonl", "train.jsonl"]
    (tmp_path / "test.jsonl").unlink()
    assert texts(tmp_path) == ["train.jsonl"]


@pytest.mark.parametrize(
    ("files", "code", "named"),
    [
        (
            {"a.csv": "text,label\nx,y\n", "b.csv": "text,score\nx,1\n"},
            "different-columns",
            ("a.csv", "b.csv", "score"),
        ),
        ({"a.jsonl": '{"text": "x"}', "b.jsonl": '{"body": "x"}'}, "different-columns", ("a.jsonl", "b.jsonl", "body")),
        ({"a.csv": "text,label\nx,y\n", "b.csv": "nice,1\nbad,0\nx,1\n"}, "different-columns", ("a.csv", "b.csv")),
        ({"a.jsonl": '{"text": "x"}', "b.csv": "text\nx\n"}, "folder-kinds", ("a.jsonl", "b.csv")),
        ({"a.tsv": "text\tn\nx\ty\n", "b.tsv": "x\tO\n\ny\tO\n"}, "folder-kinds", ("a.tsv", "b.tsv")),
        ({"a.jsonl": '{"text": "x"}', "a.jsonl.gz": '{"text": "x"}'}, "folder-copies", ("a.jsonl", "a.jsonl.gz")),
        ({"a.bin": "x"}, "folder", ("a.bin",)),
        ({}, "folder", ("nothing",)),
    ],
)
def test_what_does_not_belong_together(
    tmp_path: Path, files: dict[str, str], code: str, named: tuple[str, ...]
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert caught.value.code == code
    assert all(name in caught.value.found for name in named)


def test_optional_fields_are_no_different_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"instruction": "q", "input": "i", "output": "a"}')
    write(tmp_path / "b.jsonl", '{"output": "a", "instruction": "q", "id": 7}')
    assert len(load_dataset(tmp_path)) == 2


def test_one_rule_for_all_texts(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one<|endoftext|>two")
    write(tmp_path / "b.txt", "three\n\nfour")
    data = load_dataset(tmp_path)
    assert (data.format, texts(tmp_path)) == ("separated", ["one", "two", "three\n\nfour"])
    assert texts(tmp_path, format="lines")[-1] == "four"


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    write(tmp_path / "a/x.jsonl", lines("x"))
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert texts(tmp_path) == ["x"]
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    (elsewhere / "linked").symlink_to(tmp_path / "a")
    assert texts(elsewhere) == ["x"]


def test_a_folder_that_datasets_wrote(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"text": "x"}, {"text": "y"}]).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == ["x", "y"]
    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "x"}])}).save_to_disk(tmp_path / "several")
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path / "several")
    assert caught.value.code == "dataset-splits" and str(tmp_path / "several/train") in caught.value.fix


# Tables without a header


@pytest.mark.parametrize(
    ("first", "rest", "header"),
    [
        (["text", "label"], [["a film", "1"], ["b film", "0"]], True),
        (["a film", "1"], [["b film", "0"], ["c film", "1"]], False),
        (["good", "1"], [["a longer one", "0"]], False),
        (["review_body", "stars_given"], [["it was good", "5"], ["bad", "1"]], True),
        (["0", "some verse", "2"], [["1", "more verse", "-1"]], False),
        (["great fun", "positive"], [["so dull", "negative"], ["nice", "positive"]], False),
        (["", "Question", "A", "B", "Answer"], [["0", "Who?", "me", "you", "A"]], True),
        (["id", "question", "A", "B", "answer"], [["0", "Who is it then?", "B", "A", "A"]], True),
        (
            ["Who is it then, of all people?", "you", "me", "A"],
            [["Why?", "so", "no", "B"], ["How?", "x", "y", "A"]],
            False,
        ),
        (["Hello.", "Bonjour."], [["Thanks.", "Merci."]], False),
        (["col_a", "col_b"], [["some longer value", "another longer value"]], True),
        (["0", "1"], [["a film", "1"], ["b film", "0"]], True),  # pandas writes such names
        (["cat", "dog"], [["sun", "sky"], ["a", "b"]], None),
        (["text", "label"], [], True),
    ],
)
def test_header_or_data(first: list[str], rest: list[list[str]], header: bool | None) -> None:
    assert has_header([first, *rest]) is header


def test_real_tables(shared_data: Path) -> None:
    from tunekit.data.readers import FileSource

    def headers(pattern: str, kind: str) -> set[tuple[bool, bool]]:
        found = sorted(shared_data.glob(pattern))
        assert found
        return {(source.header, source.sure_header) for source in (FileSource(path, kind) for path in found)}

    for pattern, kind in (("sst2/*.tsv", "tsv"), ("poem-sentiment/*.tsv", "tsv"), ("mgsm/*.tsv", "tsv"),
                          ("stsb/*.csv", "csv"), ("mmlu/test/*.csv", "csv")):  # fmt: skip
        assert headers(pattern, kind) == {(False, True)}, pattern
    for pattern in ("banking77/*.csv", "truthfulqa/*.csv", "ceval/*/*.csv", "cmmlu/*/*.csv"):
        assert headers(pattern, "csv") == {(True, True)}, pattern


def test_columns_by_position(tmp_path: Path) -> None:
    named = write(tmp_path / "named.csv", "text,label\na film,1\nb film,0\n")
    bare = write(tmp_path / "bare.csv", "a film,1\nb film,0\n")
    by_position = {"text": "1"}
    assert texts(named, format="text", columns=by_position) == ["a film", "b film"]  # its header is no row
    assert texts(bare, format="text", columns=by_position) == ["a film", "b film"]
    unclear = write(tmp_path / "unclear.csv", "cat,dog\nsun,sky\na,b\n")
    with pytest.raises(DataError) as caught:
        load_dataset(unclear)
    assert "'cat', 'dog'" in caught.value.found and "by position" in caught.value.fix
    assert texts(unclear, format="text", columns=by_position) == ["cat", "sun", "a"]
    assert texts(bare, format="text", columns={"text": "a film"}) == ["b film"]  # names say that there is a header


@pytest.mark.parametrize(
    "name", ["test", "valid", "validation", "val", "dev", "eval", "heldout", "held_out", "my-held-out"]
)
def test_held_out_files_are_not_trained_on_because_they_lie_there(tmp_path: Path, name: str) -> None:
    """T33: no file needs to be called train for that."""
    write(tmp_path / "rows.jsonl", lines("a"))
    write(tmp_path / f"{name}.jsonl", lines("b"))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert caught.value.code == "folder-splits" and "rows.jsonl" in caught.value.fix
    assert texts(f"{tmp_path}/*.jsonl") in (["a", "b"], ["b", "a"])


@pytest.mark.parametrize("ref", ["", "  "])
def test_an_empty_name_does_not_mean_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str
) -> None:
    write(tmp_path / "rows.jsonl", lines("a"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="name of the data is empty"):
        load_dataset(ref)
    assert texts(".") == ["a"]
