"""Plugins of a session: what they may hand in, and what becomes of those that do not work."""

from __future__ import annotations

import logging
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import toy_plugin

from tunekit.errors import MissingDependencyError, OptionsError, PluginError, UnknownNameError
from tunekit.events import Event, RunFinished
from tunekit.plan import Plan
from tunekit.plugins import DatasetSpec, Finding, ModelSpec, Spec, StepSpec, TrackerSpec, TrainerSpec, hookimpl
from tunekit.plugins.specs import AdapterSpec, BenchmarkSpec
from tunekit.session import Session
from tunekit.settings import Settings


def trainer(name: str = "mine", **fields: Any) -> TrainerSpec:
    return TrainerSpec(**{"name": name, "stage": "align", "target": "builtins:object", **fields})


def plugin(**hooks: Any) -> types.ModuleType:
    """A plugin module with these attributes; functions become hook implementations."""
    module = types.ModuleType("acme")
    for name, value in hooks.items():
        made = hookimpl(value) if callable(value) and not hasattr(value, "tunekit_impl") else value
        setattr(module, name, made)
    return module


def session(*plugins: Any) -> Session:
    return Session(plugins=plugins, autoload=False, settings=Settings())


def record_of(one: Session, name: str = "acme") -> Any:
    return next(record for record in one.plugins() if record.name == name)


def test_without_installed_plugins_only_the_core_is_there() -> None:
    one = session()
    assert [(r.name, r.state, r.api_version) for r in one.plugins()] == [("tunekit", "loaded", 1)]
    assert one.registry.names("dataset") == ("stdlib-instructions", "stdlib-preferences", "stdlib-text")


def test_a_component_is_found_by_both_spellings() -> None:
    one = session(plugin(tunekit_trainers=lambda: [trainer(), trainer("other", stage="sft")]))
    entry = one.registry.find("trainer", "mine", "align")
    assert entry is one.registry.find("trainer", "inline/mine", "align")
    assert entry.component.id == "inline/mine" and entry.component.stage == "align"
    assert one.spec(entry.component) is entry.spec
    assert one.load(entry.component) is object
    assert [e.component.name for e in one.components("trainer")] == ["mine", "other"]


def test_objects_are_plugins_too() -> None:
    class Mine:
        api_version = 1

        def __init__(self) -> None:
            self.seen: list[Event] = []

        @hookimpl
        def tunekit_trainers(self) -> list[TrainerSpec]:
            return [trainer()]

        @hookimpl
        def tunekit_event(self, event: Event) -> None:
            self.seen.append(event)

        @staticmethod
        @hookimpl
        def tunekit_check_plan(plan: Plan) -> list[Finding]:
            return [Finding(level="note", step=None, code="hello", message=f"{len(plan.steps)} steps")]

        @property
        def tunekit_steps(self) -> None:
            raise AssertionError("a property was run")

    mine = Mine()
    one = session(mine)
    assert one.registry.names("trainer", "align") == ("mine",)
    event = RunFinished(run_id="r", seq=0, time=0.0, status="finished", seconds=1.0)
    one.hooks.event(event)
    assert mine.seen == [event]
    assert [finding.message for finding in one.hooks.check_plan(Plan())] == ["0 steps"]
    assert "hand in an instance" in record_of(session(Mine), "Mine").reason


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (trainer("Mine"), "lower case"),
        (trainer("a/b"), "lower case"),
        (trainer(""), "lower case"),
        (trainer(target="no.colon"), "pkg.module:attribute"),
        (trainer(target="os:system()"), "pkg.module:attribute"),
        (trainer(options="x"), "pkg.module:attribute"),
        (trainer(stage="allign"), "did you mean 'align'"),
        (trainer(requires="trl"), "requires of 'mine' is 'trl', not a tuple of strings; write ('trl',)"),
        (trainer(data="preference"), "write ('preference',)"),
        (trainer(data=(1,)), "data of 'mine' is (1,), not a tuple of strings"),
        (StepSpec(name="a", target="a:b"), "no TrainerSpec"),
        ("mine", "no TrainerSpec"),
        (None, "no TrainerSpec"),
    ],
)
def test_specs_are_looked_at_before_they_count(spec: object, says: str) -> None:
    good = plugin(tunekit_trainers=lambda: [trainer("good")])
    one = session(plugin(tunekit_trainers=lambda: [trainer("fine"), spec]), good)
    states = [(record.state, record.reason) for record in one.plugins() if record.name == "acme"]
    assert states[0][0] == "broken" and says in states[0][1]
    assert states[1] == ("loaded", "")
    assert one.registry.names("trainer", "align") == ("good",)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (StepSpec(name="a", target="a:b", makes="modle"), "makes of 'a' is 'modle', none of model, report"),
        (BenchmarkSpec(name="a", target="a:b", needs="logits"), "needs of 'a' is 'logits', none of loglikelihood, gen"),
    ],
)
def test_fields_with_few_values(spec: Spec, says: str) -> None:
    one = session(plugin(**{f"tunekit_{spec.kind}s": lambda: [spec]}))
    assert record_of(one).state == "broken" and says in record_of(one).reason


