"""Plan files: what goes out comes back, and what is wrong is said with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit import Pipeline, PipelineError, lora
from tunekit.errors import ArtifactError

TRICKY = [
    "yes",
    "no",
    "on",
    "1e-4",
    "010",
    "0x1F",
    "1_000",
    "12:30",
    "2024-01-01",
    "~",
    "null",
    "",
    " a ",
    ":x",
    "- y",
    "<<",
    "1",
    "1.",
    ".5",
    "true",
    "TRUE",
    ".inf",
    "#",
    "a: b",
    "é\n\tz",
    "'",
    '"',
    "&a",
    "*b",
    "!c",
    "=",
    "\u2028",
]


def full() -> Pipeline:
    return (
        Pipeline(model="m")
        .pretrain()
        .sft(data=[{"prompt": text, "completion": text} for text in TRICKY], learning_rate=1e-4, epochs=3, name="first")
        .sft(adapter=lora(r=2, targets=["q"]), input="first")
        .align(method="acme/dpo", adapter=None, beta=0.1, on=True, none=None)
        .lora(r=8, alpha=16.0)
        .quantize("int4", method="gptq")
        .evaluate(["mmlu", "gsm8k"], data={"mmlu": "a", "gsm8k": "hub"})
        .export("gguf")
        .step("acme/distill", teacher="x", nested={"a": [1, {"b": 2.5e-30}]})
        .step("x", format="y", lora="option of a step that is called lora")
        .track("board", url="u")
        .seed(7)
    )


def test_round_trips(tmp_path: Path) -> None:
    pipeline = full()
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
    assert Pipeline.from_json(pipeline.to_json()) == pipeline
    assert Pipeline.from_yaml(pipeline.to_json()) == pipeline
    assert Pipeline.from_plan(pipeline.plan) == pipeline
    for name, write, read in (
        ("p.yaml", pipeline.to_yaml, Pipeline.from_yaml),
        ("p.json", pipeline.to_json, Pipeline.from_json),
    ):
        text = write(tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
        assert read(tmp_path / name) == read(str(tmp_path / name)) == pipeline
        assert Pipeline.from_yaml(tmp_path / name) == pipeline
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "p.yaml"]


@pytest.mark.parametrize("text", TRICKY)
def test_text_stays_text(text: str) -> None:
    pipeline = Pipeline(model=text or "m").sft(x=text, y={"k": [text]})
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline


@pytest.mark.parametrize("number", [0, -1, 10**20, 0.1, 1e-4, 1e300, 5e-324, -0.0, 123456789.123])
def test_numbers_stay_numbers(number: float) -> None:
    pipeline = Pipeline().sft(x=number)
    again = Pipeline.from_yaml(pipeline.to_yaml())
    assert again == pipeline and type(again.plan.steps[0].options["x"]) is type(number)


def test_short_forms() -> None:
    text = """
        model: m
        lora: {r: 8}
        track: board
        steps:
          - pretrain
          - sft: {data: a.json, epochs: 1, learning_rate: 2e-4, adapter: dora}
          - align:
              method: dpo
              lora: {r: 4}
          - sft:
          - quantize: int4
          - evaluate: mmlu
          - evaluate: {benchmarks: gsm8k, input: align}
          - export: gguf
    """
    assert Pipeline.from_yaml(text) == (
        Pipeline(model="m")
        .lora(r=8)
        .track("board")
        .pretrain()
        .sft(data="a.json", epochs=1, learning_rate=2e-4, adapter="dora")
        .align(method="dpo", adapter=lora(r=4))
        .sft()
        .quantize("int4")
        .evaluate("mmlu")
        .evaluate("gsm8k", input="align")
        .export("gguf")
    )


def test_yaml_reads_by_the_rules_of_1_2() -> None:
    options = (
        Pipeline.from_yaml("steps: [{sft: {a: no, b: 1e3, c: 010, d: true, e: 1:30, f: 2024-01-01, g: ~}}]")
        .plan.steps[0]
        .options
    )
    assert options == {"a": "no", "b": 1000.0, "c": 10, "d": True, "e": "1:30", "f": "2024-01-01", "g": None}


def test_anchors_and_merges() -> None:
    text = "steps:\n- sft: &s {data: a, epochs: 1}\n- sft: {<<: *s, epochs: 2}\n"
    assert Pipeline.from_yaml(text) == Pipeline().sft("a", epochs=1).sft("a", epochs=2)


def test_every_problem_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "schema: 1\n"
        "mdel: x\n"
        "seed: -1\n"
        "steps:\n"
        "  - sft: {data: a, epochs: 1, epochs: 2}\n"
        "  - kind: sft\n"
        "    opions: {}\n"
        "  - quantize: int4\n"
        "    bits: 4\n"
        "  - sft:\n"
        "      adapter: {r: 1}\n"
        "      name: a/b\n"
        "      x: .nan\n"
    )
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_yaml(path)
    problems = caught.value.details["problems"]
    assert [item["line"] for item in problems] == [2, 3, 5, 7, 8, 11, 12, 13]
    text = str(caught.value)
    assert f"{path}:2: mdel: unknown key; did you mean 'model'?" in text
    assert f"{path}:5: the key 'epochs' stands twice" in text
    assert "did you mean 'options'" in text and "found quantize, bits" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps: [\n", "line 2"),
        ("steps: 3\n", "is a list"),
        ("- a\n- b\n", "a plan is a mapping"),
        ("\n", "a plan is a mapping"),
        ("schema: 2\nsteps: []\n", "newer tunekit"),
        ("schema: x\nsteps: []\n", "reads schema 1"),
        ("steps: [{kind: 3}]\n", "no step kind"),
        ("steps: [{sft: 3}]\n", "mapping of options"),
        ("steps: [3]\n", "a step is a name"),
        ("model: [a]\n", "is text"),
        ("model: object:x\n", "in memory"),
        ("lora: {}\nqlora: {}\n", "set twice"),
        ("steps: [{sft: {name: a}}, {sft: {name: a}}]\n", "two steps are called"),
        ("steps: [{sft: !!python/object/apply:os.system [ls]}]\n", "mapping of options"),
        ("steps: [{sft: {x: !!python/name:os.system }}]\n", "has the type"),
        ("steps: [{sft: {x: !!binary aGk=}}]\n", "has the type"),
        ("a: &a [*a]\n", "steps"),
        ("track: [{url: x}]\n", "with a name"),
        ("steps: [{kind: sft, options: {name: x}}]\n", "belongs beside options"),
    ],
)
def test_wrong_files(text: str, says: str) -> None:
    if text.startswith("a: &a"):
        with pytest.raises(PipelineError):
            Pipeline.from_yaml(text)
        return
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_yaml(text)
    assert says in str(caught.value)


def test_a_yaml_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(PipelineError, match="too large"):
        Pipeline.from_yaml("\n".join(lines) + "\n")


def test_json_problems() -> None:
    with pytest.raises(PipelineError, match="stands twice"):
        Pipeline.from_json('{"steps": [], "steps": []}')
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_json('{"steps": [\n}')
    assert caught.value.details["problems"][0]["line"] == 2
    assert json.loads(Pipeline().sft().to_json()) == Pipeline().sft().plan.to_data()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        Pipeline.from_yaml(tmp_path / "plan.yaml")
    with pytest.raises(ArtifactError) as caught:
        Pipeline.from_yaml(tmp_path / "plam.yaml")
    assert caught.value.suggestions == (str(tmp_path / "plan.yaml"),)
    with pytest.raises(ArtifactError):
        Pipeline().to_yaml(tmp_path / "no" / "folder.yaml")
