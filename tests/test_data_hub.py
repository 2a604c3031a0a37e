"""Data sets of the hub: how they are spelt, and how ``datasets`` reads them, out of its cache and without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import load_dataset
from tunekit.data.hub import HubRef, hub_ref, looks_like_hub_id
from tunekit.errors import DataError


@pytest.mark.parametrize(
    ("ref", "wanted"),
    [
        ("a/b", HubRef(name="a/b")),
        ("a/b:c", HubRef(name="a/b", config="c")),
        ("a/b@test", HubRef(name="a/b", split="test")),
        ("a/b-1.2:c_d@train[10%:20%]", HubRef(name="a/b-1.2", config="c_d", split="train[10%:20%]")),
        (
            {"hub": "a/b:c", "split": "test", "streaming": True},
            HubRef(name="a/b", config="c", split="test", streaming=True),
        ),
        ({"hub": "a/b", "config": "c", "revision": "v1"}, HubRef(name="a/b", config="c", revision="v1")),
    ],
)
def test_spelling(ref: Any, wanted: HubRef) -> None:
    assert hub_ref(ref) == wanted
    if isinstance(ref, str):
        assert looks_like_hub_id(ref) and str(wanted) == ref


@pytest.mark.parametrize("ref", ["a", "a/b/c", "a/b@", "a/b:", "a/b c", "../b", "a/b.jsonl", "a/b.csv.gz"])
def test_what_is_none(ref: str) -> None:
    assert not looks_like_hub_id(ref)


@pytest.mark.parametrize(
    "ref", [{"hub": "a"}, {"hub": 3}, {"hub": "a/b", "spilt": "x"}, {"hub": "a/b", "streaming": 1}]
)
def test_wrong_mappings(ref: Any) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(ref)
    assert caught.value.code == "hub"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of ``datasets`` with the configurations ``one`` and ``two`` of the data set ``some-owner/talk``."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("cache")
    for config, texts in (("one", 30), ("two", 5)):
        files = {}
        for split in ("train", "validation"):
            files[split] = str(folder / f"{config}-{split}.jsonl")
            rows = [{"question": f"{config} {split} {n}?", "answer": "a"} for n in range(texts)]
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        datasets.load_dataset("json", data_files=files, cache_dir=str(folder / "made"))
        (built,) = (path.parent for path in (folder / "made").rglob("dataset_info.json"))
        target = folder / "some-owner___talk" / config / "0.0.0" / "0123456789abcdef"
        target.parent.mkdir(parents=True)
        shutil.move(built, target)
        info = json.loads((target / "dataset_info.json").read_text(encoding="utf-8"))
        info |= {"config_name": config, "dataset_name": "talk"}
        (target / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
        for arrow in target.glob("json-*.arrow"):
            arrow.rename(target / arrow.name.replace("json-", "talk-"))
        shutil.rmtree(folder / "made")
    return folder


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = pytest.importorskip("datasets.config")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("ref", "rows", "first"),
    [
        ("some-owner/talk:one", 30, "one train 0?"),
        ("some-owner/talk:two@validation", 5, "two validation 0?"),
        ("some-owner/talk:one@train[10:12]", 2, "one train 10?"),
        ({"hub": "some-owner/talk", "config": "two", "split": "train"}, 5, "two train 0?"),
        ({"hub": "some-owner/talk:two", "streaming": True}, 5, "two train 0?"),
    ],
)
def test_configurations_and_splits(ref: Any, rows: int, first: str) -> None:
    data = load_dataset(ref, accepts=("prompt_completion",))
    assert (len(data), data.format) == (rows, "question_answer")
    assert data.peek()[0]["prompt"] == [{"role": "user", "content": first}]
    assert data.name == (ref if isinstance(ref, str) else "some-owner/talk:two")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("some-owner/talk", "configuration"),
        ("some-owner/talk:three", "configuration"),
        ("some-owner/talk:one@tset", "no split 'tset'"),
        ("some-owner/other", "there is no connection"),
    ],
)
def test_what_is_missing_is_named(ref: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(ref)
    assert caught.value.code == "hub" and says in caught.value.message, str(caught.value)


def test_a_stream_is_read_row_by_row_and_not_counted() -> None:
    datasets = pytest.importorskip("datasets")
    read: list[int] = []

    def rows() -> Any:
        for number in range(10_000):
            read.append(number)
            yield {"text": f"row {number}"}

    data = load_dataset(datasets.IterableDataset.from_generator(rows))
    assert data.describe().endswith("text, read as a stream")
    assert [row["text"] for row in data.peek(2)] == ["row 0", "row 1"]
    assert len(read) < 100
    assert data.take(300).validate() == 300
    assert len(data) == 10_000 and data.describe().endswith("10,000 rows")


def test_a_function_is_called_anew_for_every_pass() -> None:
    calls: list[int] = []

    def rows() -> Any:
        calls.append(1)
        return ({"text": f"row {number}"} for number in range(5))

    data = load_dataset(rows)
    assert data.name == "rows" and list(data.rows()) == list(data.rows()) and len(calls) == 3
    for wrong in (lambda: 7, lambda x: [x]):
        with pytest.raises(DataError) as caught:
            load_dataset(wrong)
        assert caught.value.code == "no-dataset"
