"""Shuffle, limit and split: known numbers, equivalences, and no leak between the sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.data import Format, load_dataset
from tunekit.data import select as module
from tunekit.data.dataset import Dataset
from tunekit.data.select import select, shuffled, split
from tunekit.data.text import row_key
from tunekit.errors import DataError

ROWS = [{"text": f"row {number}"} for number in range(1000)]


def texts(dataset: Dataset) -> list[str]:
    return [row["text"] for row in dataset.rows()]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_a_split_is_the_whole_without_overlap_and_has_the_size_that_was_asked_for() -> None:
    data = load_dataset(ROWS)
    for validation, held in ((0.1, 100), (0.0001, 1), (250, 250)):
        train, validation_rows = split(data, validation, seed=7)
        assert len(validation_rows) == len(texts(validation_rows)) == held
        assert Counter(texts(train)) + Counter(texts(validation_rows)) == Counter(texts(data))
    assert texts(train) == [text for text in texts(data) if text in set(texts(train))], "the order stays"


def test_a_seed_decides_the_split_and_nothing_else_does() -> None:
    held = [set(texts(split(load_dataset(ROWS), 0.1, seed=seed)[1])) for seed in (1, 1, 2)]
    assert held[0] == held[1]
    assert 0 < len(held[0] & held[2]) < 40, "another seed holds out other rows"
    backwards = set(texts(split(load_dataset(ROWS[::-1]), 0.1, seed=1)[1]))
    assert backwards == held[0], "the order of the rows does not count"


def test_added_rows_move_few_rows_from_one_side_to_the_other() -> None:
    """T33: a data set that grows keeps its held-out rows: 100 new rows may push 10 of 100 out, not reshuffle them."""
    before = set(texts(split(load_dataset(ROWS), 100, seed=1)[1]))
    grown = [*ROWS, *({"text": f"new {number}"} for number in range(100))]
    after = set(texts(split(load_dataset(grown), 100, seed=1)[1]))
    assert len(before & after) >= 80
    moved_into_training = before - after
    assert len(moved_into_training) == len([text for text in after if text.startswith("new")])


def test_no_text_is_on_both_sides() -> None:
    """A copy of a held-out row in training would make the validation loss a measure of memory."""
    rows = [{"text": f"row {number % 50}" + " " * (number // 50)} for number in range(200)]
    made = select(load_dataset(rows), validation=10)
    assert made.validation is not None
    keys = [{row_key(row) for row in side.rows()} for side in (made.train, made.validation)]
    assert not keys[0] & keys[1]
    assert (len(made.train), len(made.validation)) == (160, 10)
    [out] = made.left_out
    assert (out.reason, out.rows) == ("held-out-copy", 30)
    assert len(made.train) + len(made.validation) + out.rows == 200
    assert out.examples[0]["row"] == out.examples[0]["held_out"] + 50


def test_one_text_with_two_labels_stays_on_one_side() -> None:
    rows = [{"text": f"text {number % 20}", "label": "ab"[number // 20]} for number in range(40)]
    train, held = split(load_dataset(rows), 5)
    assert not {row["text"] for row in train.rows()} & {row["text"] for row in held.rows()}


@pytest.mark.parametrize(("rows", "validation"), [(3, 3), (3, 4), (1, 0.5), (10, 0.95)])
def test_a_side_without_rows_is_an_error(rows: int, validation: float | int) -> None:
    with pytest.raises(DataError, match="nothing is left to train on") as caught:
        split(load_dataset(ROWS[:rows]), validation)
    assert caught.value.details["option"] == "validation"
    with pytest.raises(DataError, match="nothing is left to train on"):
        split(load_dataset([{"text": "same"}] * 10), 1)


def test_shuffling_is_a_permutation_by_seed() -> None:
    """T35: a shuffle is seeded, and by nothing else than the seed of the step."""
    data = load_dataset(ROWS)
    first, again, other = (texts(shuffled(data, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert Counter(first) == Counter(texts(data))
    at_home = sum(text == f"row {position}" for position, text in enumerate(first))
    assert at_home < 10, "a random permutation leaves one row in its place on average"


def test_limit_takes_from_the_shuffled_whole_and_the_split_from_the_limited() -> None:
    """The order is shuffle, limit, split: limit=100 gives 100 rows to both sides together, from everywhere."""
    data = load_dataset(ROWS)
    made = select(data, shuffle=True, limit=100, validation=0.2, seed=3)
    assert made.validation is not None
    used = texts(made.train) + texts(made.validation)
    assert (len(made.train), len(made.validation)) == (80, 20)
    assert set(used) == set(texts(shuffled(data, 3))[:100])
    assert max(int(text.split()[1]) for text in used) > 800
    assert select(data, limit=100, validation=0.2).read == 100, "without a shuffle no more rows are read than are used"


@given(
    values=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    shuffle=st.booleans(),
    limit=st.none() | st.integers(1, 70),
    validation=st.integers(1, 20) | st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_on_one_side_or_counted(
    values: list[int], shuffle: bool, limit: int | None, validation: float | int, seed: int
) -> None:
    """Whatever the rows and options: the sides and the copies are what was chosen, and share no text."""
    data = load_dataset([{"text": str(value)} for value in values])
    pool = Counter(texts(select(data, shuffle=shuffle, limit=limit, seed=seed).train))
    try:
        made = select(data, shuffle=shuffle, limit=limit, validation=validation, seed=seed)
    except DataError as error:
        assert error.code == "nothing-left"
        want = validation if isinstance(validation, int) else -(-validation * pool.total() // 1)
        assert len(pool) <= want, "there was enough to train on"
        return
    assert made.validation is not None
    train, held = Counter(texts(made.train)), Counter(texts(made.validation))
    assert not set(train) & set(held)
    assert set(held.values()) == {1}
    assert train == Counter({text: count for text, count in pool.items() if text not in held})
    copies = sum(out.rows for out in made.left_out)
    assert train.total() + held.total() + copies == pool.total()


def test_fingerprints_tell_selections_apart() -> None:
    data = load_dataset(ROWS)
    made = [*split(data, 10), *split(data, 11), *split(data, 10, seed=1), shuffled(data), shuffled(data, 1)]
    prints = [dataset.fingerprint() for dataset in (data, *made)]
    assert len(set(prints)) == len(prints)
    assert split(load_dataset(list(ROWS)), 10)[1].fingerprint() == prints[2], "equal content, equal fingerprint"


def _csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("text\n" + "".join(f'"{row["text"]}"\n' for row in rows), encoding="utf-8")
    return path


def _array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("name", "write"), [("rows.jsonl", jsonl), ("rows.csv", _csv), ("rows.json", _array), ("array.jsonl", _array)]
)
def test_large_files_give_the_same_rows_as_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[..., Path]
) -> None:
    """JSON Lines are read by the places of their lines, other files from a copy; no row is kept in memory."""
    rows = [{"text": f"zeile {number} é中\u2028x"} for number in range(300)]
    path = write(tmp_path / name, rows)
    small = select(load_dataset(path), shuffle=True, validation=30, seed=5)
    monkeypatch.setattr(module, "LARGE_BYTES", 100)
    large = select(load_dataset(path), shuffle=True, validation=30, seed=5)
    assert texts(large.train) == texts(small.train)
    assert large.validation is not None and small.validation is not None
    assert texts(large.validation) == texts(small.validation)
    assert large.train.fingerprint() == small.train.fingerprint()
    rows_of = large.train._rows  # type: ignore[attr-defined]
    assert rows_of._kept is None
    passes = [large.train.rows(), large.validation.rows()]
    assert [next(passes[number % 2])["text"] for number in range(4)] == [
        texts(small.train)[0], texts(small.validation)[0], texts(small.train)[1], texts(small.validation)[1],
    ], "two passes at once do not disturb each other"  # fmt: skip


def test_many_rows_of_unknown_size_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_ROWS", 100)
    data = load_dataset(ROWS)
    made = shuffled(data, 1)
    assert made._rows._kept is None  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert texts(made) == texts(shuffled(data, 1))


def test_lines_that_give_several_rows_are_read_by_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line with ranked answers becomes several rows; each is on one side."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{number}", "answers": [f"a{number}", f"b{number}", f"c{number}"]} for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def several(row: dict[str, Any]) -> list[dict[str, Any]]:
        count = 1 if row["prompt"] in ("p0", "p1") else 3
        return [{"prompt": row["prompt"], "completion": answer} for answer in row["answers"][:count]]

    form = Format(
        name="several", schema="prompt_completion", columns=("prompt", "answers"), provider="x", convert=several
    )

    def read() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        train, held = split(load_dataset(path, format="several", formats=[form]), 6)
        return list(train.rows()), list(held.rows())

    small = read()
    monkeypatch.setattr(module, "LARGE_BYTES", 10)
    assert read() == small
    assert [len(side) for side in small] == [50, 6]


def test_a_file_that_changed_under_way_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 10)
    path = jsonl(tmp_path / "rows.jsonl", ROWS[:50])
    data = shuffled(load_dataset(path))
    path.write_text("x" + path.read_text())
    with pytest.raises(DataError, match="changed while it was read"):
        texts(data)


def test_rows_of_a_selection_are_the_callers_to_change() -> None:
    data = shuffled(
        load_dataset([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    )
    next(data.rows())["messages"][0]["content"] = "changed"
    assert next(data.rows())["messages"][0]["content"] == "a"


def test_real_rows(shared_data: Path) -> None:
    data = load_dataset(shared_data / "llamafactory" / "alpaca_en_demo.json")
    made = select(data, shuffle=True, limit=500, validation=0.1, seed=0)
    assert made.validation is not None
    assert (len(made.train), len(made.validation), made.read, made.left_out) == (450, 50, 999, ())
    assert made.train.take(7).peek(20) == made.train.peek(7)


def ranked_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"q{n}", "completions": [f"a{n} {k}" for k in range(5)], "ranks": list(range(5))}
        for n in range(count)
    ]


def test_what_is_made_of_one_row_stays_on_one_side() -> None:
    """T33: the ten pairs of a ranking have one prompt; none of it may be trained on while it is measured on."""
    from tunekit.data import mix
    from tunekit.data.streams import stream

    data = load_dataset(ranked_rows(50), accepts=("preference",))
    mixed = load_dataset(mix([(ranked_rows(50)[::2], 1), (ranked_rows(50)[1::2], 1)]), accepts=("preference",))
    for train, held in (
        split(data, 0.1, seed=3),
        split(data, 45, seed=3),
        split(mixed, 0.1, seed=3),
        stream(data, validation=45),
    ):
        assert held is not None
        assert not {row["prompt"] for row in train.rows()} & {row["prompt"] for row in held.rows()}
        assert 45 <= len(list(held.rows())) <= 54
    train, held = split(data, 45, seed=3)
    assert (len(train), len(held)) == (450, 50)
    again = {
        row["prompt"] for row in split(load_dataset(ranked_rows(50)[::-1], accepts=("preference",)), 45, seed=3)[1]
    }
    assert again == {row["prompt"] for row in held}, "the order of the rows does not count"


def test_large_rows_in_a_folder_named_like_a_file_are_read_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 0)
    folder = tmp_path / "rows.jsonl"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {n}"}}\n' for n in range(20)))
    assert sorted(texts(shuffled(load_dataset(folder)))) == sorted(f"{name} {n}" for name in "ab" for n in range(20))
