"""The builder: a value that says what was typed, and nothing else."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

import tunekit
from tunekit import OptionsError, Pipeline, PipelineError, adapter, lora, qlora
from tunekit.plan import AdapterPlan, StepPlan


def line() -> Pipeline:
    return Pipeline().pretrain().sft().align(method="dpo").lora(r=8).quantize("int4").evaluate(["mmlu", "gsm8k"])


def test_the_line_as_data() -> None:
    assert line().plan.to_data() == {
        "schema": 1,
        "adapter": {"name": "lora", "r": 8},
        "steps": [
            {"kind": "pretrain", "name": "pretrain"},
            {"kind": "sft", "name": "sft"},
            {"kind": "align", "name": "align", "method": "dpo"},
            {"kind": "quantize", "name": "quantize", "options": {"scheme": "int4"}},
            {"kind": "evaluate", "name": "evaluate", "options": {"benchmarks": ["mmlu", "gsm8k"]}},
        ],
    }


def test_branches_leave_the_base_as_it_was() -> None:
    base = Pipeline(model="m").sft(data="a.json", epochs=2)
    before, text = pickle.dumps(base), repr(base)
    full = base.align(data="b.json").quantize("int4")
    small = base.align(data="b.json").lora(r=4).seed(3).track("t")
    assert full != small != base
    assert base == Pipeline(model="m").sft(data="a.json", epochs=2)
    assert (pickle.dumps(base), repr(base)) == (before, text)
    assert len(base.plan.steps) == 1 and base.plan.adapter is None


def test_equality_and_hash_come_from_the_plan() -> None:
    assert line() == line() and hash(line()) == hash(line())
    assert line() != line().seed(1)
    assert line() != line().plan
    assert len({line(), line(), line().sft()}) == 2
    assert Pipeline(model=Path("m")) == Pipeline(model="m")


def test_a_pipeline_cannot_be_changed() -> None:
    pipeline = line()
    with pytest.raises(AttributeError, match="cannot be changed"):
        pipeline.model = "x"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="cannot be changed"):
        del pipeline._plan
    with pytest.raises(TypeError, match="cannot be changed"):
        pipeline.plan.steps[3].options["scheme"] = "int8"  # type: ignore[index]


def test_what_was_passed_in_stays_apart() -> None:
    rows = [{"prompt": "a", "completion": "b"}]
    pipeline = Pipeline().sft(data=rows)
    rows[0]["prompt"] = "changed"
    assert pipeline.plan.to_data()["steps"][0]["options"]["data"] == [{"prompt": "a", "completion": "b"}]


@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline(),
        line(),
        Pipeline(model="m").post_pretrain("t.txt", adapter=None).reward(method="x/y", name="judge", limit=None),
        Pipeline().sft(adapter=lora(r=2, targets=["q", "v"])).sft(input="sft", learning_rate=1e-5).merge(input="sft"),
        Pipeline().sft().adapter("acme/vera", rank=4, nested={"a": [1, None, True]}).track("t", url="u").seed(0),
        Pipeline().step("distill", teacher="t", adapter=qlora(4)).export("gguf", name="out").step("acme/x"),
    ],
)
def test_repr_is_what_one_would_type(pipeline: Pipeline) -> None:
    names = {"Pipeline": Pipeline, "lora": lora, "qlora": qlora, "adapter": adapter}
    assert eval(repr(pipeline), names) == pipeline  # noqa: S307
    assert pickle.loads(pickle.dumps(pipeline)) == pipeline
    assert copy.deepcopy(pipeline) == pipeline


def test_repr_shortens_rows() -> None:
    text = repr(Pipeline().sft(data=[{"text": "x" * 50}] * 40))
    assert "40 items" in text and len(text) < 100


def test_names_of_steps() -> None:
    steps = Pipeline().sft().sft(name="sft-2").sft().align().step("acme/sft").plan.steps
    assert [step.name for step in steps] == ["sft", "sft-2", "sft-3", "align", "sft-4"]
    with pytest.raises(PipelineError, match="two steps called 'a'"):
        Pipeline().sft(name="a").align(name="a")
    for bad in ("", "a/b", "../x", "a b", "-x", 3):
        with pytest.raises(PipelineError):
            Pipeline().sft(name=bad)  # type: ignore[arg-type]


def test_an_adapter_set_twice_is_explained() -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline().lora(r=8).sft().qlora(r=4)
    text = str(caught.value)
    assert caught.value.code == "adapter-twice"
    assert "settings of the whole pipeline" in text and "lora(r=8)" in text and "sft(adapter=qlora(r=4))" in text


def test_where_a_setting_stands_does_not_matter() -> None:
    assert Pipeline().lora(r=8).seed(1).sft() == Pipeline().sft().seed(1).lora(r=8)


def test_the_step_adapter() -> None:
    steps = Pipeline().sft().sft(adapter=None).sft(adapter="dora").sft(adapter=lora(r=2)).plan.steps
    assert [step.adapter for step in steps] == ["inherit", None, AdapterPlan("dora"), AdapterPlan("lora", {"r": 2})]
    with pytest.raises(PipelineError, match="no adapter"):
        Pipeline().sft(adapter=8)  # type: ignore[arg-type]


def test_only_what_was_passed_gets_into_the_plan() -> None:
    step = Pipeline().sft("a.json", limit=None, packing=True).plan.steps[0]
    assert step == StepPlan("sft", "sft", options={"data": "a.json", "limit": None, "packing": True})


def test_reserved_words_are_no_options() -> None:
    step = Pipeline().pretrain(adapter=lora(), input="x").plan.steps[0]
    assert not step.options and step.input == "x" and step.adapter == AdapterPlan("lora")


def test_values_of_other_libraries() -> None:
    numpy = pytest.importorskip("numpy")
    options = Pipeline().sft(Path("a") / "b.json", epochs=numpy.int64(3), x=numpy.array([1.5, 2])).plan.steps[0].options
    assert options["data"] == "a/b.json" and options["epochs"] == 3 and options["x"] == (1.5, 2.0)
    assert type(options["epochs"]) is int


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), {1, 2}, b"x", {1: 2}])
def test_what_no_plan_can_hold(value: object) -> None:
    with pytest.raises(OptionsError):
        Pipeline().sft(x=value)


def test_objects_in_memory() -> None:
    class Table:
        def __iter__(self) -> object:
            return iter([{"text": "a"}])

    table = Table()
    pipeline = Pipeline(model=(table, None)).sft(data=table)
    ref = pipeline.plan.steps[0].options["data"]
    assert ref.startswith("object:Table") and "<Table>" in repr(pipeline)
    assert set(pipeline._objects) == {ref, pipeline.plan.model} and pipeline._objects[ref] is table
    assert Pipeline().sft(data=table) == Pipeline().sft(data=table) != Pipeline().sft(data=Table())
    assert Pipeline(model=(table, None)) == Pipeline(model=[table, None]) != Pipeline(model=(table, ref))
    with pytest.raises(PipelineError, match="objects in memory"):
        pipeline.to_yaml()
    with pytest.raises(PipelineError):
        Pipeline(model="object:made-up")


def test_a_generator_is_read_once_and_replayed() -> None:
    taken = []

    def rows() -> object:
        for number in range(3):
            taken.append(number)
            yield {"text": f"row {number}"}

    generator = rows()
    first, second = Pipeline().pretrain(data=generator), Pipeline().pretrain(data=generator)
    for pipeline in (first, second, first.sft()):
        (kept,) = pipeline._objects.values()
        assert len(list(kept)) == 3
    assert taken == [0, 1, 2]


def test_a_failed_generator_stays_failed() -> None:
    def rows() -> object:
        yield {"text": "a"}
        raise RuntimeError("broken")

    (kept,) = Pipeline().pretrain(data=rows())._objects.values()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            list(kept)


def test_the_model_of_a_result() -> None:
    class Ref:
        path = Path("runs/x/model")

        def load(self) -> None: ...

    assert Pipeline(model=Ref()).plan.model == "runs/x/model"


def test_settings_refuse_nonsense() -> None:
    for bad in (-1, True, 1.0, "1"):
        with pytest.raises(PipelineError):
            Pipeline().seed(bad)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="seed is set twice"):
        Pipeline().seed(1).seed(2)
    assert Pipeline().seed(1).seed(1) == Pipeline().seed(1)
    for call in (
        lambda: Pipeline().track(""),
        lambda: adapter(""),
        lambda: Pipeline(model=""),
        lambda: Pipeline().step("A b"),
    ):
        with pytest.raises(PipelineError):
            call()


def test_building_touches_neither_disk_nor_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunekit.session.default_session", lambda: pytest.fail("plugins were asked"))
    Pipeline(model="nowhere/at-all").sft(data="no-such-file.json").lora().evaluate("x", data="y").plan.fingerprint()
    assert list(tmp_path.iterdir()) == []


def test_the_facade() -> None:
    for name in tunekit.__all__:
        assert getattr(tunekit, name) is not None
    assert set(tunekit.__all__) <= set(dir(tunekit)) and 18 <= len(tunekit.__all__) <= 26
    assert tunekit.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'pipelin'"):
        tunekit.pipelin  # noqa: B018