def test_a_step_may_not_take_a_name_of_tunekit() -> None:
    one = session(plugin(tunekit_steps=lambda: [StepSpec(name="sft", target="a:b")]))
    assert "belongs to tunekit" in record_of(one).reason


@pytest.mark.parametrize("answer", [None, 3, "abc", trainer()])
def test_a_hook_must_return_a_list(answer: object) -> None:
    assert record_of(session(plugin(tunekit_trainers=lambda: answer))).state == "broken"


def test_one_name_twice_from_one_distribution() -> None:
    one = session(plugin(tunekit_trainers=lambda: [trainer(), trainer()]))
    assert "twice" in record_of(one).reason
    apart = session(plugin(tunekit_trainers=lambda: [trainer(), trainer(stage="sft")]))
    assert record_of(apart).state == "loaded"


def test_a_plugin_that_fails_takes_only_itself_out(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Spec]:
        raise RuntimeError("no licence")

    def observer(event: Event) -> None:
        raise AssertionError("a broken plugin was told")

    one = session(
        plugin(tunekit_trainers=lambda: [trainer()], tunekit_adapters=broken, tunekit_event=observer),
        plugin(tunekit_adapters=lambda: [AdapterSpec(name="good", target="a:b")]),
    )
    with caplog.at_level(logging.WARNING, "tunekit"):
        assert one.registry.names("trainer", "align") == () and one.registry.names("adapter") == ("good",)
        one.hooks.event(RunFinished(run_id="r", seq=0, time=0.0, status="finished", seconds=1.0))
    bad = record_of(one)
    assert bad.state == "broken" and bad.reason == "RuntimeError: no licence" and "raise RuntimeError" in bad.traceback
    assert [message for message in caplog.messages if "acme" in message] == [
        "plugin acme (inline) is left out: RuntimeError: no licence"
    ]


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (lambda ref=None: None, "default value"),
        (lambda reff: None, "no argument 'reff'"),
        (lambda *ref: None, "plain arguments only"),
        (lambda **kw: None, "plain arguments only"),
    ],
)
def test_signatures(hook: Any, says: str) -> None:
    one = session(plugin(tunekit_trainers=lambda: [trainer()], tunekit_resolve_model=hook))
    assert record_of(one).state == "broken" and says in record_of(one).reason
    assert one.registry.names("trainer", "align") == ()
    assert one.hooks.resolve_model("x") is None


def test_fewer_arguments_are_fine() -> None:
    one = session(plugin(tunekit_check_plan=lambda: (), tunekit_event=lambda: None))
    assert record_of(one).state == "loaded" and one.hooks.check_plan(Plan()) == []


def test_unknown_hooks_and_forgotten_marks_are_reported() -> None:
    module = plugin(tunekit_trainer=lambda: (), tunekit_steps=lambda: ())
    module.tunekit_adapters = lambda: ()
    record = record_of(session(module))
    assert record.state == "loaded"
    assert len(record.problems) == 2
    assert "not marked with @hookimpl" in record.problems[0] and "tunekit_adapters" in record.problems[0]
    assert "no hook of this tunekit" in record.problems[1] and "did you mean tunekit_trainers" in record.problems[1]


@pytest.mark.parametrize(
    ("stated", "state"), [(1, "loaded"), (2, "incompatible"), (0, "incompatible"), ("1", "broken"), (True, "broken")]
)
def test_api_versions(stated: object, state: str) -> None:
    one = session(plugin(api_version=stated, tunekit_trainers=lambda: [trainer()]))
    assert record_of(one).state == state
    assert bool(one.registry.names("trainer", "align")) == (state == "loaded")


