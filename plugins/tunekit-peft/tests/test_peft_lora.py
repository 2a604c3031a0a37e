"""LoRA beyond what the suite of all adapters asks: which weights, exact numbers, clear refusals."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tunekit.errors import OptionsError, StepError
from tunekit_peft.adapter import LoraAdapter, linear_names
from tunekit_peft.options import LoraOptions
from tunekit_peft.plugin import tunekit_adapters


def llama(*, tied: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


def probe(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 3 + 24).reshape(2, 12) % 97
    with torch.no_grad():
        return model(input_ids=ids).logits


def train(model: Any, steps: int = 6, lr: float = 5e-3) -> list[float]:
    ids = (torch.arange(60).reshape(4, 15) * 7) % 97
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def test_what_is_trained_saved_and_changed(tmp_path: Path) -> None:
    base = llama()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    adapter = LoraAdapter(LoraOptions(dropout=0.1))
    model = adapter.attach(base, seed=1)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert not any("lm_head" in name or "embed" in name for name in trainable)
    train(model)
    adapter.save(model, tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    merged = adapter.merge(model)
    assert merged is base and all(p.requires_grad for p in merged.parameters())
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed and all("_proj" in name for name in changed)

    # A second adapter goes onto the merged model as onto any other.
    before = probe(merged)
    second = LoraAdapter(LoraOptions(r=2)).attach(merged, seed=2)
    torch.testing.assert_close(probe(second.eval()), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_merged_as_float32_rounded_once(dtype: torch.dtype) -> None:
    base = llama(dtype=dtype)
    adapter = LoraAdapter(LoraOptions())
    model = adapter.attach(base, seed=0)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    a, b = (getattr(layer, name)["default"].weight.detach() for name in ("lora_A", "lora_B"))
    expected = (layer.base_layer.weight.float() + 2.0 * (b @ a)).to(dtype)  # alpha / r is 2
    merged = adapter.merge(model)
    assert {p.dtype for p in merged.parameters()} == {dtype}
    assert torch.equal(merged.model.layers[1].mlp.up_proj.weight, expected)


def test_a_merge_beyond_the_range_of_float16_is_refused() -> None:
    adapter = LoraAdapter(LoraOptions())
    model = adapter.attach(llama(dtype=torch.float16), seed=0)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(1e6)
    with pytest.raises(StepError) as caught:
        adapter.merge(model)
    assert caught.value.code == "merge-not-finite"


def test_targets_on_a_model_with_conv1d_layers() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=32, n_embd=32, n_layer=1, n_head=2)).eval()
    before = probe(model)
    adapter = LoraAdapter(LoraOptions(targets=["c_attn"]))
    attached = adapter.attach(model, seed=0)
    train(attached)
    trained = probe(attached)
    merged = adapter.merge(attached)
    torch.testing.assert_close(probe(merged), trained, atol=1e-5, rtol=0)
    assert (trained - before).abs().max() > 1e-3


@pytest.mark.parametrize("targets", [["q_prj"], ["q_proj", "q_prj"]])
def test_wrong_target_lists_the_names_and_the_nearest(targets: list[str]) -> None:
    model = llama()
    with pytest.raises(OptionsError) as caught:
        LoraAdapter(LoraOptions(targets=targets)).attach(model, seed=0)
    error = caught.value
    assert error.code == "lora-targets"
    assert error.suggestions[0] == "q_proj"
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert name in error.found
    assert not any("lora" in name for name, _ in model.named_modules())


def test_targets_that_are_no_linear_layer_or_are_tied_are_refused() -> None:
    with pytest.raises(OptionsError, match="embed_tokens"):
        LoraAdapter(LoraOptions(targets=["embed_tokens"])).attach(llama(), seed=0)
    with pytest.raises(OptionsError, match="shared with the input embeddings"):
        LoraAdapter(LoraOptions(targets=["lm_head"])).attach(llama(tied=True), seed=0)
    assert "lm_head" in linear_names(llama(tied=False))


def test_second_adapter_and_quantized_models_are_refused() -> None:
    adapter = LoraAdapter(LoraOptions())
    attached = adapter.attach(llama(), seed=0)
    with pytest.raises(StepError) as twice:
        adapter.attach(attached, seed=0)
    assert twice.value.code == "adapter-twice"
    with pytest.raises(StepError) as twice:
        adapter.attach(attached.get_base_model(), seed=0)
    assert twice.value.code == "adapter-twice"

    quantized = llama()
    quantized.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(StepError) as refused:
        adapter.attach(quantized, seed=0)
    assert refused.value.code == "adapter-on-quantized"
    assert "before quantize" in refused.value.fix


def test_merge_and_save_want_a_model_with_an_adapter(tmp_path: Path) -> None:
    adapter = LoraAdapter(LoraOptions())
    for use in (adapter.merge, adapter.detached, lambda model: adapter.save(model, tmp_path)):
        with pytest.raises(StepError) as caught:
            use(llama())
        assert caught.value.code == "adapter-missing"


def test_weights_that_are_not_finite_are_not_merged() -> None:
    adapter = LoraAdapter(LoraOptions())
    model = adapter.attach(llama(), seed=0)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(StepError) as caught:
        adapter.merge(model)
    assert caught.value.code == "merge-not-finite"


def test_saved_config_names_the_base_only_while_it_is_the_base(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapter = LoraAdapter(LoraOptions())
    model = adapter.attach(base, seed=0)
    train(model, steps=1)
    adapter.save(model, tmp_path / "first")
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["r"] == 8 and config["lora_alpha"] == 16

    model = adapter.attach(adapter.merge(model), seed=1)
    adapter.save(model, tmp_path / "second")
    config = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert not config["base_model_name_or_path"]


def test_options() -> None:
    assert LoraOptions(r=16).resolve(adapter="lora").alpha == 32
    assert LoraOptions(r=16, alpha=8).resolve(adapter="lora").alpha == 8
    assert LoraOptions(targets="q_proj").targets == ["q_proj"]
    assert LoraOptions.model_validate({"targets": ("q_proj", "v_proj")}).targets == ["q_proj", "v_proj"]
    for wrong in ({"r": 0}, {"r": "8"}, {"dropout": 1.0}, {"targets": []}, {"rank": 8}, {"init": "loft"}, {"alpha": 0}):
        with pytest.raises(ValidationError):
            LoraOptions.model_validate(wrong)
    (spec,) = tunekit_adapters()
    assert spec.label.format(name=spec.name, **LoraOptions(r=4).model_dump()) == "lora r=4"


def test_checkpoint_saving_asks_no_hub_and_warnings_stay_local(tmp_path: Path) -> None:
    code = f"""
        import socket, warnings
        def refuse(*a, **k):
            raise AssertionError("network")
        socket.socket.connect = refuse
        socket.getaddrinfo = refuse
        from transformers import LlamaConfig, LlamaForCausalLM
        from tunekit_peft.adapter import LoraAdapter
        from tunekit_peft.options import LoraOptions
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))
        model.name_or_path = "acme/some-model"
        filters = list(warnings.filters)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            adapter = LoraAdapter(LoraOptions())
            attached = adapter.attach(model, seed=0)
            attached.save_pretrained({str(tmp_path / "checkpoint")!r})
            adapter.save(attached, {str(tmp_path / "adapter")!r})
            adapter.merge(attached)
        assert not [w for w in seen if issubclass(w.category, FutureWarning)], seen
        assert warnings.filters == filters
        import sys
        assert "gptqmodel" not in sys.modules and "bitsandbytes" not in sys.modules
        print("done")
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert "Warning" not in done.stderr


