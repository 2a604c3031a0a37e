"""Answers of plugins that are not what is due, and failures in the middle: each is an error that names its plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_plugin
from pydantic import field_validator

from tunekit.errors import PluginError
from tunekit.events import Event, StepFinished
from tunekit.pipeline import Pipeline
from tunekit.plugins import Artifact, Options, dataset, hookimpl, model, step
from tunekit.session import Session

TEXT = [{"text": "one two three"}, {"text": "four"}]


def codes(pipeline: Pipeline) -> list[str]:
    return [finding.code for finding in pipeline.check() if finding.level == "error"]


class JunkModel:
    @hookimpl(tryfirst=True)
    def tunekit_resolve_model(self, ref: str) -> Any:
        return "junk"


class JunkData:
    @hookimpl(tryfirst=True)
    def tunekit_resolve_dataset(self, ref: Any) -> Any:
        return [{"text": "junk"}]


@model(name="junk-model")
def junk_model() -> Any:
    return "junk"


@dataset(name="two-rows", schema="text")
def two_rows() -> Iterator[dict[str, str]]:
    yield {"text": "one"}
    yield {"text": "two"}
    raise KeyError("x")


class Picky(Options):
    x: int = 1
    """A number."""

    @field_validator("x")
    @classmethod
    def look(cls, value: int) -> int:
        return {1: 1}[value]


@step(name="picky", options=Picky, makes="report")
class PickyStep:
    def run(self, ctx: Any) -> Artifact:
        return Artifact(kind="report", metrics={"v": 1.0}, details={"deep": {"v": [1]}})


@pytest.mark.parametrize("plugin,ref", [(JunkModel(), "x/y"), (junk_model, "junk-model")], ids=["hook", "component"])
def test_a_model_that_is_no_source_is_a_finding(plugin: Any, ref: str) -> None:
    session = Session(plugins=[toy_plugin, plugin], autoload=False)
    (finding,) = [f for f in Pipeline(ref, session=session).sft(TEXT).check() if f.level == "error"]
    assert finding.code == "wrong-answer" and "'junk', which is no ModelSource" in finding.message
    assert "unk" in finding.message.partition("asked were: ")[2]


def test_data_that_are_no_dataset_are_a_finding(tmp_path: Path) -> None:
    session = Session(plugins=[toy_plugin, JunkData()], autoload=False)
    assert codes(Pipeline(session=session).pretrain("foo")) == ["wrong-answer"]


def test_rows_that_fail_in_the_middle_name_the_data_set(tmp_path: Path) -> None:
    session = Session(plugins=[toy_plugin, two_rows], autoload=False)
    with pytest.raises(Exception, match=r"inline/two-rows .* fails after row 2") as caught:
        Pipeline(session=session).pretrain("two-rows").run(tmp_path)
    assert "KeyError: 'x'" in str(caught.value)


def test_a_validator_that_fails_is_a_finding_and_an_error() -> None:
    session = Session(plugins=[toy_plugin, PickyStep], autoload=False)
    assert "option-value" in codes(Pipeline(session=session).pretrain(TEXT).step("picky", x=2))
    component = session.registry.find("step", "picky").component
    assert session.parse_options(component, {"x": 1}).x == 1
    with pytest.raises(PluginError, match="options of inline/picky cannot be checked") as caught:
        session.parse_options(component, {"x": 2})
    assert caught.value.code == "bad-options-model"


def test_a_fingerprint_that_fails_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any) -> str:
        raise ValueError("no hash today")

    toy_plugin.write_model(tmp_path / "base", 1.0)
    monkeypatch.setattr(toy_plugin.ToySource, "fingerprint", fails)
    session = Session(plugins=[toy_plugin], autoload=False)
    with pytest.raises(PluginError, match="cannot be identified") as caught:
        Pipeline(tmp_path / "base", session=session).sft(TEXT).run(tmp_path / "w")
    assert "ValueError: no hash today" in str(caught.value)


def test_what_an_observer_does_to_an_event_does_not_reach_the_result(tmp_path: Path) -> None:
    def meddle(event: Event) -> None:
        if isinstance(event, StepFinished):
            event.metrics["v"] = -5  # type: ignore[index]
            event.details["deep"]["v"].append(2)

    session = Session(plugins=[toy_plugin, PickyStep], autoload=False)
    pipeline = Pipeline(session=session).pretrain(TEXT).step("picky")
    artifact = pipeline.run(tmp_path, on_event=meddle).step("picky").artifact
    assert artifact.metrics == {"v": 1.0} and artifact.details == {"deep": {"v": [1]}}


class Remote:
    @hookimpl(tryfirst=True)
    def tunekit_run_step(self, step: Any, ctx: Any) -> Artifact | None:
        return Artifact(kind="report", metrics={"v": 999.0}) if step.kind == "picky" else None


def test_who_took_steps_over_is_recorded_and_noticed_on_reuse(tmp_path: Path) -> None:
    def run(*plugins: Any) -> tuple[bool, list[str]]:
        session = Session(plugins=[toy_plugin, PickyStep, *plugins], autoload=False)
        result = Pipeline(session=session).pretrain(TEXT).step("picky").run(tmp_path)
        assert result.step("picky").artifact.metrics == {"v": 999.0}
        return result.step("picky").reused, [notice for notice in result.notices if "take over" in notice]

    assert run(Remote()) == (False, [])
    assert json.loads((tmp_path / "manifest.json").read_text())["step_plugins"] == ["inline:Remote"]
    assert run(Remote()) == (True, [])
    reused, said = run()
    assert reused and len(said) == 2 and "(inline:Remote; now none)" in said[0]