def test_lazy_attributes_of_a_plugin_are_left_alone() -> None:
    module = plugin(tunekit_trainers=lambda: [trainer()])

    def heavy(name: str) -> object:
        raise AssertionError(f"{name} was loaded")

    module.__getattr__ = heavy
    module.__dir__ = lambda: ["Model", "tunekit_steps"]
    assert record_of(session(module)).state == "loaded"


def test_firstresult_hooks_pass_over_a_plugin_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    source = object()

    def broken(ref: str) -> None:
        raise KeyError(ref)

    one = session(plugin(tunekit_resolve_model=lambda ref: source), plugin(tunekit_resolve_model=broken))
    with caplog.at_level(logging.ERROR, "tunekit"):
        assert one.hooks.resolve_model("x") is source and one.hooks.resolve_model("y") is source
    assert len(caplog.records) == 1 and "tunekit_resolve_model" in caplog.text and "KeyError" in caplog.text


def test_an_error_on_purpose_reaches_the_user() -> None:
    def refuse(ref: str) -> None:
        raise OptionsError("this folder is damaged")

    with pytest.raises(OptionsError, match="damaged"):
        session(plugin(tunekit_resolve_model=refuse)).resolve_model("x")


def test_observers_are_isolated_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("observer down")

    one = session(plugin(tunekit_event=broken), plugin(tunekit_event=lambda event: seen.append(event)))
    for number in range(3):
        one.hooks.event(RunFinished(run_id="r", seq=number, time=0.0, status="finished", seconds=1.0))
    assert len(seen) == 3 and len(caplog.records) == 1


def wrapper(function: Any) -> Any:
    return hookimpl(wrapper=True)(function)


def before(ref: str) -> Any:
    raise RuntimeError("before")
    yield


def after(ref: str) -> Any:
    yield
    raise RuntimeError("after")


def leaving(ref: str) -> Any:
    yield
    raise SystemExit(3)


def twice(ref: str) -> Any:
    yield
    yield


