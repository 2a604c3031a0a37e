"""Judgements out of logs and data sets: columns, bad rows, ids, and what is new."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import load_dataset
from tunekit.errors import DataError, OptionsError
from tunekit.feedback import FeedbackStore, Imported


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "feedback.db", durability="normal") as made:
        yield made


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: Any, name: str = "log.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def line(n: int = 0, **fields: Any) -> dict[str, Any]:
    return {"question": f"q{n}", "answer": "a", "vote": "up", "user": "ann", "timestamp": 1_700_000_000 + n, **fields}


@pytest.mark.parametrize(
    ("options", "asked", "near"),
    [
        ({"columns": {"user_hash": "user_"}}, 'columns={"user_hash": "user_"}', ("user",)),
        ({"hash_user": str.upper, "user": "usrr"}, 'user="usrr"', ("user",)),
        ({"columns": {"thumbs": "vote_"}, "silent": "skip"}, 'columns={"thumbs": "vote_"}', ("vote",)),
        ({"columns": {"thumbs": None}, "silent": "skip"}, "one of the columns rating", ()),
    ],
)
def test_a_column_that_no_line_has_is_an_error_before_anything_is_written(
    store: FeedbackStore, log: Callable[..., Path], options: dict[str, Any], asked: str, near: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        store.import_log(log(*(line(n) for n in range(600))), **options)
    assert (caught.value.asked or "").startswith(asked) and caught.value.suggestions == near
    assert caught.value.found == "columns question, answer, vote, user, timestamp" and len(store) == 0


def test_a_column_that_few_lines_have_is_enough(store: FeedbackStore, log: Callable[..., Path]) -> None:
    lines = [*({"question": "q", "answer": f"{n}"} for n in range(700)), line(thumb="down", who="ann"), line(who=None)]
    path = log(*lines)
    options: dict[str, Any] = {"columns": {"thumbs": "thumb"}, "hash_user": str.upper, "user": "who"}
    assert store.import_log(path, silent="skip", **options) == 1
    (record,) = store.records()
    assert (record.thumbs, record.user_hash) == (False, "ANN")
    assert store.import_log(log(), **options) == 0, "an empty log has nothing to be wrong about"


def test_lines_that_are_wrong_can_be_left_out_and_are_listed(store: FeedbackStore, log: Callable[..., Path]) -> None:
    store.record("another", "a", thumbs=True, id="taken")
    lines = [line(n) for n in range(1200)]
    torn = '{"question": "q", "ans'
    path = log(*lines[:505], line(vote="maybe"), line(id="taken"), {"question": "q", "vote": "up"}, *lines[505:], torn)
    with pytest.raises(DataError) as caught:
        store.import_log(path)
    assert 'on_bad_row="skip"' in (caught.value.fix or "") and len(store) == 506
    done = store.import_log(path, on_bad_row="skip")
    assert (done, done.new, len(store)) == (1200, 1200 - 505, 1201)
    places = [reason.partition(":")[0] for reason in done.bad_rows]
    assert places == [f"log.jsonl row {n}" for n in (506, 507, 508, 1204)]
    assert "4 bad rows left out" in done.text() and pickle.loads(pickle.dumps(done)).bad_rows == done.bad_rows
    with pytest.raises(OptionsError, match="on_bad_row is 'drop'"):
        store.import_log(path, on_bad_row="drop")


def test_of_two_lines_with_one_id_the_second_is_the_bad_one(store: FeedbackStore, log: Callable[..., Path]) -> None:
    path = log(line(1, id="x"), line(1, id="x"), line(2, id="x"), line(3, id="y"))
    done = store.import_log(path, on_bad_row="skip")
    assert (done, done.new) == (3, 2) and [reason.partition(":")[0] for reason in done.bad_rows] == ["log.jsonl row 3"]
    with pytest.raises(DataError, match=r"row 3: .*id 'x'"):
        store.import_log(path)


def test_an_import_tells_how_many_records_were_new(store: FeedbackStore, log: Callable[..., Path]) -> None:
    """Two logs of one name: equal lines are taken for one, unless the logs get sources of their own."""
    first = log(*(line(n) for n in range(3)), name="d1/log.jsonl")
    second = log(*(line(n) for n in range(4)), name="d2/log.jsonl")
    one, two = store.import_log(first), store.import_log(second)
    assert (one, one.new, two, two.new, len(store)) == (3, 3, 4, 1, 4)
    assert store.import_log(second, source="second").new == 4
    rotated = log(*(line(n) for n in range(4)), name="log.1.jsonl")
    assert store.import_log(rotated, source="second").new == 0
    assert store.import_data([{"prompt": "q", "chosen": "a", "rejected": "b"}]).new == 1


@pytest.mark.parametrize("word", ["like", "positive", "\U0001f44d\U0001f3fd", ":thumbsup:", "thumbs-up", "1", "True"])
def test_words_of_logs_for_good(store: FeedbackStore, log: Callable[..., Path], word: str) -> None:
    opposite = {"like": "dislike", "positive": "negative", "1": "-1", "True": "False"}
    other = opposite.get(word) or word.replace("up", "down").replace("\U0001f44d", "\U0001f44e")
    store.import_log(log(line(1, vote=word), line(2, vote=other)))
    assert [record.thumbs for record in store.records()] == [True, False]


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [("1700000000", 1.7e9), ("1700000000123", 1700000000.123), ("1700000000123456", 1700000000.123456),
     (1700000000123456000, 1700000000.123456), ("20231114T221320Z", 1.7e9)],
)  # fmt: skip
def test_times_of_logs(store: FeedbackStore, log: Callable[..., Path], stamp: Any, seconds: float) -> None:
    store.import_log(log(line(timestamp=stamp)))
    assert [record.time for record in store.records()] == [pytest.approx(seconds, abs=2e-6)]


def test_a_wrong_value_names_its_column_and_how_to_leave_it_out(store: FeedbackStore, log: Callable[..., Path]) -> None:
    path = log({"question": "q", "answer": "a", "feedback": "I liked the second part", "stars": 4})
    with pytest.raises(DataError, match=r"log.jsonl row 1: column 'feedback': .*'thumbs' is") as caught:
        store.import_log(path)
    assert 'columns={"thumbs": ...}' in (caught.value.fix or "") and caught.value.details["column"] == "feedback"
    assert store.import_log(path, columns={"thumbs": None}) == 1
    assert [(record.thumbs, record.rating) for record in store.records()] == [(None, 4.0)]


def test_real_pairs_with_an_empty_side_are_imported(store: FeedbackStore, shared_data: Path) -> None:
    path = shared_data / "hh-rlhf" / "harmless-base"
    pairs = [(row["chosen"], row["rejected"]) for row in load_dataset(path, accepts=("preference",))]
    assert any(not side[-1]["content"].strip() for pair in pairs for side in pair), "or the test shows nothing"
    assert store.import_data(path) == len(pairs) == 1157
    made = store.preferences(derived=False, max_pairs=None)
    assert sorted(map(repr, pairs)) == sorted(repr((row["chosen"], row["rejected"])) for row in made)


def test_pairs_that_differ_in_white_space_are_bad_rows_and_equal_ranked_answers_are_not_compared(
    store: FeedbackStore,
) -> None:
    pairs = [{"prompt": "q", "chosen": "a", "rejected": side} for side in ("b", " a", "", "c")]
    with pytest.raises(DataError, match=r"row 2 .*chosen_over.* equals the chosen answer") as caught:
        store.import_data(pairs)
    assert 'on_bad_row="skip"' in (caught.value.fix or "")
    done = store.import_data(pairs, on_bad_row="skip")
    assert (done, done.new, len(done.bad_rows)) == (3, 2, 1)
    bad = [*pairs[:1], {"prompt": "q", "chosen": 5, "rejected": "b"}]
    assert "row 2" in store.import_data(bad, on_bad_row="skip").bad_rows[0]
    ranked = [{"prompt": "r", "completions": ["x", "x ", "y", ""], "ranks": [0, 1, 2, 3]}]
    assert store.import_data(ranked) == 3
    found = {(row["chosen"].strip(), row["rejected"].strip()) for row in store.preferences() if row["prompt"] == "r"}
    assert found == {("x", "y"), ("x", ""), ("y", "")}


def test_an_empty_answer_can_be_edited_rated_and_beaten_but_gets_no_thumb(store: FeedbackStore) -> None:
    store.record("edit", "", edit="better", time=1)
    store.record([{"role": "user", "content": "both"}], " ", edit="better", chosen_over="bad", time=2)
    store.record("rated", "", rating=1, user_hash="u", time=3)
    store.record("rated", "good", rating=5, user_hash="u", time=4)
    made = [(row["chosen"], row["rejected"]) for row in store.preferences() if isinstance(row["prompt"], str)]
    assert made == [("better", ""), ("good", "")]
    for judgement in ({"thumbs": False}, {"chosen_over": " "}, {"edit": ""}):
        with pytest.raises(DataError):
            store.record("q", "", **judgement)


def test_message_trees_are_not_the_votes_of_one_user(store: FeedbackStore, shared_data: Path) -> None:
    with pytest.raises(OptionsError, match="votes of many users"):
        store.import_data(shared_data / "open-assistant" / "en_100_message.jsonl", user_hash="oa")
    assert len(store) == 0 and isinstance(Imported(3), int)
