"""CoNLL files: sentences by blank lines, tags in the last column, ragged lines named, tables and texts told apart."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import load_dataset
from tunekit.data.conll import looks_like_conll
from tunekit.errors import DataError

TWO = "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\nBlackburn\tI-PER\n"
SENTENCES = [
    {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
    {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
]


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.tsv", "a.txt", "a.conll.gz", "a.tsv.gz"])
@pytest.mark.parametrize(
    "text",
    [
        TWO,
        TWO.replace("\n", "\r\n"),
        "\ufeff" + TWO + "\n\n\n",
        TWO.replace("\n\n", "\n\t\n"),  # as WNUT-17 writes blank lines
        TWO.replace("\t", " "),
        "-DOCSTART- -X- -X- O\n\n" + TWO.replace("\t", " NN I-NP "),  # CoNLL-2003
        "# id 1\n" + TWO.replace("Peter", "# text = Peter\nPeter"),
        TWO.replace("\t", "\tNNP\t_\t"),
    ],
)
def test_sentences(tmp_path: Path, name: str, text: str) -> None:
    data = load_dataset(write(tmp_path / name, text))
    assert (data.schema, list(data.rows())) == ("token_classification", SENTENCES)


def test_a_hash_can_be_a_token(tmp_path: Path) -> None:
    tabs = write(tmp_path / "a.conll", "#fun\tO\n# no token\n\n#\tO\nx\tO\n")
    with pytest.raises(DataError, match="line 2 has 1 column"):  # inside a sentence it is no comment
        list(load_dataset(tabs).rows())
    spaces = write(tmp_path / "b.conll", "# a comment of words\n# O\nx O\n")
    assert list(load_dataset(spaces).rows()) == [{"tokens": ["#", "x"], "tags": ["O", "O"]}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("lonely", "line 5 has 1 column, the first line has 2"),
        ("a\tb\tO", "line 5 has 3 columns, the first line has 2"),
        ("\tO", "line 5 has no token"),
        ("a\t", "line 5 has no tag"),
        ("a\x00\tO", "line 5: NUL at byte 2"),
    ],
)
def test_a_bad_line_is_named_and_spoils_its_sentence_only(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "a.conll", "a\tO\n\n\nb\tO\n" + line + "\nc\tO\n\nd\tO\n")
    with pytest.raises(DataError) as caught:
        list(load_dataset(path).rows())
    details = caught.value.details
    assert (details["row"], details["line"], details["file"]) == (2, 4, str(path)) and reason in caught.value.message
    data = load_dataset(path, on_bad_row="skip")
    assert [row["tokens"] for row in data.rows()] == [["a"], ["d"]]
    assert [number for number, _ in data.bad_rows] == [2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "a stirring film\t1\na dull film\t0\n"),
        ("a.tsv", "text\tlabel\na\tx\nb\ty\n"),
        ("a.tsv", "good\tpos\nbad\tneg\n"),
        ("a.txt", "I said O\nYou said O no\n"),
        ("a.txt", "word\n\nother\n"),
        ("a.tsv", ""),
    ],
)
def test_tables_and_texts_are_none(tmp_path: Path, name: str, text: str) -> None:
    assert not looks_like_conll(write(tmp_path / name, text))


def test_real_files(shared_data: Path) -> None:
    counts: dict[str, Any] = {}
    for name in ("wnut17/wnut17train.conll", "ncbi-disease/train.tsv", "ncbi-disease/devel.tsv"):
        rows = list(load_dataset(shared_data / name).rows())
        counts[name] = (
            len(rows),
            sum(len(row["tokens"]) for row in rows),
            sorted({t for row in rows for t in row["tags"]}),
        )
    kinds = ("corporation", "creative-work", "group", "location", "person", "product")
    assert counts == {
        "wnut17/wnut17train.conll": (3394, 62730, sorted(["O", *(f"{p}-{k}" for p in "BI" for k in kinds)])),
        "ncbi-disease/train.tsv": (5432, 136086, ["B-Disease", "I-Disease", "O"]),
        "ncbi-disease/devel.tsv": (923, 23969, ["B-Disease", "I-Disease", "O"]),
    }
