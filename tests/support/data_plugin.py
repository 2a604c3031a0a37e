"""A plugin without torch whose trainer writes down which rows it was given, and whose benchmarks read a folder."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from toy_plugin import BenchOptions, ToyEvaluate, ToySource, tunekit_resolve_model, write_model

from tunekit.plugins import (
    Artifact,
    BenchmarkSpec,
    ChoiceRequest,
    DataRequest,
    GenerationRequest,
    ModelCard,
    PreviewContext,
    PreviewRow,
    StepContext,
    StepSpec,
    SupervisedOptions,
    TrainerSpec,
    hookimpl,
)

__all__ = ["BenchOptions", "ToyEvaluate", "ToySource", "tunekit_resolve_model"]

api_version = 1

RUNS: list[str] = []
"""Every run of the trainer, by step name."""


class WatchOptions(SupervisedOptions):
    take: int | None = None
    """Rows that the trainer reads; None: all of them."""
    replay_data: Any = None
    replay_limit: int | None = None

    def further_data(self) -> Mapping[str, DataRequest]:
        if self.replay_data is None:
            return {}
        return {"replay_data": DataRequest(ref=self.replay_data, accepts=("text",), limit=self.replay_limit)}


class WatchTrainer:
    """Trains nothing; ``seen.json`` in its folder holds the rows it was given."""

    def run(self, ctx: StepContext) -> Artifact:
        RUNS.append(ctx.step.name)
        assert ctx.cache is not None
        ctx.cache.mkdir(exist_ok=True)
        (ctx.cache / f"{ctx.step.name}.txt").write_text("derived")
        seen = {
            "train": list(islice(ctx.data.rows(), ctx.options.take)) if ctx.data else None,
            "validation": list(ctx.validation.rows()) if ctx.validation else None,
            "further": {name: list(data.rows()) for name, data in ctx.further_data.items()},
        }
        memory = ctx.dir / "checkpoints" / "seen.json"
        memory.parent.mkdir(exist_ok=True)
        if memory.exists():
            assert json.loads(memory.read_text()) == seen, "a continued step is given the same rows"
        memory.write_text(json.dumps(seen))
        if os.environ.get("WATCH_DIE"):
            os.kill(os.getpid(), signal.SIGKILL)
        (ctx.dir / "seen.json").write_text(json.dumps(seen))
        write_model(ctx.dir / "model", 1.0)
        return Artifact(
            kind="model", model=ModelCard(path="model", parameters=1, dtype="float32"), trained=ctx.step.trains
        )


def show(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """Every row, without tokens: what is learned is its text as a whole."""
    for raw, row in ctx.data.read():
        yield PreviewRow(number=raw.number, tokens=(), target=row["text"])


class Quiz:
    """Questions with a written answer: ``quiz.jsonl`` with ``question`` and ``answer``."""

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        if source is None:
            yield {
                "id": "0",
                "question": "Which planet of the solar system has the most moons today?",
                "answer": "Saturn",
            }
            return
        lines = (source / "quiz.jsonl").read_text().splitlines()
        for number, line in enumerate(lines[: options["limit"]]):
            yield {"id": str(number), **json.loads(line)}

    def request(self, row: Mapping[str, Any]) -> GenerationRequest:
        return GenerationRequest(context=f"Question: {row['question']}\nAnswer:", stop=("\n",), max_new_tokens=8)

    def judge(self, row: Mapping[str, Any], response: Any) -> Any:
        raise NotImplementedError

    def protocol(self) -> Mapping[str, Any]:
        return {}


class Choices(Quiz):
    """The same questions with options to choose from."""

    def request(self, row: Mapping[str, Any]) -> ChoiceRequest:  # type: ignore[override]
        shots = "Question: What is one plus one in the decimal system that everybody uses?\nAnswer: two\n\n"
        return ChoiceRequest(
            context=f"{shots}{row['question']}", prefix=shots, choices=(f" {row['answer']}", " something else"),
            parts=("", shots, row["question"]),
        )  # fmt: skip


@hookimpl
def tunekit_trainers() -> list[TrainerSpec]:
    watch = {"target": "data_plugin:WatchTrainer", "options": "data_plugin:WatchOptions"}
    shapes = ("text", "prompt_completion")
    return [
        TrainerSpec(name="sft", stage="sft", data=shapes, preview="data_plugin:show", **watch),
        TrainerSpec(name="dpo", stage="align", data=("preference",), **watch),
    ]


@hookimpl
def tunekit_benchmarks() -> list[BenchmarkSpec]:
    return [
        BenchmarkSpec(name="quiz", target="data_plugin:Quiz", sample=True),
        BenchmarkSpec(name="choices", target="data_plugin:Choices", folder="quiz", sample=True),
    ]


@hookimpl
def tunekit_steps() -> list[StepSpec]:
    return [
        StepSpec(name="evaluate", makes="report", target="toy_plugin:ToyEvaluate", options="toy_plugin:BenchOptions")
    ]
