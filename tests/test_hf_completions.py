"""Completions of prompts: log-probabilities equal those of each completion alone, with its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tunekit.plugins import hf
from tunekit.plugins.hf.losses import token_logps

GROUPS = [
    hf.PromptGroup([5, 6, 7, 8, 9], [[10, 11, 12], [20, 21, 22, 23, 24, 2]]),
    hf.PromptGroup([3], [[4], [30, 31]]),
    hf.PromptGroup([1, 2, 3, 4, 5, 6, 7], [[8, 8, 8], [9], [7, 6, 5, 4]]),
    hf.PromptGroup([], [[11, 12, 13]]),
]


def _llama(**more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **more)
    ).eval()


def _sliding() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=4)
    return MistralForCausalLM(config).eval()


def _gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64)).eval()


def _alone(model: Any, groups: list[hf.PromptGroup]) -> list[torch.Tensor]:
    made = []
    for prompt, completions in groups:
        for tokens in completions:
            ids = torch.tensor([[*prompt, *tokens]])
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
            begin = max(1, len(prompt))
            made.append(torch.stack([logps[at - 1, ids[0, at]] for at in range(begin, ids.shape[1])]))
    return made


@pytest.mark.parametrize("make", [_llama, _sliding, _gpt2])
@pytest.mark.parametrize("share", [True, False])
def test_log_probabilities_are_those_of_each_completion_alone(make: Any, share: bool) -> None:
    model = make()
    scorer = hf.CompletionModel(model, GROUPS, share=share)
    assert scorer.shares is share
    expected = _alone(model, GROUPS)
    with scorer.attending():
        found = scorer(model, GROUPS)
    assert found.lengths == tuple(map(len, expected))
    torch.testing.assert_close(found.logps, torch.cat(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sums(), torch.stack([part.sum() for part in expected]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.means(), torch.stack([part.mean() for part in expected]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [_llama, _gpt2])
def test_gradients_are_those_of_each_completion_alone(make: Any) -> None:
    model = make()
    weights = torch.linspace(-1, 1, sum(len(g.completions) for g in GROUPS))
    (torch.stack([part.sum() for part in _alone(model, GROUPS)]) * weights).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    scorer = hf.CompletionModel(model, GROUPS)
    with scorer.attending():
        (scorer(model, GROUPS).sums() * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_hidden_states_entropies_and_hits_belong_to_their_tokens() -> None:
    model = _llama()
    scorer = hf.CompletionModel(model, GROUPS)
    with scorer.attending(), torch.no_grad():
        found = scorer(model, GROUPS, hidden=True, entropy=True)
    logits = model.lm_head(found.hidden)
    targets = torch.tensor([t for p, made in GROUPS for c in made for t in (c if p else c[1:])])
    logps = logits.log_softmax(-1)
    torch.testing.assert_close(found.logps, logps.gather(1, targets[:, None])[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.entropy, -(logps.exp() * logps).sum(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.correct, logits.argmax(-1) == targets)


def test_a_model_that_takes_padded_rows_only_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunekit.plugins.hf import completions
    from tunekit.plugins.hf.segments import Layout

    model = _llama()
    monkeypatch.setattr(completions, "proven_layout", lambda model, rows: Layout("padded", "told so"))
    scorer = hf.CompletionModel(model, GROUPS)
    assert not scorer.shares
    for hidden in (False, True):
        with scorer.attending():
            found = scorer(model, GROUPS, hidden=hidden)
        torch.testing.assert_close(found.logps, torch.cat(_alone(model, GROUPS)), rtol=1e-4, atol=1e-5)


def test_a_temperature_divides_logits() -> None:
    model = _llama()
    scorer = hf.CompletionModel(model, GROUPS, temperature=0.5)
    with scorer.attending(), torch.no_grad():
        found = scorer(model, GROUPS, hidden=True)
    logps = (model.lm_head(found.hidden) / 0.5).log_softmax(-1)
    targets = torch.tensor([t for p, made in GROUPS for c in made for t in (c if p else c[1:])])
    torch.testing.assert_close(found.logps, logps.gather(1, targets[:, None])[:, 0], rtol=1e-4, atol=1e-5)


def test_pieces_hold_every_group_once_and_stay_small() -> None:
    model = _llama()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    groups = [hf.PromptGroup([1] * 50, [[2] * 30, [3] * 20])] * 9
    scorer = hf.CompletionModel(model, groups)
    pieces = scorer.pieces(groups)
    assert sorted(number for piece in pieces for number in piece) == list(range(9))
    assert [len(piece) for piece in pieces] == [2, 2, 2, 2, 1]
    assert scorer.width(groups[:2]) == 200


def test_sharing_is_given_up_where_a_continuation_sees_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunekit.plugins.hf import segments

    model = _llama()
    honest = segments._parts
    monkeypatch.setattr(
        segments,
        "_parts",
        lambda lengths: honest([sum(extent) if isinstance(extent, tuple) else extent for extent in lengths]),
    )
    assert not hf.CompletionModel(model, GROUPS).shares


@pytest.mark.parametrize("entropy", [False, True])
def test_token_logps_of_rows_that_are_asked_twice(entropy: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 8, requires_grad=True)
    x = torch.randn(4, 8)
    rows, targets = torch.tensor([0, 0, 2, 3, 3, 3]), torch.tensor([1, 2, 3, 4, 4, 49])
    scale = torch.linspace(-1, 2, 6)
    plain = torch.nn.functional.linear(x, weight).log_softmax(-1)[rows, targets]
    (plain * scale).sum().backward()
    expected, weight.grad = weight.grad, None
    found = token_logps(torch.nn.functional.linear(x, weight), rows, targets, entropy=entropy)
    (found.logps * scale).sum().backward()
    torch.testing.assert_close(found.logps, plain)
    torch.testing.assert_close(weight.grad, expected)
    assert (found.entropy is None) is not entropy


def _mixtral() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    config = MixtralConfig(
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        router_aux_loss_coef=0.25,
    )
    return MixtralForCausalLM(config).eval()


def test_the_balance_of_experts_is_given_times_its_factor() -> None:
    model = _mixtral()
    row = hf.PromptGroup([5, 6, 7, 8], [[9, 10, 11]])
    scorer = hf.CompletionModel(model, [row])
    with scorer.attending():
        found = scorer(model, [row]).routing
    expected = model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10, 11]])).aux_loss
    torch.testing.assert_close(found, 0.25 * expected)
    assert float(found.detach()) > 0.1 and found.requires_grad
    model.config.output_router_logits = False
    with scorer.attending():
        assert scorer(model, [row]).routing is None
