"""A training step killed with SIGKILL goes on, on exactly the same losses."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.plugins import LoadedModel
from tunekit_peft.options import LoraOptions

_DRIVER = Path(__file__).with_name("trl_driver.py")
_spec = importlib.util.spec_from_file_location("trl_driver", _DRIVER)
assert _spec is not None and _spec.loader is not None
driver: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(driver)


def start(spec: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(_DRIVER), json.dumps(spec), str(folder)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("kind", "lora"), [("sft", True), ("sft", False), ("dpo", True)])
def test_killed_training_continues_exactly(kind: str, lora: bool, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        events = driver.Events()
        loaded = LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer())
        options = LoraOptions(dropout=0.1) if lora else None
        driver.train(kind, tmp_path / "whole", loaded, options, events)
    finally:
        torch.set_num_threads(threads)

    killed = tmp_path / "killed"
    killed.mkdir()
    process = start({"kind": kind, "lora": lora, "hang_at": 11}, killed)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "hanging\n":
            break
    else:
        pytest.fail("the training ended before it could be killed")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    first = [json.loads(line) for line in (killed / "losses.jsonl").read_text().splitlines()]
    assert [step for step, _ in first] == list(range(1, 12))
    reference = killed / "step" / "reference_logps.json"
    before = reference.read_bytes() if kind == "dpo" else b""

    again = start({"kind": kind, "lora": lora}, killed)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    assert output.splitlines()[-1] == "done 8"
    rest = [json.loads(line) for line in (killed / "losses.jsonl").read_text().splitlines()][len(first) :]
    assert [step for step, _ in rest] == list(range(9, 25))
    losses = [loss for _, loss in first[:8]] + [loss for _, loss in rest]
    assert losses == events.losses
    assert [loss for _, loss in first] == events.losses[:11]
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed/step")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    if kind == "dpo":
        assert reference.read_bytes() == before
