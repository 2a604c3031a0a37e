"""Models with a body in half precision and trained parts in float32 are called outside of a training, too."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from tunekit.errors import StepError
from tunekit.plugins import hf
from tunekit.plugins.hf.finishing import _logits
from tunekit.plugins.hf.isolation import tolerance
from tunekit.testing import tiny_model, tiny_tokenizer

pytest.importorskip("peft")

from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

SIZES = {"vocab_size": 288, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG = LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, num_labels=1, pad_token_id=2)
GROUPS = [
    hf.PromptGroup([1, 5, 6, 7, 8, 9], [[10, 11, 3], [12, 13, 14, 15, 16, 17, 3]]),
    hf.PromptGroup([1, 20, 21], [[22, 23, 24, 25, 26]]),
]


def adapted(model: Any, head: str) -> Any:
    """The model in bfloat16, with LoRA and a head that is trained in full, both in float32."""
    torch.manual_seed(1)
    with torch.no_grad():
        getattr(model, head).weight.normal_(std=0.5)
    config = LoraConfig(
        r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"], modules_to_save=[head], lora_alpha=1
    )
    made = get_peft_model(model.to(torch.bfloat16), config)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16, torch.float32}
    with pytest.raises(RuntimeError, match="dtype"):
        made(input_ids=torch.tensor([[1, 5, 6]]))
    return made.eval()


def test_scores_of_a_float32_head_on_a_bfloat16_body() -> None:
    torch.manual_seed(0)
    model = adapted(AutoModelForSequenceClassification.from_config(CONFIG), "score")
    scorer = hf.ScoreModel(model, GROUPS)
    assert scorer.layout.kind == "segments" and scorer.shares
    found = scorer.scores(GROUPS)
    with scorer.attending():
        scorer(model, GROUPS).sum().backward()
    assert float(model.get_base_model().score.modules_to_save["default"].weight.grad.abs().max()) > 0.1
    made = _logits(model, [[*prompt, *completion] for prompt, completions in GROUPS for completion in completions])
    with torch.no_grad():
        model.float()
        expected = hf.ScoreModel(model, GROUPS).scores(GROUPS)
    limit = tolerance(torch.bfloat16) * float(expected.abs().max())
    assert float(expected.std()) > 2 * limit
    torch.testing.assert_close(found, expected, atol=limit, rtol=0)
    torch.testing.assert_close(torch.stack(made), expected, atol=limit, rtol=0)


def test_completions_of_a_float32_output_layer_on_a_bfloat16_body() -> None:
    torch.manual_seed(0)
    model = adapted(LlamaForCausalLM(CONFIG), "lm_head")
    scorer = hf.CompletionModel(model, GROUPS)
    assert scorer.layout.kind == "segments" and scorer.shares
    with scorer.attending(), torch.no_grad():
        found = scorer(model, GROUPS).means()
    written = hf.sample(model, tiny_tokenizer(None), [[5, 6, 7], [8, 9]], max_new_tokens=4, temperature=0, stop_ids=[])
    assert [len(one[0].ids) for one in written] == [4, 4]
    model.float()
    scorer = hf.CompletionModel(model, GROUPS)
    with scorer.attending(), torch.no_grad():
        torch.testing.assert_close(found, scorer(model, GROUPS).means(), atol=0.1, rtol=0)


def test_weights_of_one_type_are_computed_with_as_they_are() -> None:
    model = tiny_model(seed=3)
    assert isinstance(hf.computing(model), contextlib.nullcontext)
    assert isinstance(hf.computing(model.to(torch.bfloat16)), contextlib.nullcontext)
    model.lm_head.float()
    with hf.computing(model):
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16 and torch.is_autocast_enabled("cpu")
    # What transformers keeps in float32 by itself is no reason.
    model._keep_in_fp32_modules_strict = {"lm_head", "embed_tokens"}
    assert isinstance(hf.computing(model), contextlib.nullcontext)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_adapters_with_tokens_of_their_own_are_refused(config: Any) -> None:
    """Positions behind virtual tokens are others, and rows that share a sequence would have them once."""
    model = get_peft_model(tiny_model(seed=3), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for puts in (hf.CompletionModel, hf.ScoreModel):
        with pytest.raises(StepError) as caught:
            puts(model, GROUPS)
        assert caught.value.code == "virtual-tokens" and "TUNING" in str(caught.value.found)
