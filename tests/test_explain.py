"""What explain prints, word for word. Set TUNEKIT_UPDATE_GOLDEN=1 to write the files anew, then read the difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunekit import CheckFailed, OptionsError, Pipeline, lora

GOLDEN = Path(__file__).parent / "golden"

LINE = Pipeline().pretrain().sft().align(method="dpo").lora(r=8).quantize("int4").evaluate(["mmlu", "gsm8k"])
REAL = (
    Pipeline(model="smollm2-135m-instruct")
    .sft(data="alpaca.json", limit=64, epochs=1, learning_rate=2e-4, max_length=512, batch_size=8)
    .align(method="dpo", data="pairs.json", beta=0.1)
    .lora(r=8, alpha=16, dropout=0.0, targets="all-linear")
    .quantize("int4", method="gptq", group_size=128)
    .evaluate(["mmlu", "gsm8k"], data="benchmarks/", limit=100)
)
BRANCHED = (
    Pipeline(model="models/base")
    .post_pretrain(data="notes.txt", name="domain")
    .evaluate("mmlu", data="benchmarks", name="before")
    .sft(data=[{"prompt": "a", "completion": "b"}] * 3, adapter=None)
    .sft(data="a.json", input="domain", adapter=lora(r=4, targets=["q_proj", "v_proj"]))
    .evaluate("mmlu", data="benchmarks", input="sft")
    .lora(r=16)
    .seed(7)
)


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("TUNEKIT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", ["text", "tree"])
@pytest.mark.parametrize(("name", "pipeline"), [("line", LINE), ("real", REAL), ("branched", BRANCHED)])
def test_golden(name: str, pipeline: Pipeline, format: str) -> None:
    compare(f"explain-{name}.{format}.txt", pipeline.explain(format))


def test_each_step_of_the_line_says_what_it_does() -> None:
    lines = LINE.explain().splitlines()
    steps = {words[1]: line for line in lines if (words := line.split()) and words[0].isdigit()}
    assert "random weights" in steps["pretrain"] and " full " in steps["pretrain"]
    for step, source, component in (
        ("sft", "pretrain", "tunekit-trl/sft 0.1.0"),
        ("align", "sft", "tunekit-trl/dpo 0.1.0"),
    ):
        assert f" {source} " in steps[step] and "lora r=8" in steps[step] and component in steps[step]
    assert (
        " align " in steps["quantize"]
        and "tunekit-gptq/gptq 0.1.0" in steps["quantize"]
        and "int4" in steps["quantize"]
    )
    assert " quantize " in steps["evaluate"] and "mmlu, gsm8k" in steps["evaluate"]


def test_the_json_is_the_lock() -> None:
    data = json.loads(LINE.explain("json"))
    assert [step["name"] for step in data["steps"]] == ["pretrain", "sft", "align", "quantize", "evaluate"]
    assert data["fingerprint"] == LINE.plan.fingerprint()
    sft = data["steps"][1]
    assert sft["component"]["id"] == "tunekit-trl/sft" and sft["adapter"]["id"] == "tunekit-peft/lora"
    assert sft["trains"] == "lora r=8" and sft["options"]["learning_rate"] == 2e-4


def test_what_cannot_be_explained() -> None:
    with pytest.raises(CheckFailed) as caught:
        Pipeline().sft(epoch=1).align(method="dpoo").explain()
    assert "Did you mean epochs?" in str(caught.value) and "Did you mean dpo?" in str(caught.value)
    with pytest.raises(OptionsError) as wrong:
        LINE.explain("jsn")
    assert wrong.value.suggestions == ("json",)
    assert Pipeline().explain().endswith("no steps\n")


def test_explaining_touches_no_disk_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from tunekit import Pipeline, default_session\n"
        "default_session().components()\n"
        "def hook(event, args):\n"
        "    if event == 'open' and isinstance(args[0], str) and not args[0].endswith(('.py', '.pyc', '.so')):\n"
        "        raise SystemExit(f'opened {args[0]}')\n"
        "import pydantic, tunekit.explain, tunekit_trl.options, tunekit_peft.options\n"
        "sys.addaudithook(hook)\n"
        "Pipeline(model='nowhere/here').sft(data='none.json').lora().evaluate('mmlu', data='nowhere').explain()\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
