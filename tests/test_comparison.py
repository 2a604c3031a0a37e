"""Comparing scores: exact tests and intervals against known numbers, pairing, and what is refused or flagged."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tunekit import _statistics as statistics
from tunekit.artifacts import Score
from tunekit.comparison import RunComparison, compare_runs, compare_scores
from tunekit.errors import DataError, UnknownNameError

HOSTILE = "<script>alert('x')</script>|&"


def score(folder: Path, name: str, rows: list[dict[str, Any]], **fields: Any) -> Score:
    path = folder / f"{name}.jsonl"
    base = {"prompt_hash": "p", "prediction": "A", "target": "B", "correct": False}
    path.write_text("".join(json.dumps({**base, **row}) + "\n" for row in rows))
    values = [row.get("value", float(row.get("correct", False))) for row in rows]
    given: dict[str, Any] = {
        "benchmark": "quiz", "metric": "acc", "value": sum(values) / len(values), "stderr": 0.1, "ci_low": 0.0,
        "ci_high": 1.0, "n": len(rows), "source": "here", "rows_path": str(path), **fields,
    }  # fmt: skip
    return Score(**given)


def right(flags: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "prompt_hash": f"h{i}", "correct": flag == "1", **fields} for i, flag in enumerate(flags)]


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    # scipy.stats.binomtest(better, better + worse).pvalue
    [
        (0, 0, 1.0),
        (12, 2, 0.012939453125),
        (0, 5, 0.0625),
        (700, 620, 0.029636429325384843),
        (1600, 1400, 0.0002785639610392337),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(better: int, worse: int, p: float) -> None:
    assert statistics.mcnemar(better, worse) == pytest.approx(p, rel=1e-9)
    assert statistics.mcnemar(worse, better) == pytest.approx(p, rel=1e-9)


def test_the_interval_of_paired_shares_is_newcombes() -> None:
    """Newcombe 1998, table of comparisons, method 10: 36, 12, 2, 0 gives 0.0569 to 0.3404."""
    assert statistics.paired_shares(36, 2, 12, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = statistics.paired_shares(0, 0, 20, 0)
    assert 0 < low < 1 and high == 1.0
    assert statistics.paired_shares(10, 0, 0, 10)[0] < 0 < statistics.paired_shares(10, 0, 0, 10)[1]


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706205), (5, 2.570582), (11, 2.200985), (30, 2.042272), (1000, 1.962339)]
)
def test_the_interval_of_a_mean_is_students(freedom: int, t: float) -> None:
    """Published quantiles of Student's t."""
    assert statistics.t95(freedom) == pytest.approx(t, abs=2e-5)
    moves = [0.0, 1.0] * 50
    half = statistics.t95(99) * math.sqrt(25 / 99 / 100)
    assert statistics.mean_interval(moves) == pytest.approx((0.5 - half, 0.5 + half))
    # A few equal moves say nothing of their spread.
    assert statistics.mean_interval([0.1] * 3) == pytest.approx((0.0, 0.2))


def test_flipping_signs_gives_fishers_p_value() -> None:
    """Fisher 1935, section 21: Darwin's maize, 1726 of 32768 sums as far as 314; and the least p is 2 / 2**n."""
    darwin = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    p = 1726 / 32768
    assert statistics.sign_flip(darwin) == pytest.approx(p, abs=4 * math.sqrt(p / 10_000))
    assert statistics.sign_flip(darwin) == statistics.sign_flip(darwin)
    assert statistics.sign_flip([3.0, 1.0, -2.0]) == 6 / 8
    for n in (1, 2, 5, 12, 13):
        assert statistics.sign_flip([0.1] * n + [0.0] * 90) == 2 / 2**n
    assert statistics.sign_flip([0.0] * 9) == statistics.sign_flip([math.nan] * 9) == 1.0


@pytest.mark.parametrize("n", [2, 5, 8, 20])
def test_nothing_is_found_in_noise_more_often_than_said(n: int) -> None:
    draw = random.Random(11)
    samples = [[draw.gauss(0.0, 1.0) for _ in range(n)] for _ in range(300)]
    assert sum(statistics.sign_flip(each, 400) < 0.05 for each in samples) <= 24
    covered = sum(low <= 0 <= high for low, high in map(statistics.mean_interval, samples))
    assert 276 <= covered <= 296


def test_holm_adjusts_and_stays_in_order() -> None:
    """Holm 1979: p times the number of tests not yet decided, never falling."""
    found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]


