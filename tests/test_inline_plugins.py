"""Decorated classes and functions: components without a package, as in a notebook."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_plugin

import tunekit.plugins
from tunekit import Pipeline
from tunekit.errors import PluginError, UnknownNameError
from tunekit.plugins import (
    AdapterSpec,
    Artifact,
    BenchmarkSpec,
    DataFormatSpec,
    DatasetSpec,
    ExporterSpec,
    ModelSpec,
    Options,
    QuantizerSpec,
    RewardSpec,
    StepSpec,
    TrackerSpec,
    TrainerSpec,
    hookimpl,
)
from tunekit.session import Session
from tunekit.settings import Settings

KINDS = {
    "trainer": TrainerSpec,
    "adapter": AdapterSpec,
    "quantizer": QuantizerSpec,
    "benchmark": BenchmarkSpec,
    "exporter": ExporterSpec,
    "reward": RewardSpec,
    "tracker": TrackerSpec,
    "step": StepSpec,
    "model": ModelSpec,
    "dataset": DatasetSpec,
    "data_format": DataFormatSpec,
}


def session(*plugins: Any) -> Session:
    return Session(plugins=plugins, autoload=False, settings=Settings())


def version(thing: Any) -> str:
    (entry,) = [entry for entry in session(thing).components() if entry.component.provider == "inline"]
    return entry.component.version


class MineOptions(Options):
    rate: float = 0.5


@tunekit.plugins.trainer(name="mine", stage="sft", data=("text",), options=MineOptions)
class Mine:
    """Trains as I like.

    In detail.
    """

    def run(self, ctx: Any) -> Any:
        return ctx


@tunekit.plugins.data_format(name="asked", schema="prompt_completion", columns=("ask", "reply"))
def asked(row: Any) -> Any:
    return {"prompt": row["ask"], "completion": row["reply"]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decorator_takes_the_fields_of_its_spec(kind: str) -> None:
    """Names, defaults and types agree, but there is no target, and options and preview may be the thing itself."""
    decorator, spec = getattr(tunekit.plugins, kind), KINDS[kind]
    parameters = inspect.signature(decorator).parameters
    # A class in a script is one benchmark, made as it stands.
    without = ("target", "members", "arguments")
    fields = {field.name: field for field in dataclasses.fields(spec) if field.name not in without}
    assert set(parameters) == set(fields)
    for name, parameter in parameters.items():
        default = fields[name].default
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default == (parameter.empty if default is dataclasses.MISSING else default)
        if name not in ("options", "preview"):
            assert parameter.annotation == fields[name].type
    assert decorator.__doc__ and f"@{kind}(" in decorator.__doc__ and spec.__name__ in decorator.__doc__


def test_the_class_comes_back_and_nothing_is_registered() -> None:
    plain = type("Plain", (), {"run": lambda self, ctx: None})
    assert tunekit.plugins.exporter(name="plain")(plain) is plain
    assert session().components("exporter") == ()
    assert [entry.component.name for entry in session(plain).components("exporter")] == ["plain"]
    assert Mine().run(3) == 3


def test_a_component_is_the_very_object() -> None:
    one = session(Mine, asked)
    entry = one.registry.find("trainer", "mine", "sft")
    assert one.registry.find("trainer", "inline/mine", "sft") is entry
    assert one.load(entry.component) is Mine and one.options_model(entry.component) is MineOptions
    assert one.parse_options(entry.component, {"rate": 1}).rate == 1.0
    assert entry.spec.summary == "Trains as I like." and entry.component.target == f"{__name__}:Mine"
    assert [record.state for record in one.plugins()] == ["loaded"] * 3
    assert one.resolve_dataset([{"ask": "a", "reply": "b"}]).peek() == [{"prompt": "a", "completion": "b"}]


def everything() -> dict[str, Any]:
    """One of each kind, all of them made in a function, where no import string leads."""

    class Whole:
        def __init__(self, options: Any = None) -> None: ...

        def _do(self, *arguments: Any) -> None: ...

        run = attach = save = merge = detached = rows = request = judge = protocol = on_event = close = _do

    made: dict[str, Any] = {}
    for kind in ("adapter", "quantizer", "benchmark", "exporter", "tracker", "step"):
        made[kind] = getattr(tunekit.plugins, kind)(name=f"a-{kind}")(type(f"A{kind}", (Whole,), {}))
    made["trainer"] = tunekit.plugins.trainer(name="a-trainer", stage="align")(type("Atrainer", (Whole,), {}))

    @tunekit.plugins.model(name="a-model")
    def a_model() -> Any: ...

    @tunekit.plugins.dataset(name="a-dataset", schema="text")
    def a_dataset() -> Any:
        return [{"text": "hello"}]

    @tunekit.plugins.data_format(name="a-format", schema="text", columns=("line",))
    def a_format(row: Any) -> Any:
        return {"text": row["line"]}

    return {**made, "model": a_model, "dataset": a_dataset, "format": a_format}


def test_every_kind_works_for_things_made_in_a_function() -> None:
    made = everything()
    one = session(*made.values())
    assert [record.reason for record in one.plugins() if record.state != "loaded"] == []
    for kind, thing in made.items():
        entry = one.registry.find(kind, f"a-{kind}", "align" if kind == "trainer" else "")
        assert entry.value is thing and one.load(entry.component) is thing
    assert one.resolve_dataset("a-dataset").peek() == [{"text": "hello"}]
    assert one.resolve_dataset([{"line": "x"}], format="a-format").peek() == [{"text": "x"}]


def test_one_class_for_two_stages() -> None:
    @tunekit.plugins.trainer(name="both", stage="sft")
    @tunekit.plugins.trainer(name="both", stage="align")
    class Both:
        def run(self, ctx: Any) -> Any: ...

    one = session(Both)
    assert one.load(one.registry.find("trainer", "both", "sft").component) is Both
    assert one.load(one.registry.find("trainer", "both", "align").component) is Both

    class Child(Both):
        """Is not decorated itself."""

    (record,) = [record for record in session(Child).plugins() if record.name == "Child"]
    assert record.state == "broken" and record.reason == "Child is a class; hand in an instance, Child()"


# What is wrong, and when one hears of it


class NoRun: ...


class NeedsMore:
    def __init__(self, more: int) -> None: ...

    def run(self, ctx: Any) -> Any: ...


class Sink:
    def on_event(self, event: Any) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("decorate", "says"),
    [
        (lambda: tunekit.plugins.trainer(name="x", stage="sft")(len), "trainer goes on a class, found <built-in"),
        (lambda: tunekit.plugins.trainer(name="x", stage="sft")(Mine()), "goes on a class"),
        (lambda: tunekit.plugins.trainer(name="x", stage="sft")(NoRun), "needs run, and NoRun has no run"),
        (lambda: tunekit.plugins.benchmark(name="x")(NoRun), "has no rows, request, judge or protocol"),
        (lambda: tunekit.plugins.quantizer(name="x")(NeedsMore), r"built as NeedsMore\(\), which NeedsMore does not"),
        (lambda: tunekit.plugins.tracker(name="x")(Sink), r"built as Sink\(options\), which Sink does not take"),
        (lambda: tunekit.plugins.exporter(name="x", options=NoRun)(Mine), "pydantic model as options=, and NoRun is"),
        (lambda: tunekit.plugins.dataset(name="x", schema="text")(NoRun), "dataset goes on a function"),
        (lambda: tunekit.plugins.dataset(name="x", schema="text")(asked), r"called as asked\(\), which asked does not"),
        (
            lambda: tunekit.plugins.data_format(name="x", schema="text", columns=("a",))(everything),
            r"called as everything\(row\)",
        ),
    ],
)
def test_a_wrong_use_is_refused_at_once(decorate: Callable[[], Any], says: str) -> None:
    with pytest.raises(PluginError, match=says) as caught:
        decorate()
    assert caught.value.code == "bad-decoration" and caught.value.fix


def test_decorators_need_their_arguments() -> None:
    with pytest.raises(TypeError, match="positional"):
        tunekit.plugins.benchmark(Mine)  # type: ignore[call-arg, arg-type]
    with pytest.raises(TypeError, match="stagee"):
        tunekit.plugins.trainer(name="x", stagee="sft")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("decorator", "says"),
    [
        (tunekit.plugins.trainer(name="My Own", stage="sft"), "lower case"),
        (tunekit.plugins.trainer(name="own", stage="stf"), "did you mean 'sft'"),
        (tunekit.plugins.trainer(name="own", stage="sft", data="text"), "not a tuple of strings"),  # type: ignore[arg-type]
        (tunekit.plugins.step(name="sft"), "belongs to tunekit"),
        (tunekit.plugins.step(name="own", verb="sft"), "belongs to tunekit"),
        (tunekit.plugins.exporter(name="own", options="no import string"), "not of the form 'pkg.module:attribute'"),
    ],
)
def test_a_bad_field_is_recorded_and_named_on_use(decorator: Any, says: str) -> None:
    class Own:
        def run(self, ctx: Any) -> Any: ...

    one = session(decorator(Own), Mine)
    (record,) = [record for record in one.plugins() if record.name == "Own"]
    assert record.state == "broken" and says in record.reason and record.reason.startswith("test_a_bad_field")
    assert one.registry.names("trainer", "sft") == ("mine",)
    with pytest.raises(UnknownNameError, match="plugin Own \\(inline\\) is broken"):
        one.registry.find("trainer", "own", "sft")


def test_two_of_one_name() -> None:
    def make() -> Any:
        @tunekit.plugins.exporter(name="twin")
        class Twin:
            def run(self, ctx: Any) -> Any: ...

        return Twin

    first, second = make(), make()
    with pytest.raises(PluginError, match="are the exporter 'twin'") as caught:
        session(first, second)
    assert caught.value.code == "duplicate-component" and "another name" in caught.value.fix
    assert session(first, first).registry.names("exporter") == ("twin",)
    # A cell that is run again makes a new class; a new session takes it.
    for twin in (first, second):
        one = session(twin)
        assert one.load(one.registry.find("exporter", "twin").component) is twin
    module = types.ModuleType("cells")
    module.first, module.again, module.second = first, first, second  # type: ignore[attr-defined]
    (record,) = [record for record in session(module).plugins() if record.name == "cells"]
    assert record.state == "broken" and "provides the exporter 'twin' twice" in record.reason


@pytest.mark.parametrize("thing", [Mine, asked])
def test_what_stands_in_a_module_or_object_counts_besides_its_hooks(thing: Any) -> None:
    module = types.ModuleType("cells")
    module.thing = thing  # type: ignore[attr-defined]
    module.tunekit_exporters = hookimpl(lambda: [ExporterSpec(name="by-hook", target="a:b")])  # type: ignore[attr-defined]

    class Holder:
        inner = staticmethod(thing) if thing is asked else thing

        @hookimpl
        def tunekit_exporters(self) -> list[ExporterSpec]:
            return [ExporterSpec(name="by-hook", target="a:b")]

    for plugin in (module, Holder()):
        for one in (session(plugin), session(plugin, thing), session(thing, plugin)):
            assert [record.reason for record in one.plugins() if record.state != "loaded"] == []
            found = [entry.component.name for entry in one.components() if entry.component.provider == "inline"]
            assert sorted(found) == sorted(["by-hook", "mine" if thing is Mine else "asked"])


@pytest.mark.parametrize("plugin", [len, lambda: None, "pkg.module", ["a"], None, 3])
def test_what_can_hold_no_plugin_is_refused(plugin: Any) -> None:
    record = session(plugin).plugins()[-1]
    assert record.state == "broken" and record.provider == "inline" and record.reason


# Versions


BASE = """
    LIMIT = 5
    CACHE = []

    def helper(text):
        return text.strip()

    class Parent:
        def shared(self):
            return 1

    class Opt(Options):
        rate: float = 0.5

        def scaled(self):
            return self.rate * 2

    def make(threshold):
        @tunekit.plugins.exporter(name="mine", options=Opt)
        class Mine(Parent):
            WORDS = ("a", "b")
            LABELS = {"x": 1}
            ASKED = frozenset({"p", "q", "r", "s"})

            def run(self, ctx, *, depth=2):
                inner = [item + 1 for item in range(3) if item in {10, 20, 30}]
                CACHE.append(depth)
                return helper(f"{threshold} {LIMIT} {inner}")

            @property
            def size(self):
                return 3

            @classmethod
            def build(cls):
                return cls()

        return Mine

    Mine = make(7)
