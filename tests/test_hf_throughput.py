"""Operations per token against torch's own counter, and the machine's peak."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from tunekit.plugins import hf  # noqa: E402

LENGTH = 64


def model(kind: str = "llama") -> Any:
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=300, n_positions=128)
        config._attn_implementation = "eager"
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        tie_word_embeddings=kind == "tied",
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config)


def counted(made: Any) -> float:
    ids = torch.arange(LENGTH)[None]
    with FlopCounterMode(display=False) as counter:
        made(input_ids=ids, use_cache=False).logits.sum().backward()
    return counter.get_total_flops() / LENGTH


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_full_training_is_what_torch_counts(kind: str) -> None:
    made = model(kind)
    assert hf.flops_per_token(made, LENGTH, causal=False) == pytest.approx(counted(made), rel=0.01)


def test_frozen_layers_cost_their_input_gradient_only() -> None:
    made = model()
    for name, parameter in made.named_parameters():
        parameter.requires_grad = "layers.0.self_attn.q_proj" in name
    assert hf.flops_per_token(made, LENGTH, causal=False) == pytest.approx(counted(made), rel=0.05)
    for name, parameter in made.named_parameters():
        parameter.requires_grad = "layers.2.mlp" in name
    # Two layers below have no backward pass at all. Beside the first trained matrix stands one with the same input.
    beside = 2 * 64 * 192
    assert hf.flops_per_token(made, LENGTH, causal=False) - beside == pytest.approx(counted(made) + 8 * LENGTH * 64)


def test_logits_count_by_their_share_and_causal_attention_half() -> None:
    made = model()
    head = 300 * 64
    full, half = (hf.flops_per_token(made, LENGTH, targets=share) for share in (1.0, 0.5))
    assert full - half == 6 * head / 2
    attention = 4 * LENGTH * 64 * 3 * 3
    assert hf.flops_per_token(made, LENGTH, causal=False) - full == attention / 2


def test_the_peak_is_measured_once() -> None:
    state = torch.random.get_rng_state()
    peak = hf.measured_peak(torch.device("cpu"), torch.float32)
    assert 1e8 < peak < 1e14
    assert hf.measured_peak("cpu", torch.float32) == peak
    assert torch.equal(torch.random.get_rng_state(), state)
    numbers = hf.speed_metrics(model(), seconds=2.0, tokens=1000, targets=800, length=32)
    assert numbers["tokens_per_second"] == 400 and numbers["input_tokens_per_second"] == 500
    assert numbers["mfu"] == pytest.approx(numbers["flops_per_token"] * 500 / peak, abs=1e-4)
