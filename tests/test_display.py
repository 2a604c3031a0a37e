"""The progress display and the final table, rendered to recording consoles."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tunekit import _facts as facts
from tunekit import display, events
from tunekit.artifacts import Artifact, ModelCard, Score
from tunekit.results import RunResult, StepResult


def stream() -> list[events.Event]:
    """A run of two steps: sft trains, evaluate fails."""
    seq = iter(range(100))

    def make(cls: type[events.Event], time: float, step: str | None = None, **values: Any) -> events.Event:
        return cls(run_id="r1", seq=next(seq), time=time, step=step, **values)

    found = [
        make(events.RunStarted, 0, steps=("sft", "evaluate"), workdir="/runs/first", seed=7),
        make(
            events.StepStarted,
            0,
            "sft",
            index=1,
            kind="sft",
            component="tunekit-trl/sft",
            trains="lora r=8",
            reused=False,
        ),
        make(events.Notice, 1, "sft", code="embedded-data", message="no data was given: [bold]stdlib[/bold] is used"),
        make(events.Progress, 1, "sft", done=10, total=64, unit="rows", label="tokenizing"),
        make(events.Progress, 2, "sft", done=64, total=64, unit="rows", label="tokenizing"),
    ]
    for number in range(1, 31):
        found.append(make(events.Progress, 2 + number, "sft", done=number, total=30, unit="steps"))
        values = {"loss": 3.0 - number / 20, "tokens": 512.0}
        found.append(make(events.MetricLogged, 2 + number, "sft", global_step=number, values=values))
    return [
        *found,
        make(events.StepFinished, 33, "sft", seconds=33.4),
        make(
            events.StepStarted, 34, "evaluate", index=2, kind="evaluate", component="tunekit-evals/evaluate", trains="-"
        ),
        make(events.Progress, 35, "evaluate", done=3, total=40, unit="rows", label="mmlu"),
        make(events.StepFailed, 36, "evaluate", error="DataError", message="row 4 has no answer"),
        make(events.RunFinished, 36, status="failed", seconds=36.0),
    ]


def play(console: Console, **options: Any) -> str:
    with display.progress(console, **options) as show:
        for event in stream():
            show(event)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def terminal(width: int = 100, **options: Any) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        color_system=None,
        legacy_windows=False,
        _environ={},
        **options,
    )


def test_plain_output_is_one_line_per_fact() -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=False, force_jupyter=False)
    assert play(console).splitlines() == [
        "run r1, seed 7, in /runs/first",
        "[1/2] sft: tunekit-trl/sft, trains lora r=8",
        "notice: sft: no data was given: [bold]stdlib[/bold] is used",
        "[1/2] sft: tokenizing 10/64 rows",
        "[1/2] sft: 1/30 steps",
        "[1/2] sft: 11/30 steps",
        "[1/2] sft: 21/30 steps",
        "[1/2] sft: done in 33.4 s, loss 2.9500 -> 1.5000",
        "[2/2] evaluate: tunekit-evals/evaluate",
        "[2/2] evaluate: mmlu 3/40 rows",
        "[2/2] evaluate: stopped, DataError: row 4 has no answer",
        "failed in 36.0 s",
    ]


def test_plain_output_shows_numbers_when_there_is_no_progress_event() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, force_jupyter=False)
    with display.progress(console) as show:
        for event in stream():
            if not isinstance(event, events.Progress):
                show(event)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[1/2] sft: step 11: loss 2.4500, 512 tokens/s\n" in text
    assert text.count("tokens/s") == 2


def test_quiet_draws_nothing() -> None:
    for console in (terminal(), Console(file=io.StringIO(), force_terminal=False)):
        assert play(console, quiet=True) == ""


def test_bars_show_every_step_with_loss_speed_and_time() -> None:
    final = play(terminal()).split("\x1b[?25h")[0]
    last = final.rsplit("\x1b[2K", 1)[-1].splitlines()
    sft, evaluate = (" ".join(line.split()) for line in last if "sft" in line or "evaluate" in line)
    assert sft.startswith("✓ sft") and sft.endswith("30/30 steps loss 2.9500 -> 1.5000 33.4 s")
    assert evaluate.startswith("✗ evaluate") and "mmlu 3/40 rows" in evaluate
    assert evaluate.endswith("stopped")
    assert "notice sft: no data was given: [bold]stdlib[/bold] is used" in final
    assert "stopped evaluate: DataError" in final


def test_bars_show_loss_and_tokens_per_second_while_a_step_runs() -> None:
    console = terminal()
    bars = display._Bars(console)
    for event in stream()[:25]:
        bars(event)
    console.print(bars.view)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10/30 steps loss 2.5000, 512 tokens/s" in text
    assert "evaluate" in text and "waiting" in text


def test_a_reused_step_says_so() -> None:
    started = events.StepStarted(
        run_id="r", seq=0, time=0, step="sft", index=1, kind="sft", component="x/sft", trains="full", reused=True
    )
    for console in (terminal(), Console(file=io.StringIO(), force_terminal=False)):
        with display.progress(console) as show:
            show(started)
        assert "taken from an earlier run" in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_ascii_terminal_gets_ascii() -> None:
    raw = io.BytesIO()
    console = Console(
        file=io.TextIOWrapper(raw, encoding="ascii"), width=100, force_terminal=True, color_system=None, _environ={}
    )
    with display.progress(console) as show:
        for event in stream():
            show(event)
    console.file.flush()
    text = raw.getvalue().decode("ascii")
    assert "+ sft" in text and "x evaluate" in text


def test_a_notebook_without_ipywidgets_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_jupyter=True)
    find: Callable[..., Any] = display.importlib.util.find_spec
    monkeypatch.setattr(display.importlib.util, "find_spec", lambda name: None if name == "ipywidgets" else find(name))
    assert not display._can_redraw(console)
    monkeypatch.setattr(display.importlib.util, "find_spec", lambda name: object())
    assert display._can_redraw(console)


def test_piped_standard_output_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    with display.progress(terminal()):
        print("a result for the next program")
    assert piped.getvalue() == "a result for the next program\n"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (facts.short(950), "950"),
        (facts.short(999_949), "999.9k"),
        (facts.short(999_960), "1.0M"),
        (facts.short(134_515_008), "134.5M"),
        (facts.size(512), "512 B"),
        (facts.size(538_090_408), "538.1 MB"),
        (facts.size(999_999_999), "1.0 GB"),
        (facts.duration(59.94), "59.9 s"),
        (facts.duration(59.96), "1 min 00 s"),
        (facts.duration(3599.7), "1 h 00 min"),
        (facts.number(3.1e-6), "3.10e-06"),
        (facts.number(0.0), "0.0000"),
        (facts.number(float("nan")), "nan"),
        (facts.number(12345), "12,345"),
    ],
)
def test_numbers_are_written_for_people(made: str, text: str) -> None:
    assert made == text


def step_result(
    root: Path, number: int, name: str, artifact: Artifact, component: str, losses: list[float], **values: Any
) -> StepResult:
    folder = root / f"{number:02d}-{name}"
    folder.mkdir(parents=True)
    rows = [{"step": index, "loss": loss} for index, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StepResult(
        name=name,
        kind=name,
        folder=folder,
        artifact=artifact,
        seconds=values.get("seconds", 8.0),
        reused=values.get("reused", False),
        trains=artifact.trained,
        component=component,
        session=None,  # type: ignore[arg-type]
    )


def finished_run(root: Path) -> RunResult:
    card = ModelCard(path="model", parameters=1_312_000, size_bytes=5_251_000, dtype="float32")
    sft = Artifact(
        kind="model",
        model=card,
        trained="lora r=8",
        trained_parameters=73_728,
        metrics={"tokens": 20_300, "tokens_per_second": 2409.5},
        details={
            "data": {"rows": 400, "tokens": 20_300, "trained_tokens": 9_000, "train_on": "completion", "cut_rows": 3},
            "merge_proof": {"max_abs_diff": 3.1e-6, "tolerance": 1e-3, "base_diff": 0.84, "probes": 4},
        },
    )
    int4 = Artifact(
        kind="model",
        model=ModelCard(path="model", parameters=1_312_000, size_bytes=1_400_000, dtype="int4", quantized="gptq int4"),
        details={
            "size_before": 5_251_000,
            "quality": {"rows": 8, "nll_before": 2.5, "nll_after": 2.55, "top1_agreement": 0.975},
        },
    )
    scores = {
        "mmlu": Score(
            benchmark="mmlu",
            metric="acc",
            value=0.275,
            stderr=0.07,
            ci_low=0.161,
            ci_high=0.429,
            n=40,
            source="sample",
            comparable=False,
        ),
        "gsm8k": Score(
            benchmark="gsm8k",
            metric="exact",
            value=0.05,
            stderr=0.02,
            ci_low=0.009,
            ci_high=0.236,
            n=20,
            source="/data/gsm8k",
        ),
    }
    steps = (
        step_result(root, 1, "sft", sft, "tunekit-trl/sft 0.1.0", [3.4 - 0.2 * i for i in range(9)], seconds=75.0),
        step_result(root, 2, "quantize", int4, "tunekit-gptq/gptq 0.1.0", []),
        step_result(
            root, 3, "evaluate", Artifact(kind="report", scores=scores), "tunekit-evals/evaluate 0.1.0", [], reused=True
        ),
    )
    return RunResult(run_id="r1", workdir=root, seed=0, status="finished", steps=steps)


def test_the_final_table_has_every_fact(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=150, force_terminal=False)
    console.print(display.summary_table(finished_run(tmp_path)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.strip("│ ") for line in text.splitlines()]
    flat = "\n".join(" ".join(row.split()) for row in rows)
    for fact in (
        "Run r1: finished",
        "1 sft │ did supervised fine-tuning, 1 min 15 s",
        "by tunekit-trl/sft 0.1.0",
        "trained lora r=8, 73.7k of 1.3M parameters",
        "data 400 rows, 9,000 of 20,300 tokens trained (completion)",
        "left out 3 rows cut, 0 rows skipped",
        "loss 3.4000 -> 1.8000 in 9 steps, mean of first and last quarter 3.3000 -> 1.9000",
        "tokens 20.3k, 2.4k a second",
        "quality loss 2.5000 -> 2.5500 on 8 held-out rows, same next token in 97.5%",
        "merge proof logits differ by 3.10e-06 (tolerance 0.0010), from the base by 0.8400",
        "quantization to gptq int4",
        "size 5.3 MB -> 1.4 MB (27%)",
        "3 evaluate │ did evaluation, taken from an earlier run",
        "score mmlu acc 0.2750, 95% CI 0.161 to 0.429, n=40 (sample: not comparable)",
        "score gsm8k exact 0.0500, 95% CI 0.009 to 0.236, n=20",
        "mmlu │ acc │ 0.2750 │ 0.161 to 0.429 │ 40 │ sample: not comparable",
        "gsm8k │ exact │ 0.0500 │ 0.009 to 0.236 │ 20 │ /data/gsm8k",
    ):
        assert fact in flat
    assert str(tmp_path / "01-sft") in text.replace("\n", "") or str(tmp_path / "01-sft") in flat
    assert f"Everything is in {tmp_path}; open report.html there for the curves." in " ".join(text.split())
