"""LoRA and its variants against the suite that every adapter has to pass."""

from __future__ import annotations

from tunekit.testing import AdapterSuite


class TestLora(AdapterSuite):
    name = "tunekit-peft/lora"
    bad_options = ({"dropout": 1.0}, {"targets": []}, {"alpha": 0}, {"init": "loft"})


class TestDora(AdapterSuite):
    name = "tunekit-peft/lora"
    options = {"dora": True, "r": 4}


class TestRankStabilised(AdapterSuite):
    name = "tunekit-peft/lora"
    options = {"rslora": True, "init": "gaussian", "targets": ["q_proj", "v_proj"]}
    learning_rate = 3e-2