def test_right_and_wrong_rows_are_counted_in_pairs(tmp_path: Path) -> None:
    before = score(tmp_path, "a", right("1" * 38 + "0" * 12))
    after = score(tmp_path, "b", right("1" * 36 + "0" * 2 + "1" * 12))
    found = compare_scores(before, after)
    assert (found.wins, found.losses, found.ties, found.n) == (12, 2, 36, 50)
    assert found.difference == pytest.approx(0.2)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert found.p_value == pytest.approx(0.012939453125)
    assert [flip.id for flip in found.flips[:3]] == ["r36", "r37", "r38"]
    assert found.verdict() == "better" and compare_scores(after, before).verdict() == "worse"
    assert found.flags == ()


def test_rows_are_paired_by_id_prompt_and_answer_and_not_by_place(tmp_path: Path) -> None:
    before = score(tmp_path, "a", [*right("1100"), {"id": "old"}])
    rows = [
        {"id": "r3", "prompt_hash": "h3", "correct": True},
        {"id": "r0", "prompt_hash": "h0", "correct": True},
        {"id": "r1", "prompt_hash": "other", "correct": True},
        {"id": "r2", "prompt_hash": "h2", "correct": True, "target": "C"},
        {"id": "new"},
    ]
    found = compare_scores(before, score(tmp_path, "b", rows))
    assert (found.n, found.wins, found.ties) == (2, 1, 1)
    assert found.unpaired == {
        "asked in other words": 1,
        "with another right answer": 1,
        "measured before only": 1,
        "measured after only": 1,
    }
    assert any(flag.startswith("2 rows are paired; left out: 1 asked in other words") for flag in found.flags)
    assert compare_scores(before, score(tmp_path, "b", rows), prompts="any").n == 3


def test_rows_of_an_id_that_stands_twice_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [*right("10100110"), {"id": "r0", "prompt_hash": "h0"}, {"id": "once"}]
    before, after = score(tmp_path, "a", rows), score(tmp_path, "b", [*rows[:-1], {"id": "once"}, {"id": "once"}])
    found = compare_scores(before, after)
    assert found.n == 7 and found.unpaired == {"standing twice": 4}
    assert any("left out: 4 standing twice" in flag for flag in found.flags)
    with pytest.raises(DataError, match="no row in common") as caught:
        compare_scores(score(tmp_path, "c", rows[:1] * 2), before)
    assert "2 standing twice" in caught.value.found


def test_rows_that_count_for_a_value_are_tested_in_pairs(tmp_path: Path) -> None:
    draw = random.Random(2)
    old = [{"id": str(i), "value": draw.random()} for i in range(300)]
    new = [{**row, "value": float(row["value"]) + 0.02} for row in old]
    found = compare_scores(score(tmp_path, "a", old), score(tmp_path, "b", new))
    assert found.difference == pytest.approx(0.02)
    # Every row moved by the same amount: between rows there is nothing to be unsure of.
    assert (found.ci_low, found.ci_high) == pytest.approx((0.02, 0.02))
    assert found.p_value < 0.001 and found.wins == 300 and "sign-flip" in found.method
    assert found.verdict() == "better"


def test_on_a_handful_of_rows_there_is_no_verdict(tmp_path: Path) -> None:
    def moved(n: int) -> RunComparison:
        old = [{"id": str(i), "value": 0.5} for i in range(n)]
        new = [{"id": str(i), "value": 0.6 + 0.001 * i} for i in range(n)]
        names = ("old", "new")
        return compare_runs({"x": score(tmp_path, "a", old)}, {"x": score(tmp_path, "b", new)}, names=names)

    assert moved(5)["x"].p_value == 2 / 2**5 and moved(5).verdict("x") == "too few rows"
    assert "1 too few rows (of 1" in moved(1).to_markdown()
    assert moved(6)["x"].p_value == 2 / 2**6 and moved(6).verdict("x") == "better"


def test_less_is_better_where_the_score_says_so(tmp_path: Path) -> None:
    old = [{"id": str(i), "value": 3.0 + i % 5} for i in range(50)]
    new = [{**row, "value": float(row["value"]) - 0.5} for row in old]
    fields: dict[str, Any] = {"metric": "loss", "higher_is_better": False}
    found = compare_scores(score(tmp_path, "a", old, **fields), score(tmp_path, "b", new, **fields))
    assert found.difference == pytest.approx(-0.5) and found.gain == pytest.approx(0.5)
    assert found.wins == 50 and found.verdict() == "better"