"""


def cell(source: str, file: str = "<cell 1>") -> Any:
    """What a notebook makes of ``source``."""
    names = {"__name__": "__main__", "tunekit": tunekit, "Options": Options}
    exec(compile(textwrap.dedent(source), file, "exec"), names)
    return names["Mine"]


def test_the_same_code_has_the_same_version() -> None:
    first = version(cell(BASE))
    assert first.startswith("code-") and len(first) == 13 and int(first[5:], 16) >= 0
    moved = "# a comment\n\n\n" + textwrap.dedent(BASE).replace("return cls()", "# why not\n            return cls()")
    assert version(cell(moved, "<cell 9>")) == first
    used = cell(BASE)
    before = version(used)
    used().run(None)
    used.LABELS["y"] = 2
    assert version(used) == before == first, "what it fills while it runs is no change of its code"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("item + 1", "item - 1"),
        ("item + 1", "item + 2"),
        ("range(3)", "sorted(range(3))"),
        ("{10, 20, 30}", "{10, 20, 31}"),
        ("depth=2", "depth=3"),
        ("make(7)", "make(8)"),
        ("LIMIT = 5", "LIMIT = 6"),
        ("text.strip()", "text.lower()"),
        ("return 1", "return 2"),
        ("return 3", "return 4"),
        ("return cls()", "return cls"),
        ('WORDS = ("a", "b")', 'WORDS = ("a", "c")'),
        ('LABELS = {"x": 1}', 'LABELS = {"x": 2}'),
        ('"r", "s"', '"r", "t"'),
        ("rate: float = 0.5", "rate: float = 0.6"),
        ("rate: float = 0.5", "rate: float = 0.5\n        more: int = 1"),
        ("self.rate * 2", "self.rate * 3"),
    ],
)
def test_changed_code_has_another_version(old: str, new: str) -> None:
    assert BASE.count(old) == 1
    assert version(cell(BASE)) != version(cell(BASE.replace(old, new)))


@pytest.mark.parametrize(
    "first,second",
    [
        ("range(3)", "range(9)"),
        ("Decimal(1)", "Decimal(2)"),
        ("date(2026, 1, 1)", "date(2026, 1, 2)"),
        ("SimpleNamespace(k=1)", "SimpleNamespace(k=2)"),
        ("Frozen(1)", "Frozen(2)"),
        ("numpy.float64(1)", "numpy.float64(2)"),
    ],
)
def test_values_that_the_code_uses_count(first: str, second: str) -> None:
    source = """
        import numpy
        from dataclasses import dataclass
        from datetime import date
        from decimal import Decimal
        from types import SimpleNamespace

        @dataclass(frozen=True)
        class Frozen:
            k: int

        SETTING = {}

        @tunekit.plugins.exporter(name="mine")
        class Mine:
            def run(self, ctx):
                return SETTING
    """
    made = [version(cell(source.replace("{}", value))) for value in (first, first, second)]
    assert made[0] == made[1] != made[2]


def test_versions_agree_between_processes() -> None:
    """Sets have another order in every process, and a script is called __main__ where an import has a name."""
    code = "import tunekit, tunekit.plugins\nfrom tunekit.plugins import Options\n" + textwrap.dedent(BASE)
    tail = "print(Session([Mine], autoload=False).components('exporter')[0].component.version)"
    versions = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}\nfrom tunekit import Session\n{tail}"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        versions.add(done.stdout.strip())
    assert versions == {version(cell(BASE))}


def test_anything_may_stand_around() -> None:
    """Loops, depths, sizes and proxies in what the code refers to are no trouble."""

    class Proxy:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("outside of a request")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("outside of a request")

    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    many = [{"text": str(number)} for number in range(100_000)]

    def make(extra: Any) -> Any:
        @tunekit.plugins.exporter(name="x")
        class Holder:
            inside = Proxy()

            def run(self, ctx: Any) -> Any:
                return loop, deep, extra, Holder, self.inside

        return Holder

    assert version(make(many)) == version(make(list(many))) != version(make([*many[:-1], {"text": "other"}]))
    assert version(make(loop)) != version(make(1))


def test_functions_have_versions_too() -> None:
    def make(word: str) -> Any:
        @tunekit.plugins.data_format(name="x", schema="text", columns=("line",))
        def convert(row: Any) -> Any:
            return {"text": word + row["line"]}

        return convert

    assert version(make("a")) == version(make("a")) != version(make("b"))
    one = session(make("a"))
    data = one.resolve_dataset([{"line": "x"}])
    assert data.format_version == version(make("a"))
    assert data.fingerprint() != session(make("b")).resolve_dataset([{"line": "x"}]).fingerprint()


# In a run


COUNTED = """
    @tunekit.plugins.trainer(name="counted", stage="pretrain", data=("text",), options=ToyOptions)
    class Mine:
        FACTOR = 1.0

        def run(self, ctx):
            RAN.append(ctx.step.name)
            write_model(ctx.dir / "model", self.FACTOR)
            return Artifact(
                kind="model",
                model=ModelCard(path="model", parameters=1, dtype="float32"),
                trained=ctx.step.trains,
                trained_parameters=1,
                metrics={"loss": ctx.options.rate},
            )
