"""The arithmetic of PPO against loops and numbers written by hand, and what its options refuse."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tunekit.errors import OptionsError
from tunekit.plugins import hf
from tunekit_ppo.advantages import (
    KlController,
    RunningScale,
    advantages_of,
    explained_variance,
    kl_of,
    token_rewards,
    whiten,
)
from tunekit_ppo.losses import policy_loss, value_loss
from tunekit_ppo.options import PpoOptions
from tunekit_ppo.prompts import PromptOrder
from tunekit_ppo.rollouts import Rollout


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_equal_a_loop_written_by_hand(gamma: float, lam: float) -> None:
    draw = np.random.default_rng(0)
    lengths = [3, 1, 7, 4]
    rewards, values = draw.normal(size=15), draw.normal(size=15)
    expected: list[float] = []
    at = 0
    for length in lengths:
        r, v = rewards[at : at + length], [*values[at : at + length], 0.0]
        for t in range(length):
            # Schulman et al. 2016, eq. 16: the discounted sum of the residuals that are still to come.
            expected.append(sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, length)))
        at += length
    advantages, returns = advantages_of(torch.tensor(rewards), torch.tensor(values), lengths, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values, strict=True)], abs=1e-12)


def test_with_gamma_and_lambda_1_the_return_is_the_sum_of_what_follows() -> None:
    rewards = token_rewards([2.0, -1.0], torch.tensor([0.1, 0.2, 0.3, 0.0, 1.0]), [3, 2], 0.5)
    assert rewards.tolist() == pytest.approx([-0.05, -0.1, 1.85, 0.0, -1.5], abs=1e-7)
    _, returns = advantages_of(rewards, torch.tensor([5.0, -3.0, 2.0, 0.5, 9.0]), [3, 2], 1.0, 1.0)
    assert returns.tolist() == pytest.approx([1.7, 1.75, 1.85, -1.5, -1.5], abs=1e-7)


def test_whitening() -> None:
    values = torch.tensor([1.0, 4.0, -2.0, 7.0, 5.0], dtype=torch.float64)
    made = whiten(values)
    assert made.mean().item() == pytest.approx(0, abs=1e-12)
    assert made.var(unbiased=False).item() == pytest.approx(1, abs=1e-7)
    kept = whiten(values, shift=False)
    assert kept.mean().item() == pytest.approx(3.0) and kept.std(unbiased=False).item() == pytest.approx(1, abs=1e-7)
    assert whiten(torch.full((3,), 2.0)).tolist() == [0, 0, 0]


def test_policy_loss_is_clipped_on_the_side_that_gains() -> None:
    """Ratios 1.5, 1.5, 0.5, 0.5 and 1.1 with advantages of either sign, clip 0.2."""
    ratios, advantages = [1.5, 1.5, 0.5, 0.5, 1.1], [2.0, -2.0, 2.0, -2.0, 1.0]
    old = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.0])
    logps = (old + torch.tensor(ratios).log()).requires_grad_()
    made = policy_loss(logps, old, torch.tensor(advantages), 0.2)
    assert made.loss.item() == pytest.approx(-2 * 1.2 + 2 * 1.5 - 2 * 0.5 + 2 * 0.8 - 1.1, abs=1e-6)
    assert made.clipped.item() == 2
    made.loss.backward()
    assert logps.grad.tolist() == pytest.approx([0, 3.0, -1.0, 0, -1.1], abs=1e-6)


def test_value_loss_takes_the_worse_of_plain_and_clipped() -> None:
    values = torch.tensor([1.0, 0.1, -2.0], requires_grad=True)
    old, returns = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    made = value_loss(values, old, returns, 0.2)
    assert made.loss.item() == pytest.approx(0.5 * (0.8**2 + 0.9**2 + 3.0**2), abs=1e-6)
    assert made.clipped.item() == 1
    made.loss.backward()
    assert values.grad.tolist() == pytest.approx([0, -0.9, -3.0], abs=1e-6)
    plain = value_loss(values, old, returns, None)
    assert plain.loss.item() == pytest.approx(0.5 * (0 + 0.9**2 + 3.0**2), abs=1e-6) and plain.clipped.item() == 0


def test_estimates_of_the_divergence_have_its_mean() -> None:
    """Both estimators average to KL(p, q) over tokens drawn from p; k3 is never negative."""
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    ratio = (p / q).log()
    exact = float((p * ratio).sum())
    for estimator in ("k1", "k3"):
        assert float((p * kl_of(ratio, estimator)).sum()) == pytest.approx(exact, abs=1e-12)
    assert float(kl_of(ratio, "k3").min()) >= 0 > float(kl_of(ratio, "k1").min())


def test_coefficient_follows_its_target() -> None:
    control = KlController(0.1, target=6.0, horizon=1000)
    control.update(6.6, 100)  # 10% above
    assert control.coefficient == pytest.approx(0.1 * 1.01)
    control.update(60.0, 100)  # the error is clipped at 0.2
    assert control.coefficient == pytest.approx(0.1 * 1.01 * 1.02)
    control.update(0.0, 100)
    assert control.coefficient == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
    fixed = KlController(0.1)
    fixed.update(60.0, 100)
    assert fixed.coefficient == 0.1


def test_running_scale_is_that_of_all_scores() -> None:
    scale = RunningScale()
    scores = [1.0, 5.0, 2.5, -3.0, 8.0]
    scale.update(scores[:2])
    scale.update(scores[2:])
    expected = (np.array([4.0]) - np.mean(scores)) / np.std(scores)
    assert scale.scaled([4.0]) == pytest.approx(expected.tolist())


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns, returns) == 1 and explained_variance(torch.zeros(4), returns) == 0
    assert explained_variance(torch.tensor([4.0, 3.0, 2.0, 1.0]), returns) == pytest.approx(-3)


def test_prompts_are_asked_once_in_a_pass_and_any_place_can_be_gone_on_from() -> None:
    """T33: the order depends on seed and place alone."""
    order = PromptOrder(5, seed=3)
    whole = order.numbers(0, 15)
    assert all(sorted(whole[begin : begin + 5]) == list(range(5)) for begin in (0, 5, 10))
    assert whole[:5] != whole[5:10]
    assert [number for begin in range(0, 15, 3) for number in order.numbers(begin, 3)] == whole
    assert PromptOrder(5, seed=4).numbers(0, 15) != whole


def test_a_pass_over_a_rollout_takes_each_completion_once_and_keeps_prompts_together() -> None:
    tensor = torch.zeros(12)
    rollout = Rollout(2, [4, 4, 1, 1, 3, 3], [[1, 2]] * 6, tensor, tensor, tensor, tensor)
    steps = [rollout.minibatches(update, 2, 2, seed=0) for update in range(6)]
    flat = [number for step in steps for micro in step for number in micro]
    assert sorted(flat[:6]) == sorted(flat[6:]) == list(range(6))
    assert all({rollout.prompts[number] for number in step[0]} != set() for step in steps)
    assert all(len({rollout.prompts[number] for number in step[0]}) == 1 for step in steps)
    assert flat[:6] != flat[6:] or rollout.minibatches(0, 6, 6, seed=1)[0] != flat[:6]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rollout_size": 30}, "optimizer step"),
        ({"rollout_size": 32, "num_generations": 3}, "num_generations"),
        ({"max_new_tokens": 1024}, "room"),
        ({"kl_horizon": 5}, "kl_target"),
        ({"kl_target": 5.0, "kl_horizon": 64, "rollout_size": 320}, "become negative; take more than 64"),
        ({"kl_target": 5.0, "kl_coef": 0.0}, "stays 0"),
        ({"eos_penalty": 1.0, "unfinished_score": -1.0}, "exclude"),
        ({"critic_init": "step:reward"}, "separate"),
        ({"value_coef": 0.0, "value_learning_rate": 1e-3}, "not trained"),
        ({"kl_estimator": "k2"}, "k1"),
        ({"top_p": 0.9}, "Extra"),
    ],
)
def test_options_that_have_no_effect_are_refused(wrong: dict[str, Any], said: str) -> None:
    """T15, T16."""
    with pytest.raises(ValidationError, match=said):
        PpoOptions.model_validate(wrong)


def test_sizes_fit_each_other_by_default() -> None:
    made = [
        PpoOptions(**sizes).rollout_size
        for sizes in ({}, {"batch_size": 12}, {"batch_size": 4, "num_generations": 6}, {"batch_size": 100})
    ]
    assert made == [64, 72, 72, 200]
    assert PpoOptions().resolve(adapter=None).learning_rate == 3e-6
    assert PpoOptions().resolve(adapter="lora").learning_rate == 3e-5
    assert math.isclose(PpoOptions(learning_rate=1e-4).resolve(adapter="lora").learning_rate or 0, 1e-4)


def test_no_room_for_a_prompt_is_said_before_any_row() -> None:
    facts = SimpleNamespace(positions=64)
    assert hf.prompt_room(PpoOptions(max_new_tokens=60), facts) == 4
    with pytest.raises(OptionsError) as caught:
        hf.prompt_room(PpoOptions(max_new_tokens=64), facts)
    assert (caught.value.code, caught.value.fix) == ("no-room", "lower max_new_tokens: 32")