@pytest.mark.parametrize("bad", [before, after, leaving, twice])
def test_a_wrapper_that_fails_is_as_good_as_not_there(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = session(plugin(tunekit_resolve_model=lambda ref: f"found {ref}"), plugin(tunekit_resolve_model=wrapper(bad)))
    for _ in range(2):
        assert one.hooks.resolve_model("x") == "found x"
    assert len(caplog.records) == 1 and "tunekit_resolve_model" in caplog.text


def test_old_wrappers_are_guarded_too(caplog: pytest.LogCaptureFixture) -> None:
    def changes(ref: str) -> Any:
        outcome = yield
        outcome.force_result(f"{outcome.get_result()}, changed")

    found = plugin(tunekit_resolve_model=lambda ref: f"found {ref}")
    for bad in (before, after, twice):
        one = session(
            found,
            plugin(tunekit_resolve_model=hookimpl(hookwrapper=True)(changes)),
            plugin(tunekit_resolve_model=hookimpl(hookwrapper=True)(bad)),
        )
        caplog.clear()
        assert one.hooks.resolve_model("x") == "found x, changed"
        assert len(caplog.records) == 1


def test_wrappers_work() -> None:
    def changes(ref: str) -> Any:
        try:
            answer = yield
        except OptionsError:
            return "mended"
        return f"{answer}, changed"

    def refuse(ref: str) -> None:
        raise OptionsError("this folder is damaged")

    def passes(ref: str) -> Any:
        return (yield)

    good = plugin(tunekit_resolve_model=lambda ref: f"found {ref}")
    assert session(good, plugin(tunekit_resolve_model=wrapper(changes))).hooks.resolve_model("x") == "found x, changed"
    bad = plugin(tunekit_resolve_model=refuse)
    assert session(bad, plugin(tunekit_resolve_model=wrapper(changes))).hooks.resolve_model("x") == "mended"
    with pytest.raises(OptionsError, match="damaged"):
        session(bad, plugin(tunekit_resolve_model=wrapper(passes))).hooks.resolve_model("x")


def test_a_wrapper_of_a_check_that_returns_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def forgets(plan: Plan) -> Any:
        yield

    def adds(plan: Plan) -> Any:
        answers = yield
        return [*answers, [Finding(level="note", step=None, code="more", message="m")]]

    note = plugin(tunekit_check_plan=lambda plan: [Finding(level="note", step=None, code="c", message="m")])
    one = session(note, plugin(tunekit_check_plan=wrapper(adds)), plugin(tunekit_check_plan=wrapper(forgets)))
    assert [finding.code for finding in one.hooks.check_plan(Plan())] == ["c", "more"]
    assert len(caplog.records) == 1 and "NoneType" in caplog.text


def test_a_wrapper_of_events_cannot_stop_a_run(caplog: pytest.LogCaptureFixture) -> None:
    def bad(event: Event) -> Any:
        yield
        raise RuntimeError("down")

    seen: list[Event] = []
    one = session(plugin(tunekit_event=lambda event: seen.append(event)), plugin(tunekit_event=wrapper(bad)))
    for number in range(2):
        one.hooks.event(RunFinished(run_id="r", seq=number, time=0.0, status="finished", seconds=1.0))
    assert len(seen) == 2 and len(caplog.records) == 1


def test_a_plugin_that_leaves_while_it_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    def trainers() -> list[Spec]:
        raise SystemExit(3)

    def lazily() -> Iterator[Spec]:
        yield trainer()
        raise SystemExit(4)

    for hook in (trainers, lazily):
        one = session(plugin(tunekit_trainers=hook), plugin(tunekit_trainers=lambda: [trainer("good")]))
        assert [r.state for r in one.plugins()] == ["loaded", "broken", "loaded"]
        assert one.registry.names("trainer", "align") == ("good",) and "SystemExit" in one.plugins()[1].reason


def test_the_plugin_that_is_broken_is_the_one_that_is_recorded() -> None:
    """Two of one name, and the second is at fault."""
    good, bad = plugin(tunekit_trainers=lambda: [trainer()]), plugin(tunekit_trainers=lambda: [trainer("BAD")])
    assert [record.state for record in session(good, bad).plugins()] == ["loaded", "loaded", "broken"]
    assert [record.state for record in session(bad, good).plugins()] == ["loaded", "broken", "loaded"]


def test_handing_in_a_plugin_twice_is_handing_it_in_once() -> None:
    seen: list[Event] = []
    mine = plugin(tunekit_trainers=lambda: [trainer()], tunekit_event=lambda event: seen.append(event))
    one = session(mine, mine)
    one.hooks.event(RunFinished(run_id="r", seq=0, time=0.0, status="finished", seconds=1.0))
    assert [record.state for record in one.plugins()] == ["loaded", "loaded"] and len(seen) == 1


def test_check_hooks_that_fail_become_warnings() -> None:
    def raising(plan: Plan) -> list[Finding]:
        raise RuntimeError("oops")

    one = session(
        plugin(tunekit_check_plan=raising),
        plugin(tunekit_check_plan=lambda plan: ["no finding"]),
        plugin(tunekit_check_plan=lambda plan: [Finding(level="note", step=None, code="c", message="m")]),
        plugin(tunekit_check_plan=lambda plan: None),
    )
    found = one.hooks.check_plan(Plan())
    assert sorted((f.level, f.code) for f in found) == [
        ("note", "c"),
        ("warning", "plugin-failed"),
        ("warning", "plugin-failed"),
    ]


def test_run_step_may_be_wrapped_and_taken_over() -> None:
    order: list[str] = []

    @hookimpl(wrapper=True)
    def traced(step: Any, ctx: Any) -> Any:
        order.append("before")
        answer = yield
        order.append("after")
        return answer

    def remote(step: Any, ctx: Any) -> Any:
        order.append("remote")
        return "artifact"

    one = session(plugin(tunekit_run_step=remote), plugin(tunekit_run_step=traced))
    assert one.hooks.run_step(None, None) == "artifact"  # type: ignore[arg-type, comparison-overlap]
    assert order == ["before", "remote", "after"]


def test_run_step_errors_come_out_unchanged() -> None:
    def failing(step: Any, ctx: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session(plugin(tunekit_run_step=failing)).hooks.run_step(None, None)  # type: ignore[arg-type]


def test_plugins_load_once_whatever_the_number_of_threads() -> None:
    calls: list[int] = []

    def trainers() -> list[TrainerSpec]:
        calls.append(1)
        return [trainer()]

    one = session(plugin(tunekit_trainers=trainers))
    barrier = threading.Barrier(8)
    found: list[object] = []

    def look() -> None:
        barrier.wait()
        found.append(one.registry)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(set(map(id, found))) == 1


def test_a_plugin_that_asks_while_it_is_loaded() -> None:
    holder: list[Session] = []

    def trainers() -> list[TrainerSpec]:
        holder[0].registry.names("trainer")
        return []

    holder.append(session(plugin(tunekit_trainers=trainers)))
    assert "while plugins were being loaded" in record_of(holder[0]).reason


def test_sessions_do_not_share_plugins() -> None:
    mine = plugin(tunekit_trainers=lambda: [trainer()])
    first, second = session(mine), session()
    assert first.registry.names("trainer", "align") == ("mine",)
    assert second.registry.names("trainer", "align") == ()
    assert session(mine).registry.names("trainer", "align") == ("mine",)


def test_unknown_names_teach() -> None:
    one = session(
        plugin(api_version=9),
        plugin(tunekit_trainers=lambda: [trainer("dpo"), trainer("kto"), trainer("special", stage="sft")]),
    )
    with pytest.raises(UnknownNameError) as caught:
        one.registry.find("trainer", "dppo", "align")
    error = caught.value
    assert error.suggestions == ("dpo",) and error.code == "unknown-method"
    assert "known: dpo, kto" in error.found and "incompatible" in error.found
    assert error.fix == 'type align(method="dpo")'
    with pytest.raises(UnknownNameError, match="'special' is a method of sft"):
        one.registry.find("trainer", "special", "align")
    with pytest.raises(UnknownNameError) as caught:
        one.registry.find("trainer", "other-dist/dpo", "align")
    assert caught.value.suggestions == ("inline/dpo",)
    with pytest.raises(UnknownNameError, match="no plugin provides any benchmark"):
        one.registry.find("benchmark", "mmlu")


# Targets, packages, options


def load(spec: Spec, hook: str = "tunekit_steps") -> Any:
    one = session(plugin(**{hook: lambda: [spec]}))
    return one.load(one.registry.find(spec.kind, spec.name).component)


def test_a_missing_package_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "acme_heavy", None)
    with pytest.raises(MissingDependencyError) as caught:
        load(StepSpec(name="s", target="acme_heavy:X", requires=("no-such-package>=2",)))
    assert caught.value.fix == "pip install 'no-such-package>=2'"
    assert "no-such-package>=2 (not installed)" in caught.value.found
    with pytest.raises(MissingDependencyError) as caught:
        load(StepSpec(name="s", target="acme_heavy:X", requires=("no-such-package",), install="pip install acme[all]"))
    assert caught.value.fix == "pip install acme[all]"


def test_a_plugin_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match="cannot be imported"):
        load(StepSpec(name="s", target="tunekit.plan:NoSuchThing"))
    with pytest.raises(PluginError, match="cannot be imported"):
        load(StepSpec(name="s", target="tunekit.no_such_module:X"))


