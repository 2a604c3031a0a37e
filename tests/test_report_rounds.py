"""Rounds in the report and in the summary at the end of a run: who won, what was kept, and why not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tunekit import _facts, _report_rounds, report
from tunekit.artifacts import Artifact, ModelCard
from tunekit.display import summary_table
from tunekit.results import RunResult, StepResult

HOSTILE = "<script>alert('x')</script>"


def judged(number: int, wins: int, ties: int, n: int, before: float, after: float, *, kept: bool) -> dict[str, Any]:
    """A record with the fields of ``hf.Rounds``."""
    value = (wins + ties / 2) / n
    return {
        "round": number,
        "kept": kept,
        "steps": 8,
        "reward_before": before,
        "reward_after": after,
        "win_rate": {
            "value": value,
            "ci_low": value - 0.09,
            "ci_high": value + 0.09,
            "n": n,
            "wins": wins,
            "ties": ties,
            "losses": n - wins - ties,
            "reward_before": before,
            "reward_after": after,
            "gain": after - before,
            "gain_stderr": 0.01,
        },
        "kl": {
            "per_token": 0.02,
            "per_sequence": 0.1234,
            "stderr": 0.01,
            "ci_half": 0.02,
            "sequences": n,
            "tokens": 6 * n,
        },
    }


def lost(number: int, problem: str) -> dict[str, Any]:
    return {"round": number, "kept": False, "steps": 0, "problem": problem}


ROUNDS = [
    judged(1, 70, 4, 100, 0.25, 0.5, kept=True),
    judged(2, 49, 1, 100, 0.5, 0.45, kept=False),
    lost(3, f"The loss is not finite: {HOSTILE}"),
    judged(4, 61, 0, 100, 0.5, 0.75, kept=True),
]


def result(root: Path, details: dict[str, Any]) -> RunResult:
    (root / "metrics.jsonl").write_text("")
    artifact = Artifact(kind="model", model=ModelCard(path="m", parameters=10), trained="full", details=details)
    step = StepResult(
        name="align",
        kind="align",
        folder=root,
        artifact=artifact,
        seconds=1.0,
        reused=False,
        trains="full",
        component="tunekit-trl/iterative-dpo 0.1.0",
        session=None,  # type: ignore[arg-type]
    )
    return RunResult(run_id="r1", workdir=root, seed=0, status="finished", steps=(step,), notices=())


def rows(html: str) -> list[list[str]]:
    table = re.search(r'<table class="rounds">.*?<tbody>(.*?)</tbody>', html)
    assert table is not None
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table.group(1))]


def test_the_table_says_what_became_of_every_round_and_why(tmp_path: Path) -> None:
    html = report.render_report(result(tmp_path, {"rounds": ROUNDS}), "")
    assert rows(html) == [
        ["1", "72% (95% CI 63% to 81%), n=100", "0.2500 → 0.5000", "0.1234 nats a completion", "kept"],
        [
            "2",
            "49.5% (95% CI 40.5% to 58.5%), n=100",
            "0.5000 → 0.4500",
            "0.1234 nats a completion",
            "rolled back: won fewer prompts than keep_at asks for",
        ],
        ["3", "-", "-", "-", "lost: The loss is not finite: &lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"],
        ["4", "61% (95% CI 52% to 70%), n=100", "0.5000 → 0.7500", "0.1234 nats a completion", "kept"],
    ]
    assert HOSTILE not in html


def test_win_rates_are_drawn_with_their_intervals_where_there_are_some(tmp_path: Path) -> None:
    html = report.render_report(result(tmp_path, {"rounds": ROUNDS}), "")
    assert "win rate by round: round 1 72% kept, round 2 49.5% rolled back, round 4 61% kept" in html
    # On an axis from 0 to 1 a dot lies in its interval at the share that it stands for.
    drawn = re.findall(r'class="ci (\w+)" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)".*?cx="([\d.]+)"', html)
    assert [tone for tone, *_ in drawn] == ["good", "bad", "good"]
    left, right = (float(re.findall(rf'class="axis" [^>]*{end}="([\d.]+)"', html)[0]) for end in ("x1", "x2"))
    for (_, low, high, at), value in zip(drawn, (0.72, 0.495, 0.61), strict=True):
        assert (float(at) - left) / (right - left) == pytest.approx(value, abs=1e-3)
        assert (float(low) + float(high)) / 2 == pytest.approx(float(at), abs=0.2)


def test_the_reward_is_that_of_the_model_that_went_on() -> None:
    assert _report_rounds.rewards({"rounds": ROUNDS}) == [(0, 0.25), (1, 0.5), (2, 0.5), (4, 0.75)]


def test_the_summary_at_the_end_of_a_run_has_a_line_of_them(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(summary_table(result(tmp_path, {"rounds": ROUNDS})))
    told = console.export_text()
    assert re.search(r"rounds +2 of 4 kept: 1 72% kept, 2 49\.5% rolled back, 3 lost, 4 61% kept ", told)


def test_where_none_is_kept_the_line_is_a_warning_and_many_are_cut(tmp_path: Path) -> None:
    records = [lost(number, "there was nothing to learn") for number in range(1, 21)]
    (fact,) = (
        one for one in _facts.step_facts(result(tmp_path, {"rounds": records}).steps[0], []) if one.label == "rounds"
    )
    assert fact.tone == "warn"
    assert fact.value.startswith("0 of 20 kept: ..., 9 lost, 10 lost, ")
    assert fact.value.endswith(", 20 lost")
    html = report.render_report(result(tmp_path, {"rounds": records}), "")
    assert len(rows(html)) == 20
    assert "win rate by round" not in html


@pytest.mark.parametrize("details", [{}, {"rounds": 3}, {"rounds": []}, {"rounds": ["a", {"kept": True}]}])
def test_steps_without_rounds_and_details_of_other_plugins_are_left_alone(
    details: dict[str, Any], tmp_path: Path
) -> None:
    made = result(tmp_path, details)
    assert "<h4>Rounds" not in report.render_report(made, "")
    assert "rounds" not in [fact.label for fact in _facts.step_facts(made.steps[0], [])]
