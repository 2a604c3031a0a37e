"""A plugin without torch: "weights" are one number in a file. For tests of the core's running, reuse and resume."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tunekit.errors import StepError
from tunekit.plugins import (
    Artifact,
    BenchmarkSpec,
    DataOptions,
    LoadedModel,
    ModelCard,
    Options,
    QuantizerSpec,
    Score,
    StepContext,
    StepSpec,
    TrackerSpec,
    TrainerSpec,
    hookimpl,
)

api_version = 1

LOADS: list[str] = []
"""Every read of weights from disk, by path."""

RUNS: list[str] = []
"""Every component run, by step name."""


class ToyOptions(DataOptions):
    steps: int = 4
    rate: float = 0.5
    fail_at: int | None = None
    pause: float = 0.0
    checkpoint_every: int = 1
    seed: int | None = None


class BenchOptions(Options):
    benchmarks: list[str]
    data: str | None = None
    limit: int | None = None


class TrackerOptions(Options):
    raises: bool = False
    fails: Literal["start", "close", "exit-start", "exit-event", "exit-close", "interrupt-close", ""] = ""


class QuantOptions(DataOptions):
    scheme: str = "int4"


def write_model(folder: Path, value: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_text(repr(value))
    (folder / "toy.json").write_text("{}")


class ToySource:
    kind = "folder"

    def __init__(self, ref: str) -> None:
        self.ref = ref

    def describe(self) -> str:
        return f"toy model in {self.ref}"

    def problems(self) -> Sequence[str]:
        return () if (Path(self.ref) / "weights.safetensors").exists() else ("there are no weights",)

    def fingerprint(self) -> str:
        return hashlib.sha256((Path(self.ref) / "weights.safetensors").read_bytes()).hexdigest()

    def load(self) -> LoadedModel:
        LOADS.append(self.ref)
        value = float((Path(self.ref) / "weights.safetensors").read_text())
        return LoadedModel(model={"w": value}, tokenizer=None, path=Path(self.ref))


class ToyTrainer:
    """Moves w towards the mean text length, with a checkpoint after every step."""

    def run(self, ctx: StepContext) -> Artifact:
        RUNS.append(ctx.step.name)
        options = ctx.options
        model = {"w": float(ctx.seed)} if ctx.step.kind == "pretrain" else ctx.model().model
        rows = [len(json.dumps(row)) for row in ctx.data.rows()] if ctx.data else [1]
        goal = sum(rows) / len(rows)
        saved = ctx.dir / "checkpoints" / "state.json"
        done = 0
        if saved.exists():
            state = json.loads(saved.read_text())
            done, model["w"] = state["step"], state["w"]
        for step in range(done + 1, options.steps + 1):
            model["w"] += options.rate * (goal - model["w"])
            ctx.metrics(step, {"loss": abs(goal - model["w"]), "learning_rate": options.rate})
            saved.parent.mkdir(exist_ok=True)
            saved.with_suffix(".new").write_text(json.dumps({"step": step, "w": model["w"]}))
            saved.with_suffix(".new").replace(saved)
            ctx.checkpoint_saved(saved, step)
            ctx.progress(step, options.steps, "steps")
            if os.environ.get("TOY_DIE") == f"{ctx.step.name}:{step}":
                os.kill(os.getpid(), signal.SIGKILL)
            if options.fail_at == step:
                raise StepError("asked to fail", code="toy")
            time.sleep(options.pause)
            ctx.cancel.raise_if_cancelled()
        write_model(ctx.dir / "model", model["w"])
        ctx.keep(LoadedModel(model=model, tokenizer=None))
        return Artifact(
            kind="model",
            model=ModelCard(path="model", parameters=1, dtype="float32"),
            trained=ctx.step.trains,
            trained_parameters=1,
            metrics={"loss": abs(goal - model["w"])},
        )


class ToyAdapter:
    """An adapter in name only; the toy trainer does not look at it."""

    def __init__(self, options: Any) -> None:
        pass

    def attach(self, model: Any, *, seed: int = 0) -> Any:
        raise NotImplementedError

    save = merge = detached = attach


class ToyQuantizer:
    def run(self, ctx: StepContext) -> Artifact:
        RUNS.append(ctx.step.name)
        assert ctx.input_path is not None
        value = float((ctx.input_path / "weights.safetensors").read_text())
        write_model(ctx.dir / "model", float(round(value)))
        return Artifact(
            kind="model",
            model=ModelCard(path="model", parameters=1, dtype="int4", quantized="toy int4"),
            details={"calibration": [data.name for data in ctx.training_data]},
        )


class ToyBench:
    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield {"id": "0"}

    def request(self, row: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def judge(self, row: Mapping[str, Any], response: Any) -> Any:
        raise NotImplementedError

    def protocol(self) -> Mapping[str, Any]:
        return {}


class ToyEvaluate:
    def run(self, ctx: StepContext) -> Artifact:
        RUNS.append(ctx.step.name)
        value = ctx.model().model["w"]
        (ctx.dir / "rows").mkdir(exist_ok=True)
        scores = {}
        for job in ctx.benchmarks:
            name = job.component.name
            path = ctx.dir / "rows" / f"{name}.jsonl"
            path.write_text(
                json.dumps({"id": "0", "prompt_hash": "", "prediction": str(value), "target": "", "correct": True})
                + "\n"
            )
            scores[name] = Score(
                benchmark=name, metric="w", value=value, stderr=0.0, ci_low=0.0, ci_high=1.0, n=1,
                source=job.source_label, comparable=job.source is not None, rows_path=f"rows/{name}.jsonl",
            )  # fmt: skip
        return Artifact(kind="report", scores=scores)


class ToyCrash:
    def run(self, ctx: StepContext) -> Artifact:
        raise ZeroDivisionError("one over nothing")


class ToyTracker:
    EVENTS: list[str] = []
    CLOSED: list[bool] = []

    def __init__(self, options: Any) -> None:
        self.options = options
        self._fail("start")

    def on_event(self, event: Any) -> None:
        self.EVENTS.append(type(event).__name__)
        if self.options.raises:
            raise RuntimeError("tracker trouble")
        self._fail("event")

    def close(self) -> None:
        self.CLOSED.append(True)
        self._fail("close")

    def _fail(self, where: str) -> None:
        match self.options.fails.rpartition("-"):
            case ("", _, place) if place == where:
                raise RuntimeError(f"no network at {where}")
            case ("exit", _, place) if place == where:
                sys.exit(3)
            case ("interrupt", _, place) if place == where:
                raise KeyboardInterrupt


@hookimpl
def tunekit_trainers() -> list[TrainerSpec]:
    common = {"target": "toy_plugin:ToyTrainer", "options": "toy_plugin:ToyOptions"}
    return [
        TrainerSpec(name="causal", stage="pretrain", data=("text",), **common),
        TrainerSpec(name="sft", stage="sft", data=("text", "prompt_completion"), **common),
        TrainerSpec(name="dpo", stage="align", data=("preference",), **common),
        TrainerSpec(
            name="crash", stage="sft", data=("text",), target="toy_plugin:ToyCrash", options="toy_plugin:ToyOptions"
        ),
    ]


@hookimpl
def tunekit_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="gptq",
            schemes=("int4",),
            calibrated=True,
            target="toy_plugin:ToyQuantizer",
            options="toy_plugin:QuantOptions",
        )
    ]


@hookimpl
def tunekit_benchmarks() -> list[BenchmarkSpec]:
    return [
        BenchmarkSpec(name="toybench", target="toy_plugin:ToyBench", sample=True),
        BenchmarkSpec(name="otherbench", target="toy_plugin:ToyBench", sample=True),
    ]


@hookimpl
def tunekit_steps() -> list[StepSpec]:
    return [
        StepSpec(name="evaluate", makes="report", target="toy_plugin:ToyEvaluate", options="toy_plugin:BenchOptions")
    ]


@hookimpl
def tunekit_trackers() -> list[TrackerSpec]:
    return [TrackerSpec(name="toy", target="toy_plugin:ToyTracker", options="toy_plugin:TrackerOptions")]


@hookimpl
def tunekit_resolve_model(ref: str) -> ToySource | None:
    return ToySource(ref) if (Path(ref) / "toy.json").exists() else None
