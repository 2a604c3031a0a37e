"""PPO of models with experts, and of passes in half precision: the reference is computed as the policy is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.plugins import LoadedModel, hf
from tunekit.testing import tiny_tokenizer
from tunekit.testing.beside import beside
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions
from tunekit_ppo.actor_critic import ActorCritic
from tunekit_ppo.ppo import PpoComponent
from tunekit_ppo.trainer import PpoTrainer

driver = beside(__file__, "ppo_driver")

SMALL: dict[str, Any] = {
    "rollout_size": 8,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "ppo_epochs": 1,
    "max_new_tokens": 6,
    "max_length": 64,
    "max_steps": 2,
    "learning_rate": 3e-3,
    "samples": 0,
}


def score(prompts: Any, completions: Any, *, completion_ids: Any, **columns: Any) -> list[float]:
    return [sum(token % 8 for token in ids) / len(ids) for ids in completion_ids]


def mixtral(factor: float) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        vocab_size=288,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=factor,
        max_position_embeddings=256,
        eos_token_id=tiny_tokenizer().eos_token_id,
        pad_token_id=tiny_tokenizer().pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_balance_of_experts_is_part_of_the_loss(critic: str, tmp_path: Path) -> None:
    """As the model itself would add it: its mean over the completion tokens of the optimizer step, whatever its
    batches; a separate critic's experts are balanced as well."""

    def trainer(factor: float, name: str) -> PpoTrainer:
        start = LoadedModel(model=mixtral(factor), tokenizer=tiny_tokenizer(None))
        ctx = driver.context(tmp_path / name, score, start=start, critic=critic, **SMALL)
        model = start.model
        beside_it = copy.deepcopy(model) if critic == "separate" else None
        made = PpoTrainer(
            ctx,
            ActorCritic(model, beside_it),
            start.tokenizer,
            hf.prompt_rows(ctx, ctx.data, start.tokenizer, 32)[0],
            copy.deepcopy(model),
        )
        made.rollout = made._write(0)
        assert made.rollout.facts["kl"] == 0
        return made

    plain, balanced = trainer(0.0, "plain"), trainer(0.5, "balanced")
    parts = balanced.rollout.minibatches(0, 8, 4, 7)
    losses = {}
    for made in (plain, balanced):
        made._tokens = made.rollout.tokens(range(8))
        made.model.zero_grad()
        losses[made] = sum(float(made.training_step(made.model, numbers)) for numbers in parts)
    expected = 0.0
    for numbers in parts:
        prompts = [balanced.prompts[balanced.rollout.prompts[number]]["prompt_ids"] for number in numbers]
        completions = [balanced.rollout.completions[number] for number in numbers]
        groups = [hf.PromptGroup(prompt, [made]) for prompt, made in zip(prompts, completions, strict=True)]
        bodies = [(balanced._policy, balanced.model.policy)]
        bodies += [(balanced._critic, balanced.model.critic)] if critic == "separate" else []
        for puts, body in bodies:
            with torch.no_grad(), puts.attending():
                routing = float(puts(body, groups).routing)
            expected += routing * balanced.rollout.tokens(numbers) / balanced._tokens
    assert len(parts) == 2 and expected > 0.3
    assert losses[balanced] - losses[plain] == pytest.approx(expected, abs=1e-5)
    gates = [p.grad for name, p in balanced.model.named_parameters() if name.endswith("gate.weight")]
    assert len(gates) == (4 if critic == "separate" else 2) and all(grad.abs().max() > 1e-5 for grad in gates)


@pytest.mark.parametrize("kind", ["llama", "experts"])
@pytest.mark.parametrize("through", ["full", "lora"])
@pytest.mark.parametrize("half_weights", [False, True], ids=["float32", "bfloat16"])
def test_under_autocast_the_first_divergence_is_exactly_0(
    half_weights: bool, through: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: both passes round alike, with weights of either type; afterwards they differ."""
    from tunekit.plugins.hf import arguments

    defaults = arguments.device_defaults
    monkeypatch.setattr(arguments, "device_defaults", lambda: {**defaults(), "bf16": True})
    start = driver.loaded() if kind == "llama" else LoadedModel(model=mixtral(0.1), tokenizer=tiny_tokenizer(None))
    if half_weights:
        start.model.to(torch.bfloat16)
    adapter = LoraAdapter(LoraOptions(r=4, targets=["q_proj", "v_proj"])) if through == "lora" else None
    events = driver.Events()
    computed: list[tuple[str, bool]] = []
    forward = type(start.model).forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        computed.append(("reference" if passes[-1] else "policy", torch.is_autocast_enabled("cpu")))
        return forward(self, *args, **kwargs)

    passes = [False]
    measure = PpoTrainer._reference_logps

    def reference(self: PpoTrainer, *args: Any) -> Any:
        passes.append(True)
        try:
            return measure(self, *args)
        finally:
            passes.append(False)

    monkeypatch.setattr(PpoTrainer, "_reference_logps", reference)
    monkeypatch.setattr(type(start.model), "forward", watched)
    PpoComponent().run(driver.context(tmp_path, score, start=start, adapter=adapter, events=events, **SMALL))
    said = [values["values"] for values in events.named("metrics")]
    assert said[0]["kl"] == 0 and said[0]["kl_per_token"] == 0
    assert said[1]["kl"] != 0
    assert ("reference", True) in computed and ("reference", False) not in computed
    assert ("policy", True) in computed
