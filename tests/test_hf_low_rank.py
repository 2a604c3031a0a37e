"""LoRA layers in fewer passes: the same numbers as PEFT's own, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("peft")

import torch
from peft import LoraConfig, get_peft_model

from tunekit.plugins.hf.low_rank import fused_low_rank
from tunekit.testing import tiny_model


def attached(**options: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    return model.train()


def gradients(model: Any) -> tuple[Any, list[Any]]:
    model.zero_grad()
    logits = model(input_ids=torch.arange(5, 25)[None]).logits
    logits.square().mean().backward()
    return logits.detach(), [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def test_outputs_and_gradients_equal_those_of_peft() -> None:
    model = attached()
    before = [sorted(vars(module)) for module in model.modules()]
    expected, slopes = gradients(model)
    with fused_low_rank(model) as taken:
        assert taken == 14
        made, found = gradients(model)
        with model.disable_adapter():
            plain = model(input_ids=torch.arange(5, 25)[None]).logits
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(found, slopes, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(plain, tiny_model()(input_ids=torch.arange(5, 25)[None]).logits)
    assert [sorted(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}], ids=["dropout", "dora"])
def test_layers_that_do_more_are_left_alone(options: dict[str, Any]) -> None:
    with fused_low_rank(attached(**options)) as taken:
        assert taken == 0
