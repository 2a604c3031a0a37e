"""Checking a plan: every problem at once, each with its fix, without loading anything."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunekit import CheckFailed, Finding, Pipeline, Session, adapter, default_session, lora
from tunekit.check import check_plan
from tunekit.plugins import (
    AdapterSpec,
    BenchmarkSpec,
    ExporterSpec,
    ModelSpec,
    QuantizerSpec,
    StepSpec,
    TrackerSpec,
    TrainerSpec,
    hookimpl,
)
from tunekit.resolve import analyze, resolve
from tunekit.settings import Settings


class Source:
    """A model that is there."""

    ref, kind = "base", "folder"

    def describe(self) -> str:
        return "base in /models/base"

    def problems(self) -> list[str]:
        return []

    def fingerprint(self) -> str:
        raise AssertionError("checking a plan hashes no weights")

    def load(self) -> Any:
        raise AssertionError("checking a plan loads no weights")


class Damaged(Source):
    def problems(self) -> list[str]:
        return ["it has no tokenizer.", "config.json is missing"]


class Toy:
    """One plugin with a component of every kind."""

    api_version = 1

    @hookimpl
    def tunekit_trainers(self) -> list[TrainerSpec]:
        options = "toy_options:Train"
        return [
            TrainerSpec(
                name="causal", stage="pretrain", target="toy:T", options=options, data=("text",), adapters=False
            ),
            TrainerSpec(name="causal", stage="post_pretrain", target="toy:T", options=options, data=("text",)),
            TrainerSpec(name="sft", stage="sft", target="toy:T", options=options, data=("prompt_completion", "text")),
            TrainerSpec(name="frozen", stage="sft", target="toy:T", options=options, data=("text",), adapters=False),
            TrainerSpec(name="classify", stage="sft", target="toy:T", options=options, data=("classification",)),
            TrainerSpec(name="dpo", stage="align", target="toy:T", options=options, data=("preference",)),
            TrainerSpec(
                name="heavy", stage="align", target="toy:T", requires=("no-such-package>=3",), data=("preference",)
            ),
            TrainerSpec(name="broken-options", stage="align", target="toy:T", options="toy_options:Missing"),
        ]

    @hookimpl
    def tunekit_adapters(self) -> list[AdapterSpec]:
        return [
            AdapterSpec(name="lora", target="toy:A", options="toy_options:Lora", label="{name} r={r}"),
            AdapterSpec(name="odd", target="toy:A", options="toy_options:Lora", label="{name} {nothing}"),
            AdapterSpec(name="qlora", target="toy:A", options="toy_options:Lora"),
        ]

    @hookimpl
    def tunekit_quantizers(self) -> list[QuantizerSpec]:
        return [
            QuantizerSpec(
                name="gptq", target="toy:Q", options="toy_options:Quantize", schemes=("int4", "int8"), calibrated=True
            ),
            QuantizerSpec(
                name="nf4", target="toy:Q", options="toy_options:Quantize", schemes=("int4",), trainable_with=("qlora",)
            ),
        ]

    @hookimpl
    def tunekit_benchmarks(self) -> list[BenchmarkSpec]:
        return [
            BenchmarkSpec(name="mmlu", target="toy:B", sample=True),
            BenchmarkSpec(name="gsm8k", target="toy:B", folder="gsm", sample=True),
            BenchmarkSpec(name="private", target="toy:B"),
        ]

    @hookimpl
    def tunekit_steps(self) -> list[StepSpec]:
        return [
            StepSpec(name="evaluate", target="toy:E", options="toy_options:Evaluate", makes="report"),
            StepSpec(name="merge", target="toy:M"),
            StepSpec(name="distill", target="toy:D", options="toy_options:Train", data=("text",), adapters=True),
            StepSpec(name="look", target="toy:L", makes="report"),
        ]

    @hookimpl
    def tunekit_exporters(self) -> list[ExporterSpec]:
        return [ExporterSpec(name="gguf", target="toy:G")]

    @hookimpl
    def tunekit_trackers(self) -> list[TrackerSpec]:
        return [TrackerSpec(name="board", target="toy:K", options="toy_options:Board")]

    @hookimpl
    def tunekit_models(self) -> list[ModelSpec]:
        return [ModelSpec(name="smollm2-135m-instruct", target="toy_options:source")]

    @hookimpl
    def tunekit_resolve_model(self, ref: str) -> Any:
        return {"base": Source(), "damaged": Damaged()}.get(ref)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    from pydantic import model_validator

    from tunekit.plugins import DataOptions, Options, TrainOptions

    class Train(TrainOptions):
        betas: tuple[float, float] = (0.9, 0.999)

        def resolve(self, *, adapter: str | None) -> Any:
            rate = {None: 2e-5}.get(adapter, 2e-4)
            return self if self.learning_rate is not None else self.model_copy(update={"learning_rate": rate})

    class Lora(Options):
        r: int = 8
        targets: str | list[str] = "all-linear"

    class Quantize(DataOptions):
        scheme: str = "int4"

    class Evaluate(Options):
        benchmarks: list[str]
        data: Any = None
        limit: int | None = None

    class Board(Options):
        url: str
        token: str | None = None

        @model_validator(mode="after")
        def both(self) -> Any:
            if self.url == "private" and self.token is None:
                raise ValueError("a private board needs a token")
            return self

    module = types.ModuleType("toy_options")
    vars(module).update(Train=Train, Lora=Lora, Quantize=Quantize, Evaluate=Evaluate, Board=Board, source=Source)
    monkeypatch.setitem(sys.modules, "toy_options", module)
    return Session(plugins=[Toy()], autoload=False, settings=Settings())


def check(pipeline: Pipeline, session: Session, **options: Any) -> list[Finding]:
    return pipeline.check(session, **options)


def errors(pipeline: Pipeline, session: Session, **options: Any) -> list[tuple[str | None, str]]:
    found = [f for f in check(pipeline, session, **options) if f.level == "error"]
    for finding in found:
        assert finding.fix, finding
        assert finding.message.endswith((".", ")", "?")), finding
        json.dumps(dict(finding.details))
        assert pickle.loads(pickle.dumps(finding)) == finding
    return [(f.step, f.code) for f in found]


def resolved(pipeline: Pipeline, session: Session) -> Any:
    return resolve(pipeline.plan, session, pipeline._objects)


# ---------------------------------------------------------------- what resolves


def test_inputs_and_adapters(session: Session) -> None:
    line = (
        Pipeline()
        .pretrain()
        .sft()
        .evaluate(["mmlu"])
        .sft(adapter=None, name="full")
        .align(input="sft", adapter=lora(r=16))
        .merge()
        .lora(r=8)
        .quantize("int4")
        .step("look")
        .export("gguf")
    )
    plan = resolved(line, session)
    assert [(s.name, s.input, s.trains) for s in plan.steps] == [
        ("pretrain", None, "full"),
        ("sft", "pretrain", "lora r=8"),
        ("evaluate", "sft", "-"),
        ("full", "sft", "full"),
        ("align", "sft", "lora r=16"),
        ("merge", "align", "-"),
        ("quantize", "merge", "-"),
        ("look", "quantize", "-"),
        ("export", "quantize", "-"),
    ]
    assert plan.model is None and plan.model_component is None and plan.seed == 0
    assert [s.component.kind for s in plan.steps][-4:] == ["step", "quantizer", "step", "exporter"]
    assert plan.steps[1].folder == "02-sft"
    assert errors(line, session) == []


def test_a_plugin_step_takes_part_in_the_settings(session: Session) -> None:
    plan = resolved(Pipeline(model="base").step("distill").lora(r=2), session)
    assert plan.steps[0].trains == "lora r=2" and plan.steps[0].data == "tunekit/stdlib-text"
    assert resolved(Pipeline(model="base").sft(adapter="odd"), session).steps[0].trains == "odd"


def test_defaults_are_filled_in(session: Session) -> None:
    line = Pipeline(model="base").sft(epochs=2, batch_size=4).align(adapter=None, learning_rate=1).lora(r=4)
    plan = resolved(line, session)
    sft, align = plan.steps
    assert sft.options["epochs"] == 2 and sft.options["learning_rate"] == 2e-4 and sft.options["betas"] == (0.9, 0.999)
    assert align.options["learning_rate"] == 1.0
    assert set(sft.options) == set(sys.modules["toy_options"].Train.model_fields)
    assert dict(sft.adapter.options) == {"r": 4, "targets": "all-linear"}
    again = session.parse_options(sft.component, sft.options)
    assert again.betas == (0.9, 0.999) and again.learning_rate == 2e-4
    assert json.loads(json.dumps(plan.to_data()))["steps"][0]["options"]["epochs"] == 2


def test_the_base_model(session: Session) -> None:
    plan = resolved(Pipeline().sft(), session)
    assert plan.model == "smollm2-135m-instruct" and plan.model_component.id == "inline/smollm2-135m-instruct"
    assert plan.steps[0].embedded == ("model", "data")
    plan = resolved(Pipeline(model="base").evaluate("mmlu", data=".").sft("a"), session)
    assert plan.model == "base" and [s.embedded for s in plan.steps] == [(), ()]
    assert [s.input for s in plan.steps] == [None, None]
    both = resolved(Pipeline().evaluate("mmlu").pretrain().evaluate("mmlu"), session)
    assert both.model == "smollm2-135m-instruct" and [s.input for s in both.steps] == [None, None, "pretrain"]


def test_embedded_defaults(session: Session) -> None:
    line = Pipeline().pretrain().sft().align().quantize("int4").evaluate(["mmlu"])
    plan = resolved(line, session)
    assert [s.data for s in plan.steps] == [
        "tunekit/stdlib-text",
        "tunekit/stdlib-instructions",
        "tunekit/stdlib-preferences",
        None,
        None,
    ]
    assert [s.embedded for s in plan.steps] == [("data",), ("data",), ("data",), (), ("sample",)]
    alone = resolved(Pipeline(model="base").quantize("int4"), session).steps[0]
    assert alone.data == "tunekit/stdlib-text" and alone.embedded == ("data",)
    own = resolved(Pipeline(model="base").quantize("int4", data="c.txt"), session).steps[0]
    assert own.data == "c.txt" and own.embedded == ()


def test_trackers_and_seed(session: Session) -> None:
    plan = resolved(Pipeline(model="base").sft().track("board", url="u").seed(5), session)
    ((component, options),) = plan.trackers
    assert component.id == "inline/board" and dict(options) == {"url": "u", "token": None} and plan.seed == 5


def test_rows_in_the_plan(session: Session) -> None:
    line = Pipeline(model="base").sft(data=[{"prompt": "a", "completion": "b"}])
    assert errors(line, session) == []
    step = resolved(line, session).steps[0]
    assert session.resolve_dataset(step.data, accepts=("prompt_completion",)).peek() == [
        {"prompt": "a", "completion": "b"}
    ]


# ---------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (Pipeline(), [(None, "no-steps")]),
        (Pipeline(model="base").align(method="dpoo"), [("align", "unknown-method")]),
        (Pipeline(model="base").step("stf"), [("stf", "unknown-step")]),
        (Pipeline(model="base").step("distil"), [("distil", "unknown-step")]),
        (Pipeline(model="base").step("look", method="x"), [("look", "no-method")]),
        (Pipeline(model="base").step("export"), [("export", "no-format")]),
        (Pipeline(model="base").export("gguff"), [("export", "unknown-exporter")]),
        (Pipeline(model="base").quantize("int5"), [("quantize", "unknown-scheme")]),
        (Pipeline(model="base").quantize(4), [("quantize", "option-type")]),  # type: ignore[arg-type]
        (Pipeline(model="base").sft().track("bord"), [(None, "unknown-tracker")]),
        (Pipeline(model="base").sft().track("board"), [(None, "missing-option")]),
        (Pipeline(model="base").sft().track("board", url="private"), [(None, "option-value")]),
        (Pipeline(model="base").sft().adapter("lorra"), [(None, "unknown-adapter")]),
        (Pipeline(model="base").sft().lora(r="8"), [(None, "option-type")]),  # type: ignore[arg-type]
        (Pipeline(model="base").sft(adapter=lora(rank=8)), [("sft", "unknown-option")]),
        (Pipeline(model="base").export("gguf", quant="q4"), [("export", "unknown-option")]),
        (Pipeline(model="base").sft(method="frozen").lora(), [("sft", "adapter-unsupported")]),
        (Pipeline(model="base").sft(method="frozen", adapter=None).sft().lora(), []),
        (Pipeline().pretrain(adapter=lora()), [("pretrain", "adapter-pretrain")]),
        (Pipeline().pretrain(input="x"), [("pretrain", "pretrain-input")]),
        (Pipeline(model="base").pretrain(), [("pretrain", "pretrain-with-model")]),
        (Pipeline().pretrain().lora(), [(None, "adapter-unused")]),
        (Pipeline(model="base").step("quantize", scheme="int4", adapter="lora"), [("quantize", "adapter-unused")]),
        (Pipeline(model="base").sft(input="sft"), [("sft", "unknown-input")]),
        (Pipeline(model="base").sft(input="align").align(), [("sft", "unknown-input")]),
        (Pipeline(model="base").sft().align(input="stf"), [("align", "unknown-input")]),
        (Pipeline(model="base").evaluate("mmlu").sft(input="evaluate"), [("sft", "input-without-model")]),
        (Pipeline(model="base").merge(), [("merge", "nothing-to-merge")]),
        (Pipeline(model="base").sft(adapter=None).merge().lora().align(), [("merge", "nothing-to-merge")]),
        (Pipeline(model="base").sft().lora().merge(), []),
        (Pipeline(model="base").quantize("int4").sft(), [("sft", "quantized-training")]),
        (Pipeline(model="base").quantize("int4").sft().lora(), [("sft", "adapter-after-quantize")]),
        (Pipeline(model="base").quantize("int4", method="nf4").sft().qlora(), []),
        (Pipeline(model="base").quantize("int4").quantize("int8"), [("quantize-2", "quantized-twice")]),
        (Pipeline(model="base").sft().quantize("int4").sft(input="sft"), []),
        (Pipeline(model="base").quantize("int4").step("distill"), [("distill", "quantized-training")]),
        (Pipeline(model="base").sft().pretrain(), [("pretrain", "model-lost"), ("pretrain", "pretrain-with-model")]),
        (Pipeline().pretrain(name="a").pretrain(name="b").evaluate("mmlu", input="a"), []),
        (Pipeline(model="base").sft(method="classify"), [("sft", "no-data")]),
        (Pipeline(model="base").evaluate("mmul"), [("evaluate", "unknown-benchmark")]),
        (Pipeline(model="base").evaluate("private"), [("evaluate", "no-benchmark-data")]),
        (
            Pipeline(model="base").evaluate("mmlu", data={"mmul": "."}),
            [("evaluate", "unknown-benchmark-data"), ("evaluate", "no-benchmark-data")],
        ),
        (Pipeline(model="base").evaluate("mmul", data={"mmul": "."}), [("evaluate", "unknown-benchmark")]),
        (Pipeline(model="base").evaluate([]), [("evaluate", "no-benchmarks")]),
        (Pipeline(model="base").align(method="heavy"), [("align", "missing-package")]),
        (Pipeline(model="base").align(method="broken-options"), [("align", "bad-target")]),
        (Pipeline(model="bse").sft(), [(None, "unknown-model")]),
        (Pipeline(model="damaged").sft(), [(None, "model-problem"), (None, "model-problem")]),
        (Pipeline(model=(object(), None)).sft(), [(None, "model-problem"), (None, "model-problem")]),
    ],
)
def test_each_rule(pipeline: Pipeline, expected: list[tuple[str | None, str]], session: Session) -> None:
    assert sorted(errors(pipeline, session), key=str) == sorted(expected, key=str)
    if expected and expected[0][1] not in ("no-steps",):
        with pytest.raises(CheckFailed) as caught:
            pipeline.run(session=session)
        assert all(code in {f["code"] for f in caught.value.details["findings"]} for _, code in expected)


def test_options_in_words(session: Session) -> None:
    line = Pipeline(model="base").sft(
        lr=1e-4, epochs="three", schedule="liner", batch_size=0, limit=1.5, betas=[1], epoch=2, xyzzy="red"
    )
    found = {f.details["option"]: (f.code, f.message, f.fix) for f in check(line, session) if f.level == "error"}
    assert found["lr"] == (
        "unknown-option",
        "There is no option 'lr'. Did you mean learning_rate?",
        "write learning_rate=...",
    )
    assert found["epoch"][1] == "There is no option 'epoch'. Did you mean epochs?"
    assert found["xyzzy"][2].startswith("use one of the options: data, ")
    assert found["epochs"] == (
        "option-type",
        "The option epochs='three' must be a valid number.",
        "epochs is float, > 0",
    )
    assert found["schedule"][0] == "option-value" and found["schedule"][2] == "schedule='linear'"
    assert found["batch_size"][2] == "batch_size is int, >= 1"
    assert found["limit"][0] == "option-type" and found["limit"][2] == "limit is int or None, >= 1"
    assert found["betas"][0] == "option-value" or found["betas"][0] == "missing-option"
    assert len(found) == 8


def test_what_other_libraries_would_convert_is_refused(session: Session) -> None:
    for bad in (
        {"epochs": True},
        {"batch_size": "8"},
        {"batch_size": 8.5},
        {"gradient_checkpointing": 1},
        {"max_length": None},
    ):
        assert errors(Pipeline(model="base").sft(**bad), session), bad  # type: ignore[arg-type]


def test_strict_refuses_embedded_defaults(session: Session) -> None:
    line = Pipeline().sft().evaluate("mmlu")
    notes = [(f.level, f.step, f.code) for f in check(line, session)]
    assert notes == [
        ("note", "sft", "embedded-model"),
        ("note", "sft", "embedded-data"),
        ("note", "evaluate", "embedded-sample"),
    ]
    assert errors(line, session, strict=True) == [(step, code) for _, step, code in notes]
    with pytest.raises(CheckFailed, match="3 errors"):
        line.run(session=session, strict=True)


def test_findings_of_plugins_are_part_of_it(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Critic:
        @hookimpl
        def tunekit_check_plan(self, plan: Any) -> list[Finding]:
            return [
                Finding(
                    level="error", step=plan.steps[-1].name, code="no-friday", message="Not on a Friday.", fix="wait"
                )
            ]

    critical = Session(plugins=[Toy(), Critic()], autoload=False, settings=Settings())
    assert errors(Pipeline(model="base").sft(), critical) == [("sft", "no-friday")]


# ---------------------------------------------------------------- data on disk


def rows(path: Path, *values: Any) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def test_data_is_looked_at(session: Session, tmp_path: Path) -> None:
    good = {"prompt": "a", "completion": "b"}
    file = rows(tmp_path / "train.jsonl", *[good] * 20, {"prompt": "no answer"}, good)
    (found,) = [f for f in check(Pipeline(model="base").sft(data=file), session) if f.level == "error"]
    assert found.step == "sft" and "train.jsonl" in found.message and "21" in found.message
    assert found.details["row"] == 21 and found.details["file"] == file
    assert errors(Pipeline(model="base").sft(data=file, limit=20), session) == []
    assert errors(Pipeline(model="base").sft(data=file, on_bad_row="skip"), session) == []

    (found,) = [
        f for f in check(Pipeline(model="base").sft(data=str(tmp_path / "trian.jsonl")), session) if f.level == "error"
    ]
    assert found.code == "missing-file" and file in found.fix

    (found,) = [f for f in check(Pipeline(model="base").align(data=file), session) if f.level == "error"]
    assert "preference: {prompt, chosen, rejected}" in found.fix


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x80", b"[{", b"[]", b"3"])
def test_unreadable_data(content: bytes, session: Session, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    found = errors(Pipeline(model="base").sft(data=tmp_path / "a.json"), session)
    assert len(found) == 1 and found[0][0] == "sft"


def test_data_of_wrong_options_is_still_looked_for(session: Session, tmp_path: Path) -> None:
    line = Pipeline(model="base").sft(data=tmp_path / "none.json", epochs="x")
    assert errors(line, session) == [("sft", "option-type"), ("sft", "missing-file")]


def test_a_generator_survives_being_checked(session: Session) -> None:
    line = Pipeline(model="base").sft(data=({"prompt": str(n), "completion": "x"} for n in range(5)))
    assert errors(line, session) == []
    step = resolved(line, session).steps[0]
    data = session.resolve_dataset(step.data, accepts=("prompt_completion",), objects=line._objects)
    assert [row["prompt"] for row in data.rows()] == ["0", "1", "2", "3", "4"]


def test_benchmark_folders(session: Session, tmp_path: Path) -> None:
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "rows.csv").touch()
    base = Pipeline(model="base")
    assert errors(base.evaluate("mmlu", data=tmp_path), session) == []
    found = [f for f in check(base.evaluate(["mmlu", "gsm8k"], data=tmp_path), session) if f.level == "error"]
    assert [f.code for f in found] == ["missing-data"] and str(tmp_path / "gsm") in found[0].message
    (found2,) = [f for f in check(base.evaluate("mmlu", data=tmp_path / "mmlu"), session) if f.level == "error"]
    assert f'data="{tmp_path}"' in found2.fix
    (found3,) = [f for f in check(base.evaluate("mmlu", data=str(tmp_path) + "x"), session) if f.level == "error"]
    assert str(tmp_path) in found3.fix
    assert errors(base.evaluate("mmlu", data="hub"), session) == []
    assert errors(base.evaluate("mmlu", data={"mmlu": str(tmp_path / "none")}), session) == [
        ("evaluate", "missing-data")
    ]


def test_a_hub_id_is_not_fetched(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("the network was touched"))
    assert errors(Pipeline(model="base").sft(data="owner/name"), session) == []


def test_analyze_gives_both(session: Session) -> None:
    plan, findings = analyze(Pipeline(model="base").sft("x.json").plan, session)
    assert plan is not None and findings == []
    plan, findings = analyze(Pipeline(model="base").sft(epochs=0).plan, session)
    assert plan is None and [f.code for f in findings] == ["option-value"]
    with pytest.raises(CheckFailed, match="one error"):
        resolve(Pipeline(model="base").sft(epochs=0).plan, session)
    assert check_plan(Pipeline(model="base").sft().plan, session=session)[0] is not None


def test_without_any_plugin() -> None:
    bare = Session(autoload=False, settings=Settings())
    found = Pipeline().sft().check(bare)
    assert {f.code for f in found if f.level == "error"} == {"unknown-method", "unknown-model"}
    assert "pip install 'tunekit[standard]'" in {f.fix for f in found}


# ---------------------------------------------------------------- with the installed plugins, in a fresh interpreter


def fresh(code: str, cwd: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_six_planted_errors_at_once_without_torch(tmp_path: Path) -> None:
    rows(tmp_path / "alpaca.jsonl", {"prompt": "a", "completion": "b"})
    result = fresh(
        """
        import json, sys, time
        start = time.process_time()
        from tunekit import Pipeline
        plan = (
            Pipeline()
            .align(method="dpoo")
            .sft(data="alpaca.jsonl", epoch=3)
            .sft(data="alpaca.jsonl", batch_size="eight")
            .sft(data="alpacca.jsonl")
            .quantize("int4")
            .sft(data="alpaca.jsonl", name="after")
            .evaluate(["mmlu", "gsm8"])
        )
        findings = plan.check()
        seconds = time.process_time() - start
        heavy = {"torch", "transformers", "datasets", "trl", "peft", "numpy", "gptqmodel"} & set(sys.modules)
        errors = [[f.step, f.code, f.message, f.fix] for f in findings if f.level == "error"]
        print(json.dumps([errors, seconds, sorted(heavy)]))
        """,
        tmp_path,
    )
    found, seconds, heavy = result
    assert [(step, code) for step, code, _, _ in found] == [
        ("align", "unknown-method"),
        ("sft", "unknown-option"),
        ("sft-2", "option-type"),
        ("sft-3", "missing-file"),
        ("after", "quantized-training"),
        ("evaluate", "unknown-benchmark"),
    ]
    texts = {code: f"{message} {fix}" for _, code, message, fix in found}
    assert "Did you mean dpo?" in texts["unknown-method"]
    assert "Did you mean epochs?" in texts["unknown-option"]
    assert "batch_size='eight' must be a valid integer" in texts["option-type"]
    assert "alpaca.jsonl" in texts["missing-file"]
    assert "put quantize after after" in texts["quantized-training"]
    assert "Did you mean gsm8k" in texts["unknown-benchmark"]
    assert heavy == []
    assert seconds < 1.5


def test_the_line_is_in_order() -> None:
    line = Pipeline().pretrain().sft().align(method="dpo").lora(r=8).quantize("int4").evaluate(["mmlu", "gsm8k"])
    findings = line.check()
    assert {f.level for f in findings} == {"note"}
    assert [(f.step, f.code) for f in findings] == [
        ("pretrain", "embedded-data"),
        ("sft", "embedded-data"),
        ("align", "embedded-data"),
        ("evaluate", "embedded-sample"),
    ]


def test_every_component_of_the_installed_plugins_is_sound() -> None:
    session = default_session()
    own = [e for e in session.components() if e.component.provider.startswith("tunekit")]
    assert {e.component.name for e in own} >= {"causal", "sft", "dpo", "lora", "gptq", "mmlu", "gsm8k", "evaluate"}
    for entry in own:
        assert session.unmet(entry.spec) == [], entry
        model = session.options_model(entry.component)
        assert model is None or model.model_config["extra"] == "forbid"
    assert adapter("lora").name == "lora"