def test_deep_copy_of_the_merged_model_is_independent() -> None:
    adapter = LoraAdapter(LoraOptions())
    model = adapter.attach(llama(), seed=0)
    train(model)
    merged = adapter.merge(model)
    twin = copy.deepcopy(merged)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert probe(twin).abs().max() > 0


@pytest.mark.parametrize("ties", [True, False], ids=["tied", "untied"])
def test_embeddings_of_new_tokens_are_trained_and_merged(ties: bool, tmp_path: Path) -> None:
    """T19: LoRA leaves embeddings alone; without this, added tokens would keep their start values for ever."""
    from tunekit.testing import tiny_model

    model = tiny_model(vocabulary=64, tied=ties)
    model.config.tunekit_new_tokens = [60, 4]
    table, head = model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()
    adapter = LoraAdapter(LoraOptions(r=2))
    attached = adapter.attach(model, seed=0)
    ids = torch.tensor([[1, 60, 2, 61, 3, 62, 63, 5]])
    trained = [parameter for parameter in attached.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        attached(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    with torch.no_grad():
        wanted = attached(input_ids=ids).logits
    adapter.save(attached, tmp_path / "adapter")
    merged = adapter.merge(attached)
    new_table, new_head = merged.get_input_embeddings().weight, merged.lm_head.weight
    assert (new_head is new_table) is ties
    assert type(merged.get_input_embeddings()) is torch.nn.Embedding
    assert torch.equal(new_table[:60], table[:60])
    assert torch.equal(new_head[:60], head[:60])
    assert not torch.isclose(new_table[60:], table[60:]).all(dim=1).any(), "every new row moved"
    assert not torch.isclose(new_head[60:], head[60:]).all(dim=1).any()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)
    from transformers import AutoModelForCausalLM

    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_new_tokens_can_be_left_alone() -> None:
    from tunekit.testing import tiny_model

    model = tiny_model(vocabulary=64)
    model.config.tunekit_new_tokens = [60, 4]
    attached = LoraAdapter(LoraOptions(r=2, train_new_tokens=False)).attach(model, seed=0)
    assert not [name for name, parameter in attached.named_parameters() if parameter.requires_grad and "token" in name]