"""


def test_a_cell_runs_again_only_if_it_changed(tmp_path: Path) -> None:
    ran: list[str] = []

    def run(source: str) -> Any:
        names: dict[str, Any] = {
            "__name__": "__main__",
            "tunekit": tunekit,
            "ToyOptions": toy_plugin.ToyOptions,
            "write_model": toy_plugin.write_model,
            "Artifact": Artifact,
            "ModelCard": tunekit.plugins.ModelCard,
            "RAN": ran,
        }
        exec(textwrap.dedent(source), names)
        one = session(toy_plugin, names["Mine"])
        pipeline = Pipeline(session=one).pretrain(method="counted", data=[{"text": "a"}], rate=0.25)
        return pipeline.run(workdir=tmp_path / "w")

    first = run(COUNTED)
    assert ran == ["pretrain"] and first.step("pretrain").artifact.metrics["loss"] == 0.25
    ran.clear()
    run(COUNTED)
    assert ran == [], "the same cell was run again"
    run(COUNTED.replace("FACTOR = 1.0", "FACTOR = 2.0"))
    assert ran == ["pretrain"], "the changed cell was not run"


def test_wrong_options_of_a_decorated_step_are_found(tmp_path: Path) -> None:
    class CountOptions(Options):
        many: int = 3

    @tunekit.plugins.step(name="count", makes="report", options=CountOptions, verb="count_it")
    class Count:
        def run(self, ctx: Any) -> Any:
            return Artifact(kind="report", metrics={"many": float(ctx.options.many)})

    model = tmp_path / "base"
    toy_plugin.write_model(model, 1.0)
    one = session(toy_plugin, Count)
    bad = Pipeline(model=str(model), session=one).step("count", mny=4).check()
    assert [(f.code, f.details["suggestions"]) for f in bad if f.level == "error"] == [("unknown-option", ["many"])]
    result = Pipeline(model=str(model), session=one).step("count", many=4).run(workdir=tmp_path / "w")
    assert result.step("count").artifact.metrics == {"many": 4.0}
    assert (
        Pipeline(model=str(model), session=one).count_it(many=4).plan == Pipeline(str(model)).step("count", many=4).plan
    )


# Packaged


def test_a_packaged_plugin_may_decorate_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its module only imports from another package stays that package's."""
    info = tmp_path / "acme_marks-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-marks\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text(
        "[tunekit]\nmodule = acme_marks\nobject = acme_marks_two:PLUGIN\nclass = acme_marks_two:Direct\n"
    )
    component = "@exporter(name='{}')\nclass {}:\n    def run(self, ctx): ...\n"
    (tmp_path / "acme_lender.py").write_text(
        "from tunekit.plugins import exporter\n" + component.format("lent", "Lent"),
    )
    (tmp_path / "acme_marks.py").write_text(
        "from tunekit.plugins import exporter\nfrom acme_lender import Lent\n" + component.format("marked", "Marked")
    )
    (tmp_path / "acme_marks_two.py").write_text(
        "from tunekit.plugins import exporter\nfrom acme_lender import Lent\n"
        + component.format("held", "Held")
        + component.format("direct", "Direct")
        + "class Plugin:\n    held = Held\n    lent = Lent\nPLUGIN = Plugin()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        one = Session(settings=Settings(allowed_plugins=("Acme_Marks",)))
        found = {entry.component.id: entry.component.version for entry in one.components("exporter")}
        assert found == {"acme-marks/marked": "3.1", "acme-marks/held": "3.1", "acme-marks/direct": "3.1"}
        marked = sys.modules["acme_marks"].Marked
        assert one.load(one.registry.find("exporter", "marked").component) is marked
        again = Session(plugins=[marked], settings=Settings(allowed_plugins=("Acme_Marks",)))
        assert again.registry.find("exporter", "marked").component.id == "acme-marks/marked", "it is there already"
        assert session(sys.modules["acme_lender"]).components("exporter")[0].component.id == "inline/lent"
    finally:
        for name in ("acme_marks", "acme_marks_two", "acme_lender"):
            sys.modules.pop(name, None)
