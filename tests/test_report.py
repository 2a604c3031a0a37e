"""The HTML report: well formed, escaped, self-contained, and honest about what it draws."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunekit import _charts, report
from tunekit.artifacts import Artifact, ModelCard, Score
from tunekit.errors import ArtifactError
from tunekit.results import RunResult, StepResult

HOSTILE = "<script>alert('x')</script>\"'&<b>"
VOID = {"meta"}


class Page(HTMLParser):
    """Checks that every tag is closed in order, and keeps text and tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def step(root: Path, name: str, history: list[dict[str, Any]], artifact: Artifact, **values: Any) -> StepResult:
    folder = root / f"{values.get('number', 1):02d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    return StepResult(
        name=name,
        kind=values.get("kind", name),
        folder=folder,
        artifact=artifact,
        seconds=1.0,
        reused=False,
        trains=artifact.trained,
        component="tunekit-trl/sft 0.1.0",
        session=None,  # type: ignore[arg-type]
    )


def run(root: Path, *steps: StepResult, notices: tuple[str, ...] = (), run_id: str = "r1") -> RunResult:
    return RunResult(run_id=run_id, workdir=root, seed=0, status="finished", steps=steps, notices=notices)


def trained() -> Artifact:
    return Artifact(kind="model", model=ModelCard(path="m", parameters=10), trained="full", trained_parameters=10)


def score(name: str = "mmlu", **values: Any) -> Score:
    base: dict[str, Any] = {"metric": "acc", "value": 0.25, "stderr": 0.1, "ci_low": 0.1, "ci_high": 0.5, "n": 40}
    return Score(**{"benchmark": name, "source": "/data", **base, **values})


def history(count: int) -> list[dict[str, Any]]:
    return [
        {"step": i, "loss": 1 + 5 * math.exp(-i / 20) + 0.1 * math.sin(i), "learning_rate": 1e-4 * (1 - i / count)}
        for i in range(1, count + 1)
    ]


def test_every_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    evil = Artifact(
        kind="report",
        trained=HOSTILE,
        scores={HOSTILE: score(HOSTILE, metric=HOSTILE, source=HOSTILE)},
        details={"merge_proof": {"max_abs_diff": HOSTILE, "tolerance": HOSTILE, "base_diff": HOSTILE}},
    )
    result = run(tmp_path, step(tmp_path, HOSTILE, history(5), evil, kind=HOSTILE), notices=(HOSTILE,), run_id=HOSTILE)
    html = report.render_report(result, HOSTILE)
    page = parse(html)
    assert "<script" not in html.lower() and "<b>" not in html
    allowed = (
        "html head meta title style body h1 h2 h3 small span dl dt dd section ul li div "
        "table thead tbody tr th td pre figure svg text line polyline circle g h4 details summary"
    )
    assert {tag for tag, _ in page.tags} <= set(allowed.split())
    assert "".join(page.text).count(HOSTILE) >= 8


def test_it_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    html = report.render_report(run(tmp_path, step(tmp_path, "sft", history(30), trained())), "plan")
    page = parse(html)
    assert not re.search(r"https?://|url\(|@import|@font-face", html)
    assert not [attrs for _, attrs in page.tags if {"src", "href", "onclick", "onload"} & set(attrs)]
    assert "prefers-color-scheme: dark" in html


def test_the_curve_is_drawn_in_its_axes(tmp_path: Path) -> None:
    rows = history(40)
    page = parse(report.render_report(run(tmp_path, step(tmp_path, "sft", rows, trained())), "plan"))
    charts = [attrs["aria-label"] or "" for tag, attrs in page.tags if tag == "svg"]
    assert charts[0] == f"loss from {rows[0]['loss']:.4f} to {rows[-1]['loss']:.4f} over 40 values"
    assert charts[1].startswith("learning_rate from 9.75e-05")
    curve = next(attrs["points"] or "" for tag, attrs in page.tags if tag == "polyline")
    points = [tuple(map(float, pair.split(","))) for pair in curve.split()]
    assert len(points) == 40
    assert all(16 <= x <= 864 and 30 <= y <= 242 for x, y in points)
    # y grows downwards: the highest loss is the highest point
    assert points[0][1] == min(y for _, y in points)
    assert "optimizer step" in page.text


@pytest.mark.parametrize(
    ("low", "high"), [(1.2, 6.8), (0.0, 2e-4), (-3.0, 5.0), (99.0, 101.0), (0.1, 12345.0), (1e-9, 3e-9)]
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float) -> None:
    ticks = _charts.ticks(low, high, 5)
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps))
    assert f"{gaps[0]:.0e}"[0] in "125"
    labels = [_charts.tick_text(tick, gaps[0]) for tick in ticks]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-15.0, math.nextafter(-15.0, 0.0)),
        (1e9, 1e9 + 1e-6),
        (1e9, 1e9 + 10.0),
        (0.0, 0.0),
        (0.0, 5e-324),
        (-2.0, -2.0 + 1e-10),
        (1.0, 1.0 + 5e-9),
    ],
)
def test_values_that_differ_in_the_last_digits_still_get_an_axis(low: float, high: float) -> None:
    ticks = _charts.ticks(low, high, 3)
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    labels = [_charts.tick_text(tick, ticks[1] - ticks[0]) for tick in ticks]
    assert len(set(labels)) == len(labels), "ticks that read alike"


