"""Metrics against numbers worked out by hand, and the tags that entity scores are often wrong on."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("seqeval")

from hypothesis import given
from hypothesis import strategies as st

from tunekit_transformers.tasks import metrics
from tunekit_transformers.tasks.tags import is_entities, to_bio


def test_classes_by_hand() -> None:
    true = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "c", "c"]
    report = metrics.classification_report(true, predicted, ["a", "b", "c"])
    assert report["accuracy"] == report["f1_micro"] == report["precision_micro"] == pytest.approx(4 / 6)
    # a: p 2/2, r 2/3; b: p 1/2, r 1/2; c: p 1/2, r 1/1.
    assert report["precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert report["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert report["f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert report["f1_weighted"] == pytest.approx((3 * 0.8 + 2 * 0.5 + 2 / 3) / 6)
    assert report["per_class"]["a"] == {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": 0.8, "support": 3}
    assert report["confusion_labels"] == ["a", "b", "c"]
    assert report["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_a_class_that_the_model_does_not_know_is_a_miss() -> None:
    report = metrics.classification_report(["a", "new"], ["a", "a"], ["a", "b"])
    assert report["accuracy"] == 0.5 and report["per_class"]["new"]["recall"] == 0.0
    assert set(report["per_class"]) == {"a", "new"}, (
        "a class that neither occurs nor is predicted has no place in a mean"
    )


def test_many_classes_give_the_commonest_confusions() -> None:
    names = [f"c{number}" for number in range(metrics.MOST_CLASSES + 1)]
    report = metrics.classification_report([*names, "c0", "c0"], [*names, "c1", "c1"], names)
    assert "confusion" not in report and report["confusions"] == [["c0", "c1", 2]]


@pytest.mark.parametrize(
    ("true", "predicted", "precision", "recall"),
    [
        # One entity of two: tags are 5/6 right, entities are not.
        ([["B-P", "I-P", "O", "B-L"]], [["B-P", "I-P", "O", "O"]], 1.0, 0.5),
        # An end that is wrong is a miss and a false find.
        ([["B-P", "I-P", "O"]], [["B-P", "O", "O"]], 0.0, 0.0),
        # The type counts.
        ([["B-P", "I-P"]], [["B-L", "I-L"]], 0.0, 0.0),
        # Two neighbours are not one entity.
        ([["B-P", "B-P"]], [["B-P", "I-P"]], 0.0, 0.0),
        # An inside tag without a beginning is no entity in strict IOB2; seqeval's default would count it.
        ([["O", "B-P", "I-P"]], [["O", "I-P", "I-P"]], 0.0, 0.0),
        # An inside tag of another type ends the entity and begins none.
        ([["B-P", "I-P", "O"]], [["B-P", "I-L", "O"]], 0.0, 0.0),
        # Entities do not reach into the next sentence.
        ([["O", "B-P"], ["I-P", "O"]], [["O", "B-P"], ["O", "O"]], 1.0, 1.0),
        # Types with a dash.
        ([["B-creative-work", "I-creative-work"]], [["B-creative-work", "I-creative-work"]], 1.0, 1.0),
        # Nothing there and nothing found.
        ([["O", "O"]], [["O", "O"]], 0.0, 0.0),
        ([["B-P"]], [["O"]], 0.0, 0.0),
        ([["O"]], [["B-P"]], 0.0, 0.0),
    ],
)
def test_entities_by_hand(true: list[list[str]], predicted: list[list[str]], precision: float, recall: float) -> None:
    report = metrics.tagging_report(true, predicted)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert (report["precision"], report["recall"], report["f1"]) == pytest.approx((precision, recall, f1))


def test_entities_per_type_are_told_apart() -> None:
    true = [["B-P", "O", "B-L", "I-L"], ["B-P", "O", "O", "O"]]
    predicted = [["B-P", "O", "B-L", "I-L"], ["O", "O", "B-Z", "O"]]
    report = metrics.tagging_report(true, predicted)
    assert {name: (row["precision"], row["recall"], row["support"]) for name, row in report["per_class"].items()} == {
        "L": (1.0, 1.0, 1),
        "P": (1.0, 0.5, 2),
        "Z": (0.0, 0.0, 0),
    }
    assert report["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3) and report["accuracy"] == pytest.approx(6 / 8)
    assert report["n"] == 3


def test_tags_without_prefix_are_scored_one_by_one() -> None:
    report = metrics.tagging_report([["DET", "NOUN"]], [["DET", "VERB"]], entities=False)
    assert report["accuracy"] == report["f1_micro"] == 0.5


def test_scores_by_hand() -> None:
    report = metrics.regression_report([1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 3.0, 6.0])
    assert report["mse"] == 2.0 and report["rmse"] == pytest.approx(math.sqrt(2)) and report["mae"] == 1.0
    # Deviations (-1.5, -.5, .5, 1.5) and (-2.5, .5, -.5, 2.5): 7 / sqrt(5 * 13); ranks 1 2 3 4 and 1 3 2 4.
    assert report["pearson"] == pytest.approx(7 / math.sqrt(65)) and report["spearman"] == pytest.approx(0.8)
    assert "pearson" not in metrics.regression_report([1.0, 2.0], [3.0, 3.0])
    assert "pearson" not in metrics.regression_report([1.0], [3.0])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # IOB1: B- only between neighbours of one type.
        (["I-P", "I-P", "B-P", "O", "I-L"], ["B-P", "I-P", "B-P", "O", "B-L"]),
        (["S-P", "B-L", "I-L", "E-L"], ["B-P", "B-L", "I-L", "I-L"]),
        (["U-P", "B-L", "L-L", "O"], ["B-P", "B-L", "I-L", "O"]),
        (["B-P", "I-L"], ["B-P", "B-L"]),
    ],
)
def test_tag_schemes_become_bio(before: list[str], after: list[str]) -> None:
    assert is_entities(before) and to_bio(before) == after and to_bio(after) == after


@given(st.lists(st.sampled_from(["O", "B-P", "I-P", "B-L", "I-L", "E-P", "S-L"]), max_size=12))
def test_bio_tags_never_begin_inside(tags: list[str]) -> None:
    made = to_bio(tags)
    for before, tag in zip(["O", *made], made, strict=False):
        assert tag[0] != "I" or before[2:] == tag[2:]
    assert [tag == "O" for tag in made] == [tag == "O" for tag in tags]


def test_parts_of_speech_are_no_entities() -> None:
    assert not is_entities(["DET", "NOUN", "O"]) and not is_entities(["O"]) and is_entities(["O", "B-x"])