def test_requirements_are_read_from_metadata() -> None:
    one = session()
    spec = StepSpec(
        name="s",
        target="a:b",
        requires=("pluggy>=1.5", "pluggy>=99", "nowhere-to-be-found; python_version<'3'", "pytest!=0.1"),
    )
    (unmet,) = one.unmet(spec)
    assert unmet.requirement == "pluggy>=99" and unmet.installed is not None
    assert one.install_line(spec) == "pip install 'pluggy>=99'"
    with pytest.raises(PluginError, match="cannot be read"):
        one.unmet(StepSpec(name="s", target="a:b", requires=("???",)))


def test_options_by_name() -> None:
    one = session(
        plugin(
            tunekit_trackers=lambda: [
                TrackerSpec(name="board", target="a:b", options="tunekit.plugins.options:TrainOptions"),
                TrackerSpec(name="plain", target="a:b", options="builtins:object"),
                TrackerSpec(name="none", target="a:b"),
            ]
        )
    )
    component = one.registry.find("tracker", "board").component
    assert one.parse_options(component, {"epochs": 2, "limit": 3}).epochs == 2
    with pytest.raises(OptionsError) as caught:
        one.parse_options(component, {"epochs": "2", "lmit": 3})
    assert {tuple(item["loc"]) for item in caught.value.details["errors"]} == {("epochs",), ("lmit",)}
    with pytest.raises(PluginError, match="not a pydantic model"):
        one.options_model(one.registry.find("tracker", "plain").component)
    none = one.registry.find("tracker", "none").component
    assert one.parse_options(none, {}) is None
    with pytest.raises(OptionsError):
        one.parse_options(none, {"x": 1})


# Models and data through a session


