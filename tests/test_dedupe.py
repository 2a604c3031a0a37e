"""Copies and near-copies: the first stays, the others are counted and named."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import data_plugin
import pytest
import toy_plugin

from tunekit.data import load_dataset
from tunekit.data.dedupe import THRESHOLD, Exact, Near, _Keys, _shingles, filters_for
from tunekit.data.select import Selection, select
from tunekit.data.text import normalized, words
from tunekit.errors import MissingDependencyError
from tunekit.events import Notice
from tunekit.pipeline import Pipeline
from tunekit.session import Session

WORDS = "a quick brown fox jumps over the lazy dog while many small birds sing in old tall trees near that river bank"


def chosen(rows: list[dict[str, Any]], how: str) -> Selection:
    return select(load_dataset(rows), filters=filters_for(how))


def test_the_first_of_equal_texts_stays() -> None:
    rows = [{"text": text} for text in ("one  two", "three", "one two", " one\ntwo ", "One two", "three")]
    made = chosen(rows, "exact")
    assert [row["text"] for row in made.train.rows()] == ["one  two", "three", "One two"]
    [out] = made.left_out
    assert out.facts() == {
        "reason": "duplicate",
        "rows": 3,
        "examples": [{"row": 3, "same_as": 1}, {"row": 4, "same_as": 1}, {"row": 6, "same_as": 2}],
    }


def test_composed_and_decomposed_letters_are_the_same_text() -> None:
    assert normalized("cafe\u0301  x\u3000y") == "caf\u00e9 x y"
    assert len(chosen([{"text": "cafe\u0301"}, {"text": "caf\u00e9"}], "exact").train) == 1


def test_every_text_field_counts() -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    rows = [pair("p", "a", "b"), pair("p", "b", "a"), pair("p", "a", "c"), pair("p", "a", "b")]
    assert len(chosen(rows, "exact").train) == 3
    turns = [[("user", "hi"), ("assistant", text)] for text in ("one", "two", "one")]
    talks = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    assert len(chosen(talks, "exact").train) == 2
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert len(chosen([talks[0], {**talks[0], "tools": [tool]}], "exact").train) == 2, "other tools, another row"


def test_one_text_with_two_labels_is_said() -> None:
    rows = [{"text": text, "label": label} for text, label in (("x", "a"), ("x", "b"), ("x", "a"), ("y", "b"))]
    made = chosen(rows, "exact")
    assert [row["label"] for row in made.train.rows()] == ["a", "b"]
    assert (made.left_out[0].rows, made.conflicts) == (2, 1)


def test_the_hash_table_is_a_set_in_order_of_arrival() -> None:
    keys = [random.Random(1).getrandbits(64) & ~0xFF | number % 7 for number in range(5000)]  # many collisions of slots
    table, known = _Keys(), {}
    for key in keys * 2:
        assert table.find_or_add(key) == known.get(key)
        known.setdefault(key, len(known))


def _similarity(one: str, other: str) -> float:
    a, b = _shingles({"text": one}), _shingles({"text": other})
    return len(a & b) / len(a | b)


def test_nearly_the_same_words_are_found_and_nothing_below_the_threshold() -> None:
    """Every pair is compared with the exact Jaccard similarity of its word 5-grams, computed here by hand."""
    draw = random.Random(0)
    vocabulary = WORDS.split()
    base = [" ".join(draw.choices(vocabulary, k=120)) for _ in range(30)]
    edited = []
    for text in base:
        said = text.split()
        for _ in range(draw.randint(1, 6)):
            said[draw.randrange(len(said))] = "other"
        edited.append(" ".join(said))
    made = chosen([{"text": text} for text in base + edited], "near")
    stayed = {row["text"] for row in made.train.rows()}
    assert stayed >= set(base)
    similar = [text for text, other in zip(edited, base, strict=True) if _similarity(text, other) >= THRESHOLD]
    left_out = set(edited) - stayed
    assert left_out <= set(similar), "nothing below the threshold is left out"
    assert len(left_out) >= 0.9 * len(similar) > 5
    for example in made.left_out[0].examples:
        texts = base + edited
        assert example["similarity"] == round(_similarity(texts[example["row"] - 1], texts[example["like"] - 1]), 3)
    again = chosen([{"text": text} for text in base + edited], "near")
    assert [out.facts() for out in again.left_out] == [out.facts() for out in made.left_out]


def test_near_leaves_out_exact_copies_first_and_ignores_case_and_punctuation() -> None:
    made = chosen([{"text": WORDS}, {"text": WORDS}, {"text": WORDS.upper().replace(" ", ", ")}], "near")
    assert [(out.reason, out.rows) for out in made.left_out] == [("duplicate", 1), ("near-duplicate", 1)]
    assert made.left_out[1].examples == [{"row": 3, "like": 1, "similarity": 1.0}]


def test_chinese_text_has_words() -> None:
    assert words("今天天气 很好, OK 3.5") == ["今", "天", "天", "气", "很", "好", "ok", "3", "5"]
    long = "机器学习是人工智能的一个分支 它使用数据和算法来模仿人类学习的方式并逐步提高其准确性和可靠性"
    made = chosen([{"text": long}, {"text": long + "。很好"}, {"text": "完全不同的另外一句话说的是别的事情"}], "near")
    assert len(made.train) == 2


def test_the_install_line_is_named_when_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingDependencyError) as caught:
        Near()
    assert caught.value.fix == 'pip install "tunekit[dedupe]"'
    assert isinstance(filters_for("exact")[0], Exact), "exact copies need no package"


def test_real_rows(shared_data: Path) -> None:
    """14 of the 999 Alpaca rows repeat an earlier one word for word; of the rows twice, the second half is left out."""
    rows = list(load_dataset(shared_data / "llamafactory" / "alpaca_en_demo.json").rows())
    different = {json.dumps(row) for row in rows}
    once = chosen(rows, "exact")
    assert len(different) == len(once.train) == 985
    assert (once.left_out[0].rows, once.left_out[0].examples[0]) == (14, {"row": 276, "same_as": 118})
    assert rows[275] == rows[117]
    assert list(chosen(rows * 2, "exact").train.rows()) == list(once.train.rows())


def test_check_names_the_missing_package_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy_plugin.write_model(tmp_path / "base", 1.0)
    session = Session(plugins=[data_plugin], autoload=False)
    pipeline = Pipeline(model=str(tmp_path / "base")).sft(data=[{"text": "x"}], dedupe="near")
    assert pipeline.check(session=session) == []
    monkeypatch.setitem(sys.modules, "datasketch", None)
    [finding] = pipeline.check(session=session)
    assert (finding.step, finding.code, finding.fix) == ("sft", "missing-package", 'pip install "tunekit[dedupe]"')


def test_what_was_left_out_is_said_and_recorded(tmp_path: Path) -> None:
    toy_plugin.write_model(tmp_path / "base", 1.0)
    told: list[Any] = []
    rows = [{"text": WORDS}, {"text": WORDS}, {"text": WORDS.upper()}, {"text": "else"}]
    Pipeline(model=str(tmp_path / "base")).sft(data=rows, dedupe="near").run(
        workdir=tmp_path / "w", session=Session(plugins=[data_plugin], autoload=False), on_event=told.append
    )
    assert [event.message for event in told if isinstance(event, Notice) and event.code.startswith("left-out")] == [
        "left out of list: 1 row with the text of an earlier row (row 2: same as 1)",
        "left out of list: 1 row with nearly the words of an earlier row (row 3: like 1, similarity 1.0)",
    ]
    facts = json.loads((tmp_path / "w" / "manifest.json").read_text())["data"]["sft"]
    assert (facts["rows"], [out["reason"] for out in facts["left_out"]]) == (2, ["duplicate", "near-duplicate"])


def test_the_row_that_a_near_copy_is_like_is_named_by_its_number_in_the_source() -> None:
    from tunekit.data.dedupe import Near

    near = Near()
    one, two, three = (" ".join(f"{name}{n}" for n in range(30)) for name in "abc")
    assert [near.look({"text": text}, number) for text, number in ((one, 1), (two, 1), (three, 2))] == [None] * 3
    assert near.look({"text": two}, 7) == {"like": 1, "similarity": 1.0}
    assert near.look({"text": three}, 8) == {"like": 2, "similarity": 1.0}


def test_exact_takes_the_memory_that_is_written_down() -> None:
    exact = Exact()
    count = 100_000
    for number in range(count):
        exact.look({"text": str(number), "label": "x"}, number)
    parts = (exact._seen._keys, exact._seen._slots, exact._numbers, exact._targets)
    assert 22 <= sum(map(sys.getsizeof, parts)) / count <= 40
    assert exact.look({"text": "5", "label": "x"}, count) == {"same_as": 5}
    assert exact.look({"text": "5", "label": "y"}, count) == {"same_as": 5, "conflict": True}


def test_a_target_that_comes_late_is_a_conflict_with_none() -> None:
    exact = Exact()
    assert exact.look({"text": "a"}, 1) is None
    assert exact.look({"text": "a", "label": "x"}, 2) == {"same_as": 1, "conflict": True}
    assert exact.look({"text": "b", "label": "x"}, 3) is None
    assert exact.look({"text": "b", "label": "x"}, 4) == {"same_as": 3}