def test_a_metric_over_all_rows_is_tested_by_the_values_shown(tmp_path: Path) -> None:
    """T25: 39 of 40 texts improved, the longest got worse: of the perplexity over all words nothing is shown."""
    old = [{"id": str(i), "value": 2.0 + 0.01 * i} for i in range(40)]
    new = [{**row, "value": float(row["value"]) - 0.2 if i else 6.0} for i, row in enumerate(old)]
    fields: dict[str, Any] = {"metric": "ppl", "higher_is_better": False}
    a = score(tmp_path, "a", old, **{**fields, "value": 20.0, "stderr": 3.0})
    b = score(tmp_path, "b", new, **{**fields, "value": 25.0, "stderr": 4.0})
    found = compare_scores(a, b)
    assert (found.before, found.after, found.difference, found.wins, found.losses) == (20.0, 25.0, 5.0, 39, 1)
    assert (found.ci_low, found.ci_high) == pytest.approx((5 - 1.959964 * 5, 5 + 1.959964 * 5))
    # One standard error: 2 * (1 - Phi(1)).
    assert found.p_value == pytest.approx(0.317310507863) and found.verdict() == "no difference shown"
    assert any("function of all rows" in flag for flag in found.flags)
    sure = compare_scores(replace(a, stderr=1.0), replace(b, stderr=1.0))
    assert sure.verdict() == "worse" and sure.verdict(0.06) == "no difference shown"
    assert replace(sure, ci_low=-0.1).verdict() == "no difference shown"


def of_subjects(**flags: str) -> list[dict[str, Any]]:
    return [
        {"id": f"{group}{i}", "correct": flag == "1", "group": group}
        for group, given in flags.items()
        for i, flag in enumerate(given)
    ]


def test_means_over_subjects_are_compared_within_subjects(tmp_path: Path) -> None:
    """T25: of a macro average a row of a small subject weighs more."""
    a = score(tmp_path, "a", of_subjects(small="0" * 12, large="1" * 20 + "0" * 20), value=0.25)
    b = score(tmp_path, "b", of_subjects(small="1" * 6 + "0" * 6, large="1" * 20 + "0" * 20), value=0.5)
    found = compare_scores(a, b)
    assert (found.before, found.after, found.difference) == (0.25, 0.5, 0.25)
    # The large subject did not move; six moves of 1 and six of 0 have a variance of 3/11, over 12 rows and 2 subjects.
    half = 1.959964 * math.sqrt(3 / 11 / 12) / 2
    assert (found.ci_low, found.ci_high) == pytest.approx((0.25 - half, 0.25 + half))
    # The normal p-value would be 0.0009: six rows that moved cannot show so much.
    assert found.p_value == 2 / 2**6


def test_a_subject_of_one_row_is_not_certain(tmp_path: Path) -> None:
    """T25: one row has the variance of the rows of the others, not none."""
    a = score(tmp_path, "a", of_subjects(one="0", many="0" * 10), value=0.0)
    b = score(tmp_path, "b", of_subjects(one="1", many="1" * 5 + "0" * 5), value=0.75)
    found = compare_scores(a, b)
    # Moves within the large subject have a variance of 5/18; so has the one row.
    half = 1.959964 * math.sqrt(5 / 18 / 10 + 5 / 18) / 2
    assert (found.ci_low, found.ci_high) == pytest.approx((0.75 - half, 0.75 + half))
    assert "pooled" in found.method
    singles = {f"s{i}": "0" for i in range(20)}
    moved = {**singles, "s1": "1", "s2": "1", "s3": "1"}
    a = score(tmp_path, "c", of_subjects(**singles, pair="00"), value=0.0)
    b = score(tmp_path, "d", of_subjects(**moved, pair="10"), value=3.5 / 21)
    assert compare_scores(a, b).verdict() == "no difference shown"
    # The pair did not move: the single rows' own spread stands for them.
    b = score(tmp_path, "e", of_subjects(**moved, pair="00"), value=3 / 21)
    assert compare_scores(a, b).ci_low < 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"benchmark": "other"}, "benchmarks"),
        ({"metric": "f1"}, "metrics"),
        ({"higher_is_better": False}, "directions"),
        ({"setup": "0-shot"}, "setups"),
    ],
)
def test_what_is_something_else_is_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    a = score(tmp_path, "a", right("10"), setup="5-shot")
    with pytest.raises(DataError, match=f"different {what}"):
        compare_scores(a, replace(a, **change))
    with pytest.raises(DataError, match="no row in common") as caught:
        compare_scores(a, score(tmp_path, "b", [{**row, "prompt_hash": "x"} for row in right("10")]))
    assert "2 asked in other words" in caught.value.found and 'prompts="any"' in caught.value.fix


def test_samples_other_sources_and_other_protocols_are_flagged(tmp_path: Path) -> None:
    a = score(tmp_path, "a", right("10"), comparable=False, protocol={"shots": 5, "rows": 2, "max_new_tokens": 400})
    b = score(tmp_path, "b", right("10", truncated=True), source="there", protocol={"shots": 5, "max_new_tokens": 256})
    found = compare_scores(a, b)
    said = " / ".join(found.flags)
    for part in (
        "not comparable",
        "other sources: here and there",
        "max_new_tokens 400 and 256",
        "0 rows before and 2 after",
    ):
        assert part in said
    assert found.protocol_differences == {"max_new_tokens": (400, 256)}


