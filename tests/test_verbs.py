"""Methods that plugins give to pipelines, and the session that a pipeline keeps."""

from __future__ import annotations

import copy
import inspect
import keyword
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import toy_plugin
import verb_plugin

from tunekit._verbs import verb_names
from tunekit.errors import AmbiguousNameError, PipelineError
from tunekit.pipeline import Pipeline
from tunekit.plan import PIPELINE_NAMES, AdapterPlan
from tunekit.plugins import StepSpec, hookimpl
from tunekit.session import Session
from tunekit.settings import Settings


def session(*plugins: Any) -> Session:
    return Session(plugins=plugins, autoload=False, settings=Settings())


def pipeline(*plugins: Any) -> Any:
    return Pipeline(model="m", session=session(*(plugins or (verb_plugin,))))


def plugin(*specs: StepSpec) -> types.ModuleType:
    module = types.ModuleType("acme")
    module.tunekit_steps = hookimpl(lambda: list(specs))  # type: ignore[attr-defined]
    return module


class Untouched(Session):
    """A session whose plugins must not be asked for."""

    @property
    def registry(self) -> Any:
        raise AssertionError("plugins were loaded")


def test_a_verb_is_the_step_and_nothing_else() -> None:
    one = pipeline()
    by_verb = one.distill("rows.json", teacher="big", temperature=2.0, name="small", input="x", adapter="lora")
    by_step = one.step(
        "distill", data="rows.json", teacher="big", temperature=2.0, name="small", input="x", adapter="lora"
    )
    assert by_verb == by_step and by_verb.plan.to_data() == by_step.plan.to_data()
    assert one.stamp(text="hi").plan.steps[0].kind == "rubber-stamp"
    assert one.distill(teacher="a").distill(teacher="b").plan.steps[1].name == "distill-2"
    assert one.distill(teacher="t").plan.to_data()["steps"] == [
        {"kind": "distill", "name": "distill", "options": {"teacher": "t"}}
    ]
    assert repr(one.distill(teacher="t")) == "Pipeline(model='m').step('distill', teacher='t')"
    assert one.distill(data=[{"text": "a"}]).plan == one.distill([{"text": "a"}]).plan


def test_the_signature_comes_from_the_options() -> None:
    method = pipeline().distill
    assert inspect.ismethod(method) and method.__name__ == "distill" and method.__qualname__ == "Pipeline.distill"
    signature = inspect.signature(method)
    kinds = {name: parameter.kind.name for name, parameter in signature.parameters.items()}
    assert list(kinds) == [
        "data", "format", "columns", "limit", "on_bad_row", "shuffle", "dedupe", "decontaminate",
        "teacher", "temperature", "layers", "name", "input", "adapter",
    ]  # fmt: skip
    assert kinds["data"] == "POSITIONAL_OR_KEYWORD" and set(kinds.values()) == {"POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY"}
    assert signature.parameters["teacher"].default is inspect.Parameter.empty
    assert signature.parameters["temperature"].default == 1.0
    assert signature.parameters["layers"].default == [0, 1]
    assert signature.parameters["temperature"].annotation is float
    assert signature.parameters["adapter"].annotation == AdapterPlan | str | None
    assert signature.bind("d", teacher="t").arguments == {"data": "d", "teacher": "t"}
    with pytest.raises(TypeError):
        signature.bind(temprature=1)
    assert list(inspect.signature(pipeline().stamp).parameters) == ["text", "name", "input"]
    assert method.__doc__.splitlines()[0] == "Learn from a larger model."
    assert "    temperature: Softens both distributions; divides the logits.\n" in method.__doc__
    assert "provided by inline/distill" in method.__doc__


def test_arguments_that_no_method_takes() -> None:
    one = pipeline()
    with pytest.raises(TypeError, match=r"distill\(\) takes one positional argument \(data\), but 2 were given"):
        one.distill("a", "b")
    with pytest.raises(TypeError, match="multiple values for argument 'data'"):
        one.distill("a", data="b")
    with pytest.raises(TypeError, match=r"stamp\(\) takes no positional arguments, but 1 were given"):
        one.stamp("a")


def test_wrong_options_are_findings_with_the_nearest_match() -> None:
    findings = pipeline().distill(teacher="t", temprature=2.0).stamp(text=3).check()
    errors = [finding for finding in findings if finding.level == "error" and finding.step]
    assert [(finding.step, finding.details["option"]) for finding in errors] == [
        ("distill", "temprature"),
        ("rubber-stamp", "text"),
    ]
    assert "temperature" in str(errors[0])