def test_models_by_short_name_then_hook(tmp_path: Any) -> None:
    module = types.ModuleType("acme_sources")
    short = toy_plugin.ToySource("short name")
    module.make = lambda: short  # type: ignore[attr-defined]
    sys.modules["acme_sources"] = module
    try:
        one = session(
            plugin(
                tunekit_models=lambda: [ModelSpec(name="small", target="acme_sources:make")],
                tunekit_resolve_model=lambda ref: toy_plugin.ToySource(ref) if ref.startswith("./") else None,
            )
        )
        assert one.resolve_model("small") is one.resolve_model("inline/small") is short
        assert one.resolve_model("./small").ref == "./small"
        with pytest.raises(OSError, match="There is no model 'smal'") as caught:
            one.resolve_model("smal")
        assert caught.value.suggestions == ("small",)  # type: ignore[attr-defined]
    finally:
        del sys.modules["acme_sources"]


def test_data_sets_by_short_name() -> None:
    one = session()
    found = one.resolve_dataset("tunekit/stdlib-preferences", accepts=("preference",), limit=3)
    assert found.schema == "preference" and len(list(found.rows())) == 3
    rows = one.resolve_dataset([{"text": "a"}, {"text": "b"}], accepts=("text",), limit=1)
    assert [row["text"] for row in rows.rows()] == ["a"]
    with pytest.raises(ValueError, match="do not apply"):
        one.resolve_dataset("stdlib-text", columns={"text": "x"})
    with pytest.raises(ValueError, match="not here"):
        one.resolve_dataset("object:list-1")


def test_a_data_hook_comes_first() -> None:
    from tunekit.data import load_dataset

    one = session(
        plugin(
            tunekit_resolve_dataset=lambda ref: (
                load_dataset([{"text": "from the hook"}] * 3)
                if isinstance(ref, str) and ref.startswith("acme://")
                else None
            ),
            tunekit_datasets=lambda: [DatasetSpec(name="d", target="builtins:list", schema="text")],
        )
    )
    assert len(one.resolve_dataset("acme://x", limit=2)) == 2
    assert one.resolve_dataset("acme://x").peek()[0]["text"] == "from the hook"
    with pytest.raises(ValueError, match="rows"):
        one.resolve_dataset("d").peek()


def test_settings_from_the_environment() -> None:
    settings = Settings.from_env({"TUNEKIT_DISABLE_PLUGINS": " Acme_RL, ,other "})
    assert settings.disabled_plugins == ("Acme_RL", "other")
    assert settings.disables("acme-rl") and settings.disables("x", "Other") and not settings.disables("acme")
    assert Settings.from_env({}) == Settings()


def test_allowed_plugins() -> None:
    assert Settings().allows("anything") and Settings.from_env({}).allowed_plugins is None
    listed = Settings.from_env({"TUNEKIT_ALLOW_PLUGINS": "Acme_RL, tunekit-trl", "TUNEKIT_DISABLE_PLUGINS": "dpo"})
    assert listed.allowed_plugins == ("Acme_RL", "tunekit-trl")
    assert listed.refusal("x", "acme-rl") == "" and listed.refusal("acme-rl", "tunekit-trl") == ""
    assert listed.refusal("acme-rl", "other") == "not listed in TUNEKIT_ALLOW_PLUGINS", "any may call itself acme-rl"
    assert listed.refusal("dpo", "acme-rl") == "listed in TUNEKIT_DISABLE_PLUGINS"
    assert Settings.from_env({"TUNEKIT_ALLOW_PLUGINS": ""}).refusal("x", "y") == "not listed in TUNEKIT_ALLOW_PLUGINS"
    own = Settings(allowed_plugins=("a",), disabled_plugins=("b",))
    assert own.refusal("x", "y") == "not listed in Settings.allowed_plugins"
    assert own.refusal("x", "b") == "listed in Settings.disabled_plugins"


def test_what_is_handed_in_is_always_allowed() -> None:
    one = Session(
        plugins=[plugin(tunekit_trainers=lambda: [trainer()])], settings=Settings(allowed_plugins=("acme-rl",))
    )
    assert {record.name for record in one.plugins() if record.state == "loaded"} == {"tunekit", "acme"}
    with pytest.raises(UnknownNameError, match=r"tunekit-trl 0.1.0 is disabled: not listed in Settings.allowed"):
        one.registry.find("trainer", "dpo", "align")