def test_a_setup_that_only_one_score_names_is_flagged_where_it_asks_differently(tmp_path: Path) -> None:
    a = score(tmp_path, "a", right("10" * 4), protocol={"shots": 0})
    b = replace(a, setup="0-shot")
    assert not any("setups" in flag for flag in compare_scores(a, b).flags)
    other = score(tmp_path, "b", [*right("10" * 3), *({**row, "prompt_hash": "x"} for row in right("10" * 4)[6:])])
    for after in (replace(b, protocol={"shots": 5}), replace(other, setup="0-shot", protocol={"shots": 0})):
        for prompts in ("same", "any"):
            found = compare_scores(a, after, prompts=prompts)
            assert "other setups: the default and 0-shot" in found.flags


def test_subjects_that_moved_are_told_from_chance(tmp_path: Path) -> None:
    def rows(easy: str, hard: str) -> list[dict[str, Any]]:
        return [
            {"id": f"{group}{i}", "correct": flag == "1", "group": group}
            for group, flags in (("easy", easy), ("hard", hard))
            for i, flag in enumerate(flags)
        ]

    found = compare_scores(
        score(tmp_path, "a", rows("0" * 20, "01" * 10)), score(tmp_path, "b", rows("1" * 20, "10" + "01" * 9))
    )
    assert [(change.name, change.moved) for change in found.subjects] == [("easy", True), ("hard", False)]
    assert found.subjects[0].p_adjusted == pytest.approx(2 * 2 * 0.5**20)


def test_runs_share_benchmarks_and_the_family_is_corrected(tmp_path: Path) -> None:
    old, new = right("1" * 10 + "0" * 40), right("1" * 10 + "1" * 7 + "0" * 33)
    before = {name: score(tmp_path, f"{name}-a", old) for name in ("x", "y", "z", "gone")}
    after = {name: score(tmp_path, f"{name}-b", new if name == "x" else old) for name in ("x", "y")}
    after["z"] = score(tmp_path, "z-b", old, metric="f1")
    found = compare_runs(before, after, names=("old", "new"))
    assert found["x"].p_value == pytest.approx(2 * 0.5**7)
    assert found.p_adjusted["x"] == pytest.approx(4 * 0.5**7) and found.verdict("x") == "better"
    assert found.verdict("y") == "no difference shown"
    assert found.left_out["gone"] == "measured before only" and "different metrics" in found.left_out["z"]
    with pytest.raises(UnknownNameError):
        found["w"]
    again = json.loads(json.dumps(found.to_dict()))
    assert again["benchmarks"]["x"]["verdict"] == "better" and len(again["benchmarks"]["x"]["flips"]) == 7


def test_reports_are_well_formed_escaped_and_say_the_numbers(tmp_path: Path) -> None:
    rows = [{**row, "target": HOSTILE, "group": HOSTILE if i % 2 else "b"} for i, row in enumerate(right("10" * 20))]
    later = [{**row, "correct": True, "prediction": HOSTILE} for row in rows]
    found = compare_runs(
        {HOSTILE: score(tmp_path, "a", rows)}, {HOSTILE: score(tmp_path, "b", later)}, names=(HOSTILE, "new")
    )
    html = found.to_html(tmp_path / "out.html").read_text()
    assert "<script" not in html and not re.search(r"https?://|url\(|@import", html)
    ElementTree.fromstring(re.sub(r"<meta[^>]*>|<!DOCTYPE html>", "", html))
    assert "0.5000 -&gt; 1.0000" in html and "20 up, 0 down, 20 same" in html
    svg = ElementTree.fromstring(found.to_svg())
    namespace = "{http://www.w3.org/2000/svg}"
    (dot,) = svg.iter(f"{namespace}circle")
    (interval,) = (each for each in svg.iter(f"{namespace}line") if "ci" in (each.get("class") or "").split())
    one = found[HOSTILE]
    share = (float(dot.get("cx", 0)) - float(interval.get("x1", 0))) / (
        float(interval.get("x2", 0)) - float(interval.get("x1", 0))
    )
    assert share == pytest.approx((one.difference - one.ci_low) / (one.ci_high - one.ci_low), abs=0.01)
    assert "var(" not in found.to_svg()
    text = found.to_markdown()
    assert "+0.5000" in text and "<script" not in text


def test_what_was_not_scored_cannot_be_compared(tmp_path: Path) -> None:
    a = score(tmp_path, "a", right("1100"))
    b = score(tmp_path, "b", right("1100"), protocol={"scored": False})
    with pytest.raises(DataError, match="was not scored") as caught:
        compare_scores(a, b)
    assert caught.value.code == "not-comparable"
