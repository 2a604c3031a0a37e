"""merge() after a step that trained through an adapter, in a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tunekit import Pipeline

ROWS = [{"prompt": f"{name} had a", "completion": " red ball."} for name in ("Tim", "Lily", "Tom", "Sue")]


def test_merge_step_hands_on_the_merged_model(stories260k: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    line = Pipeline(model=str(stories260k)).sft(data=ROWS, max_steps=4, learning_rate=1e-2).lora(r=4).merge()
    assert [finding for finding in line.check() if finding.level == "error"] == []
    result = line.run(workdir=tmp_path / "run", seed=0, on_event=seen.append)
    merged, sft = result.step("merge"), result.step("sft")
    assert merged.artifact.model.weights_hash == sft.artifact.model.weights_hash
    assert merged.artifact.details["merge_proof"] == sft.artifact.details["merge_proof"]
    assert any(getattr(event, "code", "") == "already-merged" for event in seen)
    left = AutoModelForCausalLM.from_pretrained(merged.model.path, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    assert any(not torch.equal(a, b) for a, b in zip(left.parameters(), base.parameters(), strict=True))


def test_merge_without_an_adapter_is_refused_before_the_run(stories260k: Path) -> None:
    line = Pipeline(model=str(stories260k)).sft(data=ROWS, max_steps=4).merge()
    assert "nothing-to-merge" in [finding.code for finding in line.check()]
