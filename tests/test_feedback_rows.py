"""What becomes of feedback: pairs, thumbs, ratings, splits, imports, and a step that trains on a store."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.data import load_dataset, split
from tunekit.errors import DataError, OptionsError
from tunekit.feedback import FeedbackStore, redact_pii


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "feedback.db") as made:
        yield made


def test_pairs_from_choices_edits_ratings_and_thumbs(store: FeedbackStore) -> None:
    store.record("choose", "b", chosen_over=["a", "c"], time=1)
    store.record("edit", "draft", edit="final", time=2)
    store.record("rate", "poor", rating=1, user_hash="u", time=3)
    store.record("rate", "great", rating=5, user_hash="u", time=4)
    store.record("rate", "good", rating=4.5, user_hash="u", time=5)  # too near to "great" to say
    store.record("thumb", "up", thumbs=True, time=6)
    store.record("thumb", " down ", thumbs=False, time=7)
    pairs = [(row["prompt"], row["chosen"], row["rejected"].strip(), row.get("margin")) for row in
             store.preferences(margins=True)]  # fmt: skip
    assert pairs == [
        ("choose", "b", "a", None),
        ("choose", "b", "c", None),
        ("edit", "final", "draft", None),
        ("rate", "great", "poor", 1.0),
        ("rate", "good", "poor", 0.875),
        ("thumb", "up", "down", None),
    ]
    assert [row["prompt"] for row in store.preferences(derived=False)] == ["choose", "choose", "edit"]


def test_of_a_prompt_with_many_answers_only_as_many_pairs_are_derived_as_are_wanted(store: FeedbackStore) -> None:
    """Of 1,500 answers there are 562,500 pairs of a good and a bad one, of which ten are asked for."""
    store.record_many({"prompt": "hot", "completion": f"{n}", "thumbs": n % 2 == 0, "time": n} for n in range(1500))
    store.record_many({"prompt": "all good", "completion": f"{n}", "thumbs": True} for n in range(1500))
    store.record_many(
        {"prompt": "rated", "completion": f"{n}", "rating": n, "scale": (0, 99), "user_hash": "u"} for n in range(100)
    )
    store.record("hot", "1", chosen_over="0", user_hash="u")
    made = store.preferences(max_pairs=10)
    hot, rated = ([row for row in made if row["prompt"] == prompt] for prompt in ("hot", "rated"))
    assert len(made) == 20 and (hot[0]["chosen"], hot[0]["rejected"]) == ("1", "0")
    assert all(int(row["chosen"]) % 2 == 0 and int(row["rejected"]) % 2 == 1 for row in hot[1:])
    assert len({row["chosen"] for row in hot}) == len({row["rejected"] for row in hot}) == 10
    wide = sorted((high - low for high in range(100) for low in range(high)), reverse=True)[:10]
    assert sorted((int(row["chosen"]) - int(row["rejected"]) for row in rated), reverse=True) == wide
    assert made.report.left_out["cap"] < 250


def test_only_the_shape_that_a_step_takes_is_made(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunekit.feedback import exports

    store.record("q", "a", thumbs=True)
    for name in ("preferences", "rated", "demonstrations", "prompts"):
        monkeypatch.setattr(exports, name, None)
    assert len(store.as_dataset(("feedback", "preference"))) == 1


def test_all_pairs_of_many_answers_come_where_all_are_asked_for(store: FeedbackStore) -> None:
    store.record_many({"prompt": "q", "completion": f"{n}", "thumbs": n % 2 == 0} for n in range(80))
    rows = store.preferences(max_pairs=None)
    assert {pair_key(row) for row in rows} == {
        json.dumps(["q", f"{up}", f"{down}"]) for up in range(0, 80, 2) for down in range(1, 80, 2)
    }
    assert {pair_key(row) for row in store.preferences(max_pairs=1600)} == {pair_key(row) for row in rows}


def test_disagreement_ties_and_circles_are_left_out_and_counted(store: FeedbackStore) -> None:
    for number, (better, worse) in enumerate([("a", "b")] * 3 + [("b", "a")]):
        store.record("vote", better, chosen_over=worse, user_hash=f"u{number}")
    store.record("tie", "a", chosen_over="b")
    store.record("tie", "b", chosen_over="a")
    for better, worse in ("ab", "bc", "ca", "ad"):
        store.record("circle", better, chosen_over=worse)
    made = store.preferences()
    assert {(row["prompt"], row["chosen"], row["rejected"]) for row in made} == {
        ("vote", "a", "b"),
        ("circle", "a", "d"),
    }
    assert made.report.left_out == {"conflict": 1, "cycle": 3}
    strict = store.preferences(min_agreement=0.8, min_votes=2)
    assert len(strict) == 0 and strict.report.left_out == {"conflict": 2, "few-votes": 4}
    assert len(store.preferences(min_agreement=0.75, min_votes=4)) == 1
    with pytest.raises(OptionsError, match="min_agreement"):
        store.preferences(min_agreement=75)


def test_thumbs_by_majority_of_users_whose_last_word_counts(store: FeedbackStore) -> None:
    for time, (user, thumbs) in enumerate([("ann", False), ("bob", True), ("ann", True), ("cy", False)]):
        store.record("q", ["a", "a ", " a"][time % 3], thumbs=thumbs, user_hash=user, time=time)
    store.record("q", "draft", edit="final", user_hash="ann", time=9)
    store.record("q", "fine", thumbs=True, edit="finer", user_hash="ann", time=10)
    made = store.labelled()
    assert {row["completion"]: row["label"] for row in made} == {
        "a": True,
        "draft": False,
        "final": True,
        "fine": True,
        "finer": True,
    }
    assert made.report.merged == 1
    assert store.labelled(min_agreement=0.7).report.left_out == {"conflict": 1}
    assert [row["completion"] for row in store.demonstrations()] == ["final", "finer"]


def test_ratings_are_means_on_one_scale(store: FeedbackStore) -> None:
    for rating, user in ((5, "a"), (4, "b"), (1, "c")):
        store.record("q", "mixed", rating=rating, user_hash=user)
    store.record("q", "liked", rating=4)
    rows = {row["completion"]: row["score"] for row in store.rated()}
    assert rows == {"mixed": pytest.approx(10 / 3), "liked": 4.0}
    # from the median 4 the mean distance is (1 + 0 + 3) / 3 of a scale of 4: agreement 1 - 2/3
    assert len(store.rated(min_agreement=0.33)) == 2 and len(store.rated(min_agreement=0.34)) == 1
    store.record("q", "other", rating=10, scale=(0, 10))
    with pytest.raises(DataError, match="2 scales"):
        store.rated()
    assert {row["completion"]: row["score"] for row in store.rated(scale=(0, 1))}["other"] == 1.0


def said(rows: Any, field: str = "label") -> dict[str, Any]:
    return {row["completion"]: row[field] for row in rows}


@pytest.mark.parametrize("users", [("u", "u"), ("u", "v")])
def test_a_later_thumb_replaces_a_rating_that_says_the_opposite(store: FeedbackStore, users: tuple[str, str]) -> None:
    """Or DPO and KTO would learn opposite things of the same judgements."""
    for answer, rating, thumbs, user in (("a", 5, False, users[0]), ("b", 1, True, users[1])):
        store.record("q", answer, rating=rating, user_hash=user)
        store.record("q", answer, thumbs=thumbs, user_hash=user)
    assert said(store.labelled()) == {"a": False, "b": True}
    assert [(row["chosen"], row["rejected"]) for row in store.preferences()] == [("b", "a")]
    assert len(store.rated()) == 0
    store.record("q", "a", rating=4, user_hash=users[0])
    assert said(store.labelled()) == {"a": True, "b": True} and said(store.rated(), "score") == {"a": 4.0}


def test_an_edit_replaces_an_earlier_rating_and_an_agreeing_thumb_keeps_it(store: FeedbackStore) -> None:
    store.record("q", "draft", rating=5, user_hash="u", time=1)
    store.record("q", "bad", rating=2, user_hash="u", time=2)
    store.record("q", "bad", thumbs=False, user_hash="u", time=3)
    store.record("q", "draft", edit="final", user_hash="u", time=4)
    assert said(store.rated(), "score") == {"bad": 2.0}
    assert said(store.labelled()) == {"draft": False, "final": True, "bad": False}
    assert sorted((row["chosen"], row["rejected"]) for row in store.preferences()) == [
        ("final", "bad"),
        ("final", "draft"),
    ]


def test_of_a_thumb_and_a_rating_in_one_record_the_thumb_says_more(store: FeedbackStore) -> None:
    store.record("q", "a", thumbs=False, rating=5, user_hash="u")
    store.record("q", "b", thumbs=True, rating=1, user_hash="u")
    assert said(store.labelled()) == {"a": False, "b": True}
    assert [row["chosen"] for row in store.preferences()] == ["b"]


def test_the_least_agreement_holds_for_ratings_of_different_users_too(store: FeedbackStore) -> None:
    for number, rating in enumerate((5, 1, 5, 1)):
        store.record("q", "a", rating=rating, user_hash=f"a{number}")
        store.record("q", "b", rating=1, user_hash=f"b{number}")
        store.record("sure", "a", rating=5 - number % 2, user_hash=f"a{number}")
        store.record("sure", "b", rating=1, user_hash=f"b{number}")
    made = store.preferences(min_agreement=0.95)
    assert [row["prompt"] for row in made] == ["sure"] and made.report.left_out == {"conflict": 1}
    assert len(store.preferences(min_agreement=0.5)) == 2


def test_a_share_or_a_difference_that_is_just_enough_is_enough(store: FeedbackStore) -> None:
    """14 of 25 is 0.56 though 0.56 * 25 is more than 14; 0.7 - 0.6 is less than 0.1; 1 - 2 * 0.1 is 0.8."""
    for number in range(25):
        store.record("q", "a", thumbs=number < 14, user_hash=f"u{number}")
    assert len(store.labelled(min_agreement=0.56)) == 1 and len(store.labelled(min_agreement=0.561)) == 0
    for rating in (6, 7):
        store.record("near", f"{rating}", rating=rating, scale=(0, 10), user_hash="u")
    assert len(store.preferences(min_gap=0.1)) == 1 and len(store.preferences(min_gap=0.101)) == 0


def test_near_copies_that_were_judged_differently_are_both_kept(store: FeedbackStore) -> None:
    pytest.importorskip("datasketch")
    text = " ".join(f"word{n}" for n in range(80))
    store.record("q", text, thumbs=True, time=1)
    store.record("q", f"{text} end", thumbs=False, time=2)
    store.record("q", f"{text} stop", thumbs=False, time=3)
    made = store.labelled(dedupe="near")
    assert [row["label"] for row in made] == [True, False] and made.report.left_out == {"near-duplicate": 1}
    other = " ".join(f"other{n}" for n in range(80))
    for number, (one, two) in enumerate([(text, other), (f"{text} x", f"{other} y"), (f"{other} z", f"{text} t")]):
        store.record(f"pair {number} of three", one, chosen_over=two, time=4 + number)
    pairs = store.preferences(derived=False, dedupe="near")
    assert [row["prompt"] for row in pairs] == ["pair 0 of three", "pair 2 of three"]


def test_what_a_later_judgement_replaced_is_counted_and_nothing_else(store: FeedbackStore) -> None:
    store.record("q", "a", chosen_over="b", user_hash="u", time=1)
    store.record("q", "a", chosen_over="d", user_hash="u", time=2)
    store.record("q", "a", thumbs=True, user_hash="u", time=3)
    assert store.preferences().report.merged == 0 and len(store.preferences(derived=False)) == 2
    store.record("q", "b", chosen_over="a", user_hash="u", time=4)
    store.record("q", "a", rating=4, user_hash="u", time=5)
    assert store.preferences().report.merged == 2


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def test_what_redaction_leaves_nothing_of_is_counted_and_stops_no_export(store: FeedbackStore, tmp_path: Path) -> None:
    def add(store: FeedbackStore) -> None:
        store.record("mail?", "ann@example.org", edit="bob@example.org", time=1)
        store.record("mail?", "cy@example.org", chosen_over=["dan@example.org", "none"], time=2)
        store.record("empty", "1", thumbs=True, time=3)
        store.record("fine", "x", edit="y", time=4)

    def redact(text: str) -> str:
        return "" if text == "1" else redact_pii(text)

    with FeedbackStore(tmp_path / "redacted.db", redact=redact) as other:
        add(store)
        add(other)
        for found in (store.preferences(redact=redact), other.preferences()):
            assert [(row["chosen"], row["rejected"]) for row in found] == [("<EMAIL>", "none"), ("y", "x")]
            assert found.report.left_out == {"redacted": 2}
        for found in (store.labelled(redact=redact), other.labelled()):
            assert {row["completion"]: row["label"] for row in found} == {"x": False, "y": True}
            assert found.report.left_out == {"redacted": 3}
        assert len(other.prompts()) == 3


@pytest.mark.parametrize("by", ["prompt", "user", "time"])
def test_a_prompt_and_its_continuation_are_on_one_side_of_a_split(store: FeedbackStore, by: str) -> None:
    """Also where the turn between was not judged, and with and without a system message, and when redacted."""
    system = {"role": "system", "content": "Be nice."}
    for n in range(40):
        start = conversation(f"q{n}")
        longer = conversation(f"q{n}", "not judged", "more", "ok", "again")
        for number, prompt in enumerate((start, longer, [system, *start], [system, *longer])):
            store.record(
                prompt, "x", thumbs=n % 2 == 0, user_hash=f"u{(n + (number == n % 9)) % 20}", time=n + 2 * number
            )
    train, held, _ = store.split(0.3, by=by, seed=1)

    def first(view: Any) -> set[str]:
        return {next(m["content"] for m in record.prompt if m["role"] == "user") for record in view.records()}

    assert first(train) and first(held) and not first(train) & first(held)
    groups = store.labelled(redact=lambda text: text.replace("q", "r")).as_dataset(("feedback",))
    sides = [{row["prompt"][-1]["content"] if len(row["prompt"]) < 3 else "" for row in side} - {""}
             for side in split(groups, 0.3, seed=1)]  # fmt: skip
    assert not sides[0] & sides[1] and all(sides)


@pytest.mark.parametrize("by", ["prompt", "user", "time"])
def test_the_sides_of_a_split_share_no_prompt_and_no_conversation(store: FeedbackStore, by: str) -> None:
    store.record_many(
        {"prompt": conversation(f"q{n * 7 // 20}", *(("a", "more") if n % 3 == 0 else ())), "completion": "a",
         "thumbs": n % 2 == 0, "user_hash": f"u{n // 10}" if n % 50 else "", "time": n}
        for n in range(400)
    )  # fmt: skip
    train, held, report = store.split(0.25, by=by, seed=1)
    sides = [list(train.records()), list(held.records())]
    first = [{record.prompt[0]["content"] for record in side} for side in sides]  # type: ignore[index]
    assert not first[0] & first[1] and all(first)
    assert (report.train, report.held_out) == tuple(map(len, sides))
    assert report.train + report.held_out + sum(report.left_out.values()) == 400
    if by == "user":
        assert not {record.user_hash for record in sides[0]} & {record.user_hash for record in sides[1]}
        assert report.left_out["no-user"] == 8
    if by == "time":
        assert report.boundary is not None
        assert max(record.time for record in sides[0]) < report.boundary <= min(record.time for record in sides[1])
    again, _, _ = store.split(0.25, by=by, seed=1)
    assert [record.id for record in again.records()] == [record.id for record in sides[0]]


def test_pairs_of_one_prompt_stay_on_one_side_of_a_validation_split(store: FeedbackStore) -> None:
    for number in range(40):
        store.record(f"q{number}", "a", chosen_over=["b", "c", "d"])
    train, held = split(store.as_dataset(("preference",)), 0.2, seed=3)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    assert len(train) + len(held) == 120


def test_a_log_is_imported_once(store: FeedbackStore, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"question": "q", "answer": "a", "vote": "up", "user": "ann", "timestamp": 1_700_000_000_000},
        {"question": "q", "answer": "b", "created_at": "2026-01-01T00:00:00", "stars": 2, "user": "bob"},
        {"question": "q", "answer": "c"},
    ]
    log = tmp_path / "log.jsonl.gz"
    log.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    with pytest.raises(DataError, match=r"log.jsonl.gz row 3: .*says nothing") as caught:
        store.import_log(log, hash_user=str.upper)
    assert len(store) == 2 and caught.value.details["line"] == 3
    for _ in range(2):
        assert store.import_log(log, silent="skip", hash_user=lambda user: user.upper()) == 2
    records = list(store.records())
    assert [(r.completion, r.thumbs, r.rating, r.user_hash, r.time) for r in records] == [
        ("a", True, None, "ANN", 1_700_000_000.0),
        ("b", None, 2.0, "BOB", 1_767_225_600.0),
    ]


def test_a_line_of_a_log_that_is_wrong_is_named_and_those_before_it_are_written(
    store: FeedbackStore, tmp_path: Path
) -> None:
    good = [{"question": f"q{n}", "answer": "a", "vote": "up"} for n in range(520)]
    log = tmp_path / "log.jsonl"

    def fails(line: str, match: str, written: int) -> None:
        lines = [json.dumps(row) for row in good]
        lines[505] = line
        log.write_text("\n" + "\n".join(lines) + "\n")
        with pytest.raises(DataError, match=match) as caught:
            store.import_log(log)
        assert (caught.value.details["row"], caught.value.details["line"], len(store)) == (506, 507, written)
        assert caught.value.details["file"] == str(log)

    fails(json.dumps({"question": "q", "answer": "a", "vote": 0}), r"log.jsonl row 506 \(line 507\): .*thumbs", 505)
    fails(json.dumps({"question": "q", "vote": "up"}), r"'completion' is in none of the columns question, vote", 505)
    fails("{", "log.jsonl row 506", 505)
    store.record("another", "a", thumbs=True, id="taken")
    fails(json.dumps({"question": "q", "answer": "a", "vote": "up", "id": "taken"}), "row 506 .*id 'taken'", 506)


def test_a_log_keeps_the_input_of_an_instruction_and_ends_a_conversation_with_its_answer(
    store: FeedbackStore, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Translate", "input": "The dog sleeps", "output": "Le chien dort", "vote": "up", "time": 1},
        {"instruction": "Translate", "input": "", "output": "Quoi?", "vote": "up", "time": 2},
        {"messages": conversation("q", "a", "more", "b"), "vote": "up", "time": 3},
        {"messages": conversation("q", "a"), "answer": "a", "vote": "down", "time": 4},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert store.import_log(log) == 4
    first, second, third, fourth = store.records()
    assert (first.prompt, second.prompt) == ("Translate\n\nThe dog sleeps", "Translate")
    assert third.prompt == conversation("q", "a", "more") and third.completion == [
        {"role": "assistant", "content": "b"}
    ]
    assert fourth.prompt == conversation("q") and fourth.completion == [{"role": "assistant", "content": "a"}]


def test_real_trees_keep_every_thumb_and_rank(store: FeedbackStore, shared_data: Path) -> None:
    path = shared_data / "open-assistant" / "en_100_message.jsonl"
    for _ in range(2):
        count = store.import_data(path)
    found = store.statistics()
    assert found["records"] == count and found["thumbs_up"] == 563 and found["thumbs_down"] == 249

    def key(row: Any) -> str:
        return json.dumps([row["prompt"], row["completion"]])

    thumbs = {key(row): row["label"] for row in store.labelled()}
    assert thumbs == {key(row): row["label"] for row in load_dataset(path, accepts=("feedback",))}
    every = {pair_key(row) for row in store.preferences(derived=False, max_pairs=None)}
    due = {
        json.dumps([row["prompt"], better, worse])
        for row in load_dataset(path, accepts=("ranked",))
        for better, high in zip(row["completions"], row["ranks"], strict=True)
        for worse, low in zip(row["completions"], row["ranks"], strict=True)
        if high < low and better != worse
    }
    assert every == due


def pair_key(row: Any) -> str:
    return json.dumps([row["prompt"], row["chosen"], row["rejected"]])


def test_real_ranked_answers(store: FeedbackStore, shared_data: Path) -> None:
    path = shared_data / "open-assistant" / "oaast_rm_zh.json"
    store.import_data(path)
    pairs = store.preferences(derived=False, max_pairs=None)
    due = {pair_key(row) for row in load_dataset(path, accepts=("preference",))}
    assert due <= {pair_key(row) for row in pairs} and not pairs.report.left_out


def test_a_step_takes_a_method_that_fits_the_store_or_says_why_none_does(store: FeedbackStore) -> None:
    def method(data: Any) -> str:
        return str(Pipeline().align(data=data).explain())

    store.record("q1", "a", thumbs=True)
    with pytest.raises(DataError, match="all 1 judged answers are good"):
        store.best_method()
    store.record("q2", "b", thumbs=False)
    assert store.best_method() == ("kto", "feedback.db holds 0 preference pairs, 1 good and 1 bad answers, 0 ratings: "
                                   "single answers say the most, and there are good and bad ones")  # fmt: skip
    store.record("q3", "a", chosen_over="b")
    found = store.best_method()
    assert found is not None and found[0] == "dpo" and store.best_method("reward") is None
    assert store.as_dataset(("feedback",)).schema == "feedback" and len(store.as_dataset(("preference",))) == 1
    with pytest.raises(DataError, match="no rated or ranked rows"):
        store.as_dataset(("rated", "ranked"))
    assert "dpo" in method(store)


def test_a_step_that_takes_other_rows_is_told_which_methods_learn_from_those_that_there_are(
    store: FeedbackStore,
) -> None:
    def fix(accepts: str, data: Any = store) -> str:
        with pytest.raises(DataError) as caught:
            data.as_dataset((accepts,))
        return str(caught.value.fix)

    assert fix("preference").startswith("record edit=")
    store.record("q1", "a", thumbs=True)
    assert fix("preference").startswith("sft() from good answers; or record edit=")
    store.record("q2", "a", thumbs=False)
    both = 'align(method="kto") or align(method="bco") from single answers, good and bad ones'
    assert fix("preference").startswith(both) and fix("preference", store.labelled()).endswith(both)
    store.record("q3", "a", rating=3)
    assert "reward() from ratings" in fix("preference")
    for record in list(store.records()):
        store.forget(ids=[record.id])
    store.record("q", "a", chosen_over="b")
    assert fix("feedback").startswith('align(method="dpo") learns from pairs')


def test_a_view_is_counted_and_sent_to_another_process(store: FeedbackStore) -> None:
    store.record_many({"prompt": f"q{n}", "completion": "a", "thumbs": True, "time": n + 1, "source": "s"}
                      for n in range(40))  # fmt: skip
    train, held, _ = store.split(0.25)
    for view in (train, held, store.where(since=11, until=21, source="s"), store.where(source="none")):
        copy = pickle.loads(pickle.dumps(view))
        assert [record.id for record in copy.records()] == [record.id for record in view.records()]
        assert len(copy) == len(list(view.records())) and copy
    assert (len(store.where(since=11, until=21, source="s")), len(train) + len(held)) == (10, 40)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda store: store.preferences(min_agreement="0.7"), "min_agreement is '0.7'"),
        (lambda store: store.preferences(min_gap=None), "min_gap is None"),
        (lambda store: store.labelled(rating_split=True), "rating_split is True"),
        (lambda store: store.labelled(min_votes="2"), "min_votes is '2'"),
        (lambda store: store.rated(scale=5), "scale is 5"),
        (lambda store: store.rated(scale=(1, 1)), "scale is"),
        (lambda store: store.split("0.2"), "held_out"),
    ],
)
def test_wrong_options_of_exports_are_named(store: FeedbackStore, call: Any, match: str) -> None:
    store.record_many({"prompt": f"q{n}", "completion": "a", "rating": 4} for n in range(4))
    with pytest.raises(OptionsError, match=match):
        call(store)


def test_a_view_until_a_time_stays_as_it_is(store: FeedbackStore) -> None:
    store.record("q", "a", chosen_over="b", time=10, model_hash="m1")
    view = store.where(until="2000-01-01T00:00:00+00:00", model_hash="m1")
    before = view.as_dataset(("preference",)).fingerprint()
    store.record("q2", "a", chosen_over="b", model_hash="m1")
    store.record("q3", "a", chosen_over="b", time=11, model_hash="m2")
    assert view.as_dataset(("preference",)).fingerprint() == before and len(store.preferences()) == 3