def test_a_long_history_keeps_its_extremes(tmp_path: Path) -> None:
    points = [(i, math.sin(i)) for i in range(100_000)]
    points[54_321] = (54_321, 40.0)
    points[77_777] = (77_777, -40.0)
    thin = report._thin(points)
    assert len(thin) <= report._POINTS
    assert (54_321, 40.0) in thin and (77_777, -40.0) in thin
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    rows = [{"step": i, "loss": y} for i, y in points]
    assert len(report.render_report(run(tmp_path, step(tmp_path, "sft", rows, trained())), "plan")) < 60_000


def test_values_that_are_not_finite_leave_a_gap_and_are_counted(tmp_path: Path) -> None:
    rows = history(20)
    rows[9]["loss"] = float("nan")
    rows[10]["loss"] = float("inf")
    page = parse(report.render_report(run(tmp_path, step(tmp_path, "sft", rows, trained())), "plan"))
    assert "loss (2 values not finite)" in page.text
    lines = [attrs["points"] or "" for tag, attrs in page.tags if tag == "polyline"]
    assert [len(line.split()) for line in lines[:2]] == [9, 9]
    assert not any("nan" in line or "inf" in line for line in lines)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 2.0}],
        [{"step": i, "loss": 2.0} for i in range(5)],
        [{"step": 1, "loss": float("nan")}] * 3,
        [{"step": 1, "loss": -15.0}, {"step": 2, "loss": math.nextafter(-15.0, 0.0)}],
        [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 5e-324}],
    ],
)
def test_short_flat_and_empty_histories(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    page = parse(report.render_report(run(tmp_path, step(tmp_path, "sft", rows, trained())), ""))
    lines = [attrs["points"] or "" for tag, attrs in page.tags if tag == "polyline"]
    assert not any("nan" in line or "inf" in line for line in lines)
    assert bool(lines) == (len([row for row in rows if math.isfinite(row["loss"])]) > 1)


def test_scores_show_interval_size_and_the_sample_label(tmp_path: Path) -> None:
    artifact = Artifact(
        kind="report", scores={"mmlu": score(comparable=False, source="sample"), "gsm8k": score("gsm8k")}
    )
    page = parse(report.render_report(run(tmp_path, step(tmp_path, "evaluate", [], artifact)), "plan"))
    text = "|".join(page.text)
    assert text.count("sample: not comparable") == 2  # in the overview and in the step
    assert text.count("0.100 to 0.500") == 4
    intervals = [attrs for tag, attrs in page.tags if tag == "line" and attrs.get("class") == "ci"]
    dots = [attrs for tag, attrs in page.tags if tag == "circle"]
    assert len(intervals) == len(dots) == 2
    for interval, dot in zip(intervals, dots, strict=True):
        low, value, high = (float(str(each)) for each in (interval["x1"], dot["cx"], interval["x2"]))
        assert (value - low) / (high - low) == pytest.approx((0.25 - 0.1) / 0.4, abs=0.01)


def test_it_is_replaced_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write_report(path, run(tmp_path), "plan")
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_an_unwritable_folder_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"report\.html"):
        report.write_report(tmp_path / "gone" / "report.html", run(tmp_path), "plan")


def test_what_stands_behind_a_score_is_said_and_its_subjects_are_drawn(tmp_path: Path) -> None:
    measured = score(
        groups={"hard": 0.2, "easy": 0.8},
        group_n={"hard": 30, "easy": 10},
        group_stderr={"hard": 0.05, "easy": 0.1},
        metrics={"acc_norm": 0.31},
        setup="5-shot",
        equals="the paper",
        weights_hash="ab" * 32,
        protocol={
            "shots": 5,
            "longest_prompt_tokens": 900,
            "bos_tokens": 1,
            "prompts_cut": 3,
            "stops": {"eos": 30, "length": 10},
            "prompts_sha256": "cd" * 32,
            "template": "none",
        },
    )
    artifact = Artifact(kind="report", scores={"mmlu": measured})
    page = parse(report.render_report(run(tmp_path, step(tmp_path, "evaluate", [], artifact)), "plan"))
    text = "|".join(page.text)
    for part in (
        "5-shot, equals the paper",
        "900 tokens at most, 1 beginning-of-sequence",
        "3 questions cut",
        "30 by eos, 10 by length",
        "weights abababababab, prompts cdcdcdcdcdcd",
        "acc_norm",
        "Setups side by side",
    ):
        assert part in text
    easy, hard = (
        float(str(attrs["width"])) for tag, attrs in page.tags if tag == "rect" and attrs.get("class") == "bar"
    )
    assert hard / easy == pytest.approx(0.2 / 0.8, abs=0.01), "sorted, and as long as they are large"
