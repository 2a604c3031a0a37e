"""Hooks that watch, wrap and take over a run: as functions of a module and as methods of an object, in every order.

Everything here holds on each release of pluggy that tunekit allows; test_pluggy_range.py runs it on both ends.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import types
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_plugin

from tunekit.cancel import CancelToken
from tunekit.errors import CheckFailed, PluginError, RunCancelled, StepError
from tunekit.events import CheckpointSaved, Event, StepFinished
from tunekit.pipeline import Pipeline
from tunekit.plan import Plan, ResolvedStep
from tunekit.plugins import Artifact, Finding, LoadedModel, ModelCard, StepContext, hookimpl
from tunekit.results import RunResult
from tunekit.session import Session
from tunekit.settings import Settings

TEXT = [{"text": "one two three"}, {"text": "four"}]

Log = list[str]
Wrapper = Generator[None, Artifact, Artifact]


@pytest.fixture(autouse=True)
def _counters() -> Iterator[None]:
    toy_plugin.RUNS.clear()
    yield


def session(*plugins: Any) -> Session:
    return Session(plugins=[toy_plugin, *plugins], autoload=False, settings=Settings())


def module(name: str, *functions: Callable[..., Any]) -> types.ModuleType:
    made = types.ModuleType(name)
    for function in functions:
        setattr(made, function.__name__, function)
    return made


# The examples, each in two forms.


class Tracing:
    def __init__(self, log: Log) -> None:
        self.log = log

    @hookimpl(wrapper=True)
    def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Wrapper:
        self.log.append(f"begin {step.name}")
        try:
            artifact = yield
        except BaseException as error:
            self.log.append(f"{type(error).__name__} in {step.name}")
            raise
        self.log.append(f"end {step.name}: {artifact.kind}")
        return artifact


def tracing(log: Log) -> types.ModuleType:
    @hookimpl(wrapper=True)
    def tunekit_run_step(step: ResolvedStep) -> Wrapper:
        return (yield from Tracing(log).tunekit_run_step(step, None))  # type: ignore[arg-type]

    return module("tracing", tunekit_run_step)


HALVE = """
import json, sys
source, target = sys.argv[1:]
value = float(open(source).read()) / 2
open(target, "w").write(repr(value))
print(json.dumps({"value": value}))
"""


class Elsewhere:
    """Runs ``quantize`` in a process of its own, and leaves every other step to whoever comes next."""

    def __init__(self, log: Log) -> None:
        self.log = log

    @hookimpl(tryfirst=True)
    def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Artifact | None:
        self.log.append(f"asked for {step.name}")
        if step.kind != "quantize":
            return None
        assert ctx.input_path is not None
        (ctx.dir / "model").mkdir()
        paths = [ctx.input_path / "weights.safetensors", ctx.dir / "model" / "weights.safetensors"]
        done = subprocess.run([sys.executable, "-I", "-c", HALVE, *map(str, paths)], capture_output=True, check=True)
        (ctx.dir / "model" / "toy.json").write_text("{}")
        return Artifact(
            kind="model",
            model=ModelCard(path="model", parameters=1, dtype="int4", quantized="halved"),
            details=json.loads(done.stdout),
        )


def elsewhere(log: Log) -> types.ModuleType:
    @hookimpl(tryfirst=True)
    def tunekit_run_step(step: ResolvedStep, ctx: StepContext) -> Artifact | None:
        return Elsewhere(log).tunekit_run_step(step, ctx)

    return module("elsewhere", tunekit_run_step)


class Watch:
    def __init__(self, log: list[Event]) -> None:
        self.log = log

    @hookimpl
    def tunekit_event(self, event: Event) -> None:
        self.log.append(event)


def watch(log: list[Event]) -> types.ModuleType:
    @hookimpl
    def tunekit_event(event: Event) -> None:
        log.append(event)

    return module("watch", tunekit_event)


class HouseRules:
    @hookimpl
    def tunekit_check_plan(self, plan: Plan) -> list[Finding]:
        return [
            Finding(level="error", step=step.name, code="too-long", message="Not more than 8 steps here.")
            for step in plan.steps
            if step.options.get("steps", 0) > 8
        ]


def house_rules() -> types.ModuleType:
    @hookimpl
    def tunekit_check_plan(plan: Plan) -> list[Finding]:
        return HouseRules().tunekit_check_plan(plan)

    return module("house_rules", tunekit_check_plan)


FORMS = pytest.mark.parametrize("form", ["methods", "functions"])


def run(folder: Path, *plugins: Any, pipeline: Pipeline | None = None, **options: Any) -> RunResult:
    pipeline = pipeline or Pipeline().pretrain(data=TEXT).quantize("int4").evaluate(["toybench"])
    return pipeline.run(workdir=folder, session=session(*plugins), **options)


def crashing(folder: Path) -> Pipeline:
    toy_plugin.write_model(folder / "base", 3.0)
    return Pipeline(model=folder / "base").sft(method="crash", data=TEXT)


# Wrapping.


@FORMS
def test_a_wrapper_sees_every_step_and_changes_nothing(form: str, tmp_path: Path) -> None:
    log: Log = []
    wrapped = run(tmp_path / "a", Tracing(log) if form == "methods" else tracing(log))
    plain = run(tmp_path / "b")
    assert log == [
        "begin pretrain", "end pretrain: model", "begin quantize", "end quantize: model",
        "begin evaluate", "end evaluate: report",
    ]  # fmt: skip
    assert [step.artifact.model for step in wrapped.steps] == [step.artifact.model for step in plain.steps]
    assert toy_plugin.RUNS == ["pretrain", "quantize", "evaluate"] * 2
    log.clear()
    assert all(step.reused for step in run(tmp_path / "a", Tracing(log)).steps) and log == []


@FORMS
def test_an_exception_goes_through_a_wrapper(form: str, tmp_path: Path) -> None:
    log: Log = []
    with pytest.raises(StepError, match="ZeroDivisionError: one over nothing") as caught:
        run(tmp_path / "w", Tracing(log) if form == "methods" else tracing(log), pipeline=crashing(tmp_path))
    assert log == ["begin sft", "ZeroDivisionError in sft"]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "toy_plugin.py" in caught.value.details["traceback"]


def test_a_cancelled_run_goes_through_a_wrapper(tmp_path: Path) -> None:
    log: Log = []
    token = CancelToken()
    with pytest.raises(RunCancelled):
        run(
            tmp_path / "w",
            Tracing(log),
            cancel=token,
            on_event=lambda event: token.cancel() if isinstance(event, CheckpointSaved) else None,
        )
    assert log == ["begin pretrain", "RunCancelled in pretrain"]
    assert json.loads((tmp_path / "w" / "manifest.json").read_text())["status"] == "cancelled"


def test_a_wrapper_may_answer_in_place_of_a_step_that_failed(tmp_path: Path) -> None:
    class Rescue:
        @hookimpl(wrapper=True)
        def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Wrapper:
            try:
                return (yield)
            except ZeroDivisionError as error:
                toy_plugin.write_model(ctx.dir / "model", 7.0)
                card = ModelCard(path="model", parameters=1, dtype="float32")
                return Artifact(kind="model", model=card, details={"rescued": str(error)})

    inside, outside = [], []
    plugins = (Tracing(inside), Rescue(), Tracing(outside))
    result = run(tmp_path / "w", *plugins, pipeline=crashing(tmp_path))
    assert result.steps[0].artifact.details == {"rescued": "one over nothing"}
    assert result.model is not None and result.model.load()[0] == {"w": 7.0}
    assert inside == ["begin sft", "ZeroDivisionError in sft"] and outside == ["begin sft", "end sft: model"]


def test_the_wrapper_handed_in_last_is_outermost(tmp_path: Path) -> None:
    log: Log = []

    class Named(Tracing):
        def __init__(self, name: str) -> None:
            super().__init__(log)
            self.name = name

        @hookimpl(wrapper=True)
        def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Wrapper:
            log.append(f"{self.name} in")
            artifact = yield
            log.append(f"{self.name} out")
            return artifact

    run(tmp_path / "w", Named("inner"), Named("outer"), pipeline=Pipeline().pretrain(data=TEXT))
    assert log == ["outer in", "inner in", "inner out", "outer out"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_wrapper_that_fails_fails_its_step(place: str, tmp_path: Path) -> None:
    class Broken:
        @hookimpl(wrapper=True)
        def tunekit_run_step(self, step: ResolvedStep) -> Wrapper:
            if place == "before":
                raise KeyError("no tracer")
            artifact = yield
            raise KeyError(f"no tracer for {artifact.kind}")

    with pytest.raises(StepError, match="KeyError: 'no tracer") as caught:
        run(tmp_path / "w", Broken())
    assert "inline:Broken" in caught.value.found
    assert caught.value.details["step"] == "pretrain"
    assert ["pretrain"] * (place == "after") == toy_plugin.RUNS
    assert not (tmp_path / "w" / "01-pretrain").exists()


def test_a_wrapper_that_yields_twice_fails_its_step(tmp_path: Path) -> None:
    class Twice:
        @hookimpl(wrapper=True)
        def tunekit_run_step(self) -> Wrapper:
            yield
            artifact = yield
            return artifact

    with pytest.raises(StepError, match="second yield"):
        run(tmp_path / "w", Twice())


def test_what_no_wrapper_may_return(tmp_path: Path) -> None:
    class Forgetful:
        @hookimpl(wrapper=True)
        def tunekit_run_step(self) -> Wrapper:  # type: ignore[return]
            yield

    with pytest.raises(PluginError, match="Step pretrain gave NoneType where an Artifact is due") as caught:
        run(tmp_path / "w", Tracing([]), Forgetful())
    assert "plugins that wrap or take over steps here: inline:Forgetful, inline:Tracing" in caught.value.found


def test_wrappers_of_the_older_kind_work(tmp_path: Path) -> None:
    log: Log = []

    class Older:
        @hookimpl(hookwrapper=True)
        def tunekit_run_step(self, step: ResolvedStep) -> Generator[None, Any, None]:
            outcome = yield
            log.append(f"{step.name}: {outcome.get_result().kind}")

    run(tmp_path / "w", Older())
    assert log == ["pretrain: model", "quantize: model", "evaluate: report"]


# Taking over.


@FORMS
def test_a_takeover_runs_one_step_elsewhere(form: str, tmp_path: Path) -> None:
    log: Log = []
    result = run(tmp_path / "w", Elsewhere(log) if form == "methods" else elsewhere(log))
    assert log == ["asked for pretrain", "asked for quantize", "asked for evaluate"]
    assert toy_plugin.RUNS == ["pretrain", "evaluate"], "the component did not run as well"
    before = float((tmp_path / "w" / "01-pretrain" / "model" / "weights.safetensors").read_text())
    quantized = result.step("quantize").artifact
    assert quantized.details == {"value": before / 2} and quantized.model is not None
    assert result.scores["toybench"].value == before / 2, "the next step starts from its result"
    assert result.scores["toybench"].weights_hash == quantized.model.weights_hash
    assert (tmp_path / "w" / "02-quantize" / "result.json").exists()
    assert all(step.reused for step in run(tmp_path / "w", Elsewhere(log)).steps)


@FORMS
def test_a_wrapper_is_outside_a_takeover_and_tunekit_is_last(form: str, tmp_path: Path) -> None:
    log: Log = []
    plugins = (Tracing(log), Elsewhere(log)) if form == "methods" else (tracing(log), elsewhere(log))
    for number, order in enumerate((plugins, plugins[::-1])):
        log.clear()
        run(tmp_path / str(number), *order)
        assert log == [
            "begin pretrain", "asked for pretrain", "end pretrain: model",
            "begin quantize", "asked for quantize", "end quantize: model",
            "begin evaluate", "asked for evaluate", "end evaluate: report",
        ]  # fmt: skip


def asked(log: Log, name: str, **options: bool) -> types.ModuleType:
    @hookimpl(**options)
    def tunekit_run_step(step: ResolvedStep) -> None:
        log.append(name)

    return module(name, tunekit_run_step)


def test_who_is_asked_first(tmp_path: Path) -> None:
    log: Log = []

    class Component(toy_plugin.ToyTrainer):
        def run(self, ctx: StepContext) -> Artifact:
            log.append("the component")
            return super().run(ctx)

    plugins = [
        asked(log, "last", trylast=True),
        asked(log, "first, handed in first", tryfirst=True),
        asked(log, "handed in first"),
        asked(log, "first, handed in last", tryfirst=True),
        asked(log, "handed in last"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_plugin, "ToyTrainer", Component)
        run(tmp_path / "w", *plugins, pipeline=Pipeline().pretrain(data=TEXT))
    assert log == [
        "first, handed in last", "first, handed in first", "handed in last", "handed in first", "last",
        "the component",
    ]  # fmt: skip


def test_the_first_answer_counts(tmp_path: Path) -> None:
    log: Log = []

    class Answers:
        @hookimpl
        def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Artifact:
            return Artifact(kind="report", details={"by": "a plugin"})

    base = Pipeline().pretrain(data=TEXT).evaluate(["toybench"])
    plugins = [asked(log, "after", trylast=True), Answers(), asked(log, "before", tryfirst=True)]
    run(tmp_path / "w", pipeline=Pipeline().pretrain(data=TEXT))
    toy_plugin.RUNS.clear()
    result = run(tmp_path / "w", *plugins, pipeline=base)
    assert result.step("evaluate").artifact.details == {"by": "a plugin"}
    assert log == ["before"] and toy_plugin.RUNS == []


@pytest.mark.parametrize(
    ("error", "says"),
    [(StepError("the queue is full", code="queue"), "the queue is full"), (OSError("no route"), "OSError: no route")],
)
def test_a_takeover_that_fails_fails_its_step(error: Exception, says: str, tmp_path: Path) -> None:
    class Down:
        @hookimpl(tryfirst=True)
        def tunekit_run_step(self) -> Artifact:
            raise error

    log: Log = []
    with pytest.raises(StepError, match=says) as caught:
        run(tmp_path / "w", Down(), Tracing(log))
    assert caught.value.details["step"] == "pretrain" and toy_plugin.RUNS == []
    assert log == ["begin pretrain", f"{type(error).__name__} in pretrain"]


def test_what_a_takeover_must_return(tmp_path: Path) -> None:
    class Odd:
        @hookimpl(tryfirst=True)
        def tunekit_run_step(self) -> Any:
            return {"kind": "model"}

    with pytest.raises(PluginError, match="Step pretrain gave dict where an Artifact is due"):
        run(tmp_path / "w", Odd())


@pytest.mark.parametrize("path", ["../elsewhere", "/tmp", "model/../../x"])
@pytest.mark.parametrize("field", ["model", "adapter"])
def test_a_result_lies_in_the_folder_of_its_step(field: str, path: str, tmp_path: Path) -> None:
    class Outside:
        @hookimpl(tryfirst=True)
        def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Artifact:
            toy_plugin.write_model(ctx.dir / "model", 1.0)
            card = ModelCard(path=path if field == "model" else "model", parameters=1, dtype="float32")
            return Artifact(kind="model", model=card, adapter_path=path if field == "adapter" else None)

    with pytest.raises(PluginError, match="outside of its folder") as caught:
        run(tmp_path / "w", Outside())
    assert caught.value.asked == path and "inline:Outside" in caught.value.found
    assert not (tmp_path / "w" / "01-pretrain").exists()


def test_a_plugin_may_run_the_component_itself(tmp_path: Path) -> None:
    class Nearby:
        @hookimpl(tryfirst=True)
        def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Artifact | None:
            if step.kind != "evaluate":
                return None
            assert isinstance(ctx.model(), LoadedModel)
            return ctx.component().run(ctx)

    result = run(tmp_path / "w", Nearby())
    assert toy_plugin.RUNS == ["pretrain", "quantize", "evaluate"] and result.scores["toybench"].n == 1


# Watching and checking.


@FORMS
def test_an_observer_sees_what_on_event_sees(form: str, tmp_path: Path) -> None:
    log: list[Event] = []
    seen: list[Event] = []
    run(tmp_path / "w", Watch(log) if form == "methods" else watch(log), on_event=seen.append)
    assert log == seen and [event.seq for event in log] == list(range(len(log)))
    assert [event.step for event in log if isinstance(event, StepFinished)] == ["pretrain", "quantize", "evaluate"]


def test_a_wrapper_of_an_observer_that_raises_is_isolated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log: list[Event] = []

    class Broken:
        @hookimpl(wrapper=True)
        def tunekit_event(self, event: Event) -> Generator[None, Any, Any]:
            answer = yield
            raise RuntimeError(f"trouble, {answer}")

    assert run(tmp_path / "w", Broken(), Watch(log)).status == "finished"
    assert len(log) == len((tmp_path / "w" / "events.jsonl").read_text().splitlines())
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Broken (inline) failed in tunekit_event" in record.getMessage()


@FORMS
def test_a_finding_of_a_plugin_refuses_a_plan(form: str, tmp_path: Path) -> None:
    rules = HouseRules() if form == "methods" else house_rules()
    long = Pipeline().pretrain(data=TEXT, steps=9)
    found = [finding for finding in long.check(session(rules)) if finding.level == "error"]
    assert [(finding.step, finding.code) for finding in found] == [("pretrain", "too-long")]
    with pytest.raises(CheckFailed, match="Not more than 8 steps here"):
        run(tmp_path / "w", rules, pipeline=long)
    assert toy_plugin.RUNS == [] and not (tmp_path / "w").exists()
    assert run(tmp_path / "w", rules, pipeline=Pipeline().pretrain(data=TEXT, steps=8)).status == "finished"


# Other forms.


SOURCE = '''
"""A plugin module as a distribution has it."""
from tunekit.plugins import hookimpl

api_version = 1
LOG = []

@hookimpl(wrapper=True)
def tunekit_run_step(step):
    LOG.append(f"begin {step.name}")
    artifact = yield
    LOG.append(f"end {step.name}")
    return artifact

@hookimpl
def tunekit_event(event):
    LOG.append(type(event).__name__)
'''


def test_a_module_with_several_hooks(tmp_path: Path) -> None:
    (tmp_path / "hook_module.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("hook_module", tmp_path / "hook_module.py")
    assert spec is not None and spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    run(tmp_path / "w", plugin, pipeline=Pipeline().pretrain(data=TEXT, steps=1))
    assert plugin.LOG == [
        "RunStarted", "StepStarted", "begin pretrain", "MetricLogged", "CheckpointSaved", "Progress",
        "end pretrain", "ArtifactWritten", "StepFinished", "RunFinished",
    ]  # fmt: skip


def test_static_and_class_methods(tmp_path: Path) -> None:
    class Mixed:
        LOG: Log = []

        @staticmethod
        @hookimpl(wrapper=True)
        def tunekit_run_step(step: ResolvedStep) -> Wrapper:
            Mixed.LOG.append(f"begin {step.name}")
            artifact = yield
            Mixed.LOG.append(f"end {step.name}")
            return artifact

        @classmethod
        @hookimpl
        def tunekit_event(cls, event: Event) -> None:
            if isinstance(event, StepFinished):
                cls.LOG.append("finished")

    run(tmp_path / "w", Mixed(), pipeline=Pipeline().pretrain(data=TEXT))
    assert Mixed.LOG == ["begin pretrain", "end pretrain", "finished"]


def test_a_hook_of_another_name(tmp_path: Path) -> None:
    log: Log = []

    class Named:
        @hookimpl(specname="tunekit_run_step", wrapper=True)
        def trace(self, step: ResolvedStep) -> Wrapper:
            log.append(step.name)
            return (yield)

    run(tmp_path / "w", Named())
    assert log == ["pretrain", "quantize", "evaluate"]


def test_one_plugin_implements_a_hook_once() -> None:
    class Both:
        @hookimpl(specname="tunekit_run_step", wrapper=True)
        def trace(self) -> Wrapper:
            return (yield)

        @hookimpl
        def tunekit_run_step(self) -> None: ...

    (record,) = [record for record in session(Both()).plugins() if record.name == "Both"]
    assert record.state == "broken"
    assert (
        record.reason == "trace and tunekit_run_step both implement tunekit_run_step; a plugin implements a hook once"
    )