def test_plan_files_hold_the_step(tmp_path: Path) -> None:
    one = session(verb_plugin)
    text = "schema: 1\nsteps:\n  - distill: {teacher: big, temperature: 2}\n  - rubber-stamp\n"
    loaded: Any = Pipeline.from_yaml(text, session=one)
    assert loaded == Pipeline(session=one).distill(teacher="big", temperature=2).stamp()  # type: ignore[attr-defined]
    assert Pipeline.from_yaml(loaded.to_yaml()) == loaded == Pipeline.from_json(loaded.to_json(), session=one)
    assert "stamp:" not in loaded.to_yaml().replace("rubber-stamp", "")
    wrong = Pipeline.from_yaml(text.replace("temperature: 2", "temprature: 2, teacher2: x"), session=one).check()
    assert [f.details["option"] for f in wrong if f.code == "unknown-option"] == ["teacher2", "temprature"]
    verb = next(f for f in Pipeline.from_yaml("steps: [stamp]", session=one).check() if f.step)
    assert verb.code == "unknown-step" and verb.fix.startswith("write rubber-stamp")


def test_a_plan_with_verbs_runs(tmp_path: Path) -> None:
    toy_plugin.write_model(tmp_path / "base", 3.0)
    base: Any = Pipeline(model=tmp_path / "base", session=session(toy_plugin, verb_plugin))
    result = Pipeline.from_plan(base.stamp(text="hi").plan, session=base._session).run(workdir=tmp_path / "w")
    assert (tmp_path / "w" / "01-rubber-stamp" / "stamp.txt").read_text() == "hi"
    assert result.steps[0].artifact.details == {"text": "hi"}
    handle = base.stamp(text="ho").start(workdir=tmp_path / "v")
    assert handle.result(timeout=30).steps[0].artifact.details == {"text": "ho"}


def test_an_unknown_method_says_what_there_is() -> None:
    one = pipeline()
    with pytest.raises(AttributeError, match="did you mean distill") as caught:
        one.distil  # noqa: B018
    assert caught.value.name == "distil" and '.step("name", ...)' in str(caught.value)
    with pytest.raises(AttributeError, match="did you mean quantize"):
        one.quantise  # noqa: B018
    with pytest.raises(AttributeError, match=r'the step of that name is \.step\("plain", \.\.\.\)'):
        one.plain  # noqa: B018
    assert not hasattr(one, "distil") and hasattr(one, "distill")
    assert getattr(one, "nothing", 5) == 5


def test_a_plugin_that_is_left_out_is_named() -> None:
    broken = plugin(StepSpec(name="a", target="a:b", verb="sft"))
    with pytest.raises(AttributeError, match=r"plugin acme .* is broken: tunekit_steps: the verb 'sft'"):
        pipeline(broken).anything  # noqa: B018


@pytest.mark.parametrize("verb", ["Distill", "_x", "1a", "a-b", "a b", "lambda", "class", "ä", 5, None, b"x"])
def test_a_verb_is_a_method_name(verb: Any) -> None:
    one = session(plugin(StepSpec(name="a", target="a:b", verb=verb)))
    (record,) = [record for record in one.plugins() if record.name == "acme"]
    assert record.state == "broken" and "is no method name" in record.reason


@pytest.mark.parametrize("verb", PIPELINE_NAMES)
def test_a_verb_shadows_nothing(verb: str) -> None:
    one = session(plugin(StepSpec(name="a", target="a:b", verb=verb)), verb_plugin)
    (record,) = [record for record in one.plugins() if record.name == "acme"]
    assert record.state == "broken" and "belongs to tunekit" in record.reason
    assert verb_names(one) == ["distill", "stamp"]


def test_the_names_of_a_pipeline_are_written_down() -> None:
    own = {name for klass in Pipeline.__mro__ for name in vars(klass) if not name.startswith("_")}
    assert sorted(PIPELINE_NAMES) == sorted(own)
    assert not any(keyword.iskeyword(name) for name in PIPELINE_NAMES)


def test_two_plugins_with_one_verb() -> None:
    other = plugin(verb_plugin.distill_spec(name="condense"))
    one = pipeline(verb_plugin, other)
    assert hasattr(one, "distill") and "distill" in dir(one)
    with pytest.raises(AmbiguousNameError) as caught:
        one.distill(teacher="t")
    assert caught.value.details["spellings"] == ["inline/condense", "inline/distill"]
    assert '.step("inline/condense", ...) or .step("inline/distill", ...)' in caught.value.fix
    assert one.step("inline/condense", teacher="t").check()


def test_a_verb_of_a_step_name_that_two_plugins_have_names_its_own() -> None:
    registry = session(verb_plugin).registry
    (entry,) = [entry for entry in registry.entries if entry.spec.name == "distill"]
    from dataclasses import replace

    elsewhere = replace(
        entry, component=replace(entry.component, provider="acme"), spec=verb_plugin.distill_spec(verb="")
    )

    class Two(Session):
        @property
        def registry(self) -> Any:
            return type(registry)((*registry.entries, elsewhere), registry.records)

    one: Any = Pipeline(session=Two(autoload=False, settings=Settings()))
    assert one.distill(teacher="t") == one.step("inline/distill", teacher="t")
    assert one.distill(teacher="t").plan.steps[0].name == "distill"


@pytest.mark.parametrize(
    "options", ["no_such_module:Options", "verb_plugin:Missing", "verb_plugin:Distill", "exits_at_once:Options"]
)
def test_options_that_cannot_be_read_break_no_attribute(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_at_once.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    one = pipeline(plugin(verb_plugin.distill_spec(options=options, verb="broken")))
    method = one.broken
    assert [p.kind.name for p in inspect.signature(method).parameters.values()][-1] == "VAR_KEYWORD"
    assert "cannot be shown" in method.__doc__
    assert method("rows.json", teacher="t") == one.step("distill", data="rows.json", teacher="t")
    assert any(finding.level == "error" for finding in method(teacher="t").check())


def test_a_broken_plugin_breaks_no_attribute() -> None:
    module = types.ModuleType("acme")

    @hookimpl
    def tunekit_steps() -> list[StepSpec]:
        raise RuntimeError("no licence")

    module.tunekit_steps = tunekit_steps  # type: ignore[attr-defined]
    one = pipeline(module, verb_plugin)
    assert one.distill(teacher="t") and "distill" in dir(one)
    with pytest.raises(AttributeError, match="no licence"):
        one.other  # noqa: B018


def test_a_plugin_may_look_at_a_pipeline_while_it_is_loaded() -> None:
    """Not at verbs, which are not known yet; but that must not look like a broken pipeline."""
    seen: list[bool] = []
    module = types.ModuleType("acme")
    one = pipeline(module, verb_plugin)

    @hookimpl
    def tunekit_steps() -> list[StepSpec]:
        seen.append(hasattr(one, "distill"))
        return []

    module.tunekit_steps = tunekit_steps  # type: ignore[attr-defined]
    assert hasattr(one, "distill") and seen == [False]


def test_underscore_names_and_what_python_does_by_itself_load_no_plugins() -> None:
    one: Any = Pipeline(model="m", session=Untouched()).sft(data="a.json")
    for name in ("_repr_html_", "_ipython_canary_method_should_not_exist_", "__array__", "__len__", "_x"):
        assert not hasattr(one, name)
    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    assert repr(one) and hash(one) and isinstance(one.plan.steps, tuple)
    with pytest.raises(AssertionError, match="plugins were loaded"):
        one.distill  # noqa: B018


def test_dir_has_the_verbs_and_everything_else() -> None:
    names = dir(pipeline())
    assert {"distill", "stamp", "sft", "run", "_plan"} <= set(names) and "plain" not in names
    assert names == sorted(names)


def test_the_default_session_is_asked_where_there_is_none(tmp_path: Path) -> None:
    code = (
        "import verb_plugin, tunekit.session as s\n"
        "from tunekit import Pipeline, Session\n"
        "s._default = Session(plugins=[verb_plugin], autoload=False)\n"
        "assert Pipeline().distill(teacher='t') == Pipeline().step('distill', teacher='t')\n"
        "assert 'distill' in dir(Pipeline())\n"
        "import sys; assert 'torch' not in sys.modules\n"
    )
    support = str(Path(verb_plugin.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {support!r})\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_session_goes_along_but_is_no_part_of_the_value() -> None:
    mine = session(verb_plugin)
    one = Pipeline(model="m", session=mine)
    longer: Any = one.sft(data="a").lora(r=4).seed(3).track("t")
    assert longer._session is mine and longer.distill(teacher="t")._session is mine
    without = Pipeline(model="m").sft(data="a").lora(r=4).seed(3).track("t")
    assert longer == without and hash(longer) == hash(without) and repr(longer) == repr(without)
    assert len({longer, without}) == 1
    assert copy.copy(longer)._session is copy.deepcopy(longer)._session is mine
    assert pickle.loads(pickle.dumps(longer))._session is None
    assert pickle.dumps(longer) == pickle.dumps(without)
    with pytest.raises(AttributeError, match="cannot be changed"):
        longer._session = None
    assert not hasattr(longer, "__dict__")


def test_a_session_that_is_named_wins() -> None:
    kept, named = session(verb_plugin), session()
    one = Pipeline(model="m", session=kept).step("plain")
    assert "inline/plain" in one.explain()
    assert [f.code for f in one.check(named) if f.level == "error" and f.step] == ["unknown-step"]
    assert [f.code for f in one.check() if f.level == "error" and f.step] == []


@pytest.mark.parametrize("make", [lambda s: Pipeline(session=s), lambda s: Pipeline.from_yaml("steps: []", session=s)])
def test_what_is_no_session_is_refused(make: Any) -> None:
    with pytest.raises(PipelineError, match="is no session"):
        make([verb_plugin])


def test_type_checkers_still_report_methods_that_no_pipeline_has(tmp_path: Path) -> None:
    (tmp_path / "typo.py").write_text("from tunekit import Pipeline\n\nPipeline().sft()\nPipeline().sfft()\n")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), "typo.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    (line,) = done.stdout.splitlines()
    assert line.startswith('typo.py:4: error: "Pipeline" has no attribute "sfft"')
