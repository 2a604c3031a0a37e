"""The losses on own completions are those of TRL's trainers, and of the papers' formulas in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset

from tunekit.plugins import hf
from tunekit.testing.beside import beside
from tunekit_trl.borrowed import borrowed
from tunekit_trl.online_losses import GrpoObjective, OnlineDpoObjective, RlooObjective, Rollout
from tunekit_trl.online_options import GrpoOptions, OnlineDpoOptions, RlooOptions

with hf.quiet():
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

_driver = beside(__file__, "online_driver")
tiny_pair = _driver.tiny_pair

G = 4
PROMPTS = [[9, 10, 11, 12, 13], [40, 41]]
COMPLETIONS = [[[20, 21, 22], [23], [24, 25, 26, 27, 28], [29, 3]], [[50, 3], [51, 52, 53], [54], [55, 56, 57, 3]]]
REWARDS = [[1.0, 0.0, 0.5, 0.0], [0.0, 2.0, 2.0, -1.0]]
TOKENS = sum(len(made) for group in COMPLETIONS for made in group)

GRPO = [
    {"loss_type": "dapo"},
    {"loss_type": "grpo"},
    {"loss_type": "dr_grpo", "scale_rewards": "none"},
    {"loss_type": "dapo", "beta": 0.3, "num_iterations": 2, "epsilon_high": 0.28},
    {"loss_type": "grpo", "beta": 0.3, "num_iterations": 2, "delta": 1.5, "scale_rewards": "batch"},
    {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2},
    {"loss_type": "luspo", "importance_sampling_level": "sequence", "num_iterations": 2},
    {"loss_type": "cispo", "num_iterations": 2, "epsilon_high": 1.1},
    {"loss_type": "sapo", "num_iterations": 2, "beta": 0.1},
    {"loss_type": "dapo", "temperature": 0.7, "num_iterations": 2},
    {"loss_type": "grpo", "mask_truncated_completions": True},
]
RLOO = [
    {"beta": 0.0},
    {"beta": 0.2, "num_iterations": 2},
    {"beta": 0.2, "normalize_advantages": True, "reward_clip_range": (-0.5, 1.0)},
]


def _name(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


@pytest.fixture(scope="module")
def policy() -> Any:
    return tiny_pair(seed=0)


@pytest.fixture(scope="module")
def others() -> tuple[Any, Any]:
    """Models that stand for the policy that wrote, near the policy, and for the reference."""
    writer = copy.deepcopy(tiny_pair(seed=0).model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in writer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return writer, tiny_pair(seed=3).model


def _logps(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    """(tokens,), one sequence at a time."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def _rollouts(objective: Any, others: tuple[Any, Any], temperature: float) -> list[Rollout]:
    made = []
    with torch.no_grad():
        for prompt, completions, rewards in zip(PROMPTS, COMPLETIONS, REWARDS, strict=True):
            ended = [ids[-1] == 3 for ids in completions]
            rollout = objective.choose(Rollout(prompt, list(completions), ended, list(rewards)))
            for name, model, wanted in (
                ("old", others[0], objective.needs_old),
                ("ref", others[1], objective.needs_ref),
            ):
                if wanted:
                    values = torch.cat([_logps(model, prompt, ids, temperature) for ids in rollout.completions])
                    setattr(rollout, name, values)
            made.append(rollout)
    return made


def _ours(loaded: Any, objective: Any, rows: list[Any], temperature: float, pieces: int) -> tuple[float, float, Any]:
    """Loss, gradient norm, and what was measured; in one piece or one for each prompt."""
    model = copy.deepcopy(loaded.model)
    groups = [objective.group(row) for row in rows]
    asked = hf.CompletionModel(model, groups, temperature=temperature)
    assert asked.shares
    totals = objective.totals(rows, None)
    parts = [rows] if pieces == 1 else [[row] for row in rows]
    total, made = 0.0, None
    with asked.attending():
        for part in parts:
            made = objective.loss(asked(model, [objective.group(row) for row in part]), part, totals)
            made.loss.backward()
            total += float(made.loss.detach())
    return total, _norm(model), made


def _norm(model: Any) -> float:
    return math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None))


@pytest.fixture(scope="module")
def trl_trainers(policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """TRL's trainers, each with a model of its own."""
    made = {}
    data = Dataset.from_dict({"prompt": ["a"] * 4})
    for name, config, kind in (("grpo", GRPOConfig, GRPOTrainer), ("rloo", RLOOConfig, RLOOTrainer)):
        model = copy.deepcopy(policy.model)
        with borrowed(policy.model, policy.tokenizer):
            args = config(
                output_dir=str(tmp_path_factory.mktemp(name)),
                per_device_train_batch_size=G,
                num_generations=G,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                beta=0.0,
            )
            tokenizer = copy.deepcopy(policy.tokenizer)
            made[name] = kind(
                model=model, args=args, reward_funcs=lambda **kw: [0.0], train_dataset=data, processing_class=tokenizer
            )
    yield made


def _batch(rows: list[Any]) -> dict[str, torch.Tensor]:
    """As TRL lays completions out: prompts padded at the left, completions at the right."""
    flat = [(row["prompt_ids"], ids) for row in rows for ids in row["completions"]]
    wide, long = max(len(p) for p, _ in flat), max(len(c) for _, c in flat)
    made = {
        "prompt_ids": torch.tensor([[0] * (wide - len(p)) + p for p, _ in flat]),
        "prompt_mask": torch.tensor([[0] * (wide - len(p)) + [1] * len(p) for p, _ in flat]),
        "completion_ids": torch.tensor([c + [0] * (long - len(c)) for _, c in flat]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (long - len(c)) for _, c in flat]),
        "advantages": torch.tensor([value for row in rows for value in row["advantages"]]),
    }
    kept = torch.tensor([value for row in rows for value in row["kept"]]).long()
    for name, key in (("old", "old_per_token_logps"), ("ref", "ref_per_token_logps")):
        if rows[0][name] is not None:
            values = torch.zeros(made["completion_ids"].shape)
            values[made["completion_mask"].bool()] = torch.cat([row[name] for row in rows])
            made[key] = values
    made["completion_mask"] = made["completion_mask"] * kept[:, None]
    made["num_items_in_batch"] = made["completion_mask"].sum()
    return made


def _expected_advantages(options: Any) -> list[float]:
    """By hand, in float64."""
    groups = torch.tensor(REWARDS, dtype=torch.float64)
    made = groups - groups.mean(1, keepdim=True)
    if options.scale_rewards == "group":
        made = made / (groups.std(1, keepdim=True) + 1e-4)
    elif options.scale_rewards == "batch":
        made = made / (groups.std() + 1e-4)
    return [float(value) for value in made.flatten()]


@pytest.mark.parametrize("settings", GRPO, ids=_name)
def test_grpo_is_trls(settings: dict[str, Any], policy: Any, others: Any, trl_trainers: dict[str, Any]) -> None:
    """T17: normalised as ``loss_type`` says; ratios against the policy that wrote."""
    options = GrpoOptions(max_new_tokens=8, **settings)
    objective = GrpoObjective(options)
    rows = objective.rows(_rollouts(objective, others, options.temperature), dict)
    advantages = [value for row in rows for value in row["advantages"]]
    assert advantages == pytest.approx(_expected_advantages(options), abs=1e-9)
    loss, norm, _ = _ours(policy, objective, rows, options.temperature, pieces=1)
    assert _ours(policy, objective, rows, options.temperature, pieces=2)[:2] == pytest.approx((loss, norm), rel=1e-5)

    trainer = trl_trainers["grpo"]
    trainer.loss_type, trainer.beta = options.loss_type, options.beta
    trainer.importance_sampling_level = options.importance_sampling_level
    trainer.epsilon_low = options.epsilon
    trainer.epsilon_high = options.epsilon if options.epsilon_high is None else options.epsilon_high
    trainer.args.use_bias_correction_kl = options.use_bias_correction_kl
    trainer.args.delta, trainer.max_completion_length = options.delta, options.max_new_tokens
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    trainer.model.train()
    trainer.model.zero_grad()
    inputs = _batch(rows)
    if options.temperature != 1.0:
        expected = _formula(policy, rows, options, objective)
        theirs, their_norm = expected
    else:
        made = trainer._compute_loss(trainer.model, inputs)
        made.backward()
        theirs, their_norm = float(made.detach()), _norm(trainer.model)
    assert loss == pytest.approx(theirs, abs=1e-5)
    assert norm == pytest.approx(their_norm, rel=1e-5)


def _formula(policy: Any, rows: list[Any], options: Any, objective: Any) -> tuple[float, float]:
    """The clipped objective with the KL estimate, token by token in float64; mean over all tokens or within
    completions."""
    model = copy.deepcopy(policy.model).double()
    terms: list[torch.Tensor] = []
    for row in rows:
        old = row["old"].double() if row["old"] is not None else None
        ref = row["ref"].double() if row["ref"] is not None else None
        at = 0
        for ids, advantage in zip(row["completions"], row["advantages"], strict=True):
            logps = _logps(model, list(row["prompt_ids"]), ids, options.temperature)
            before = logps.detach() if old is None else old[at : at + len(ids)]
            ratio = (logps - before).exp()
            clipped = ratio.clamp(1 - objective.low, 1 + objective.high)
            loss = -torch.minimum(ratio * advantage, clipped * advantage)
            if ref is not None:
                away = ref[at : at + len(ids)] - logps
                weight = ratio if options.use_bias_correction_kl else 1.0
                loss = loss + options.beta * (away.exp() - away - 1) * weight
            terms.append(loss)
            at += len(ids)
    total = (
        torch.cat(terms).mean() if options.loss_type == "dapo" else torch.stack([one.mean() for one in terms]).mean()
    )
    total.backward()
    return float(total), _norm(model)


@pytest.mark.parametrize("settings", [GRPO[0], GRPO[1], GRPO[3], GRPO[5]], ids=_name)
def test_grpo_is_the_papers_formula(settings: dict[str, Any], policy: Any, others: Any) -> None:
    options = GrpoOptions(max_new_tokens=8, **settings)
    objective = GrpoObjective(options)
    rows = objective.rows(_rollouts(objective, others, 1.0), dict)
    loss, norm, _ = _ours(policy, objective, rows, 1.0, pieces=1)
    expected, expected_norm = _formula(policy, rows, options, objective)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert norm == pytest.approx(expected_norm, rel=1e-5)


@pytest.mark.parametrize("settings", RLOO, ids=_name)
def test_rloo_is_trls(settings: dict[str, Any], policy: Any, others: Any, trl_trainers: dict[str, Any]) -> None:
    options = RlooOptions(max_new_tokens=8, **settings)
    objective = RlooObjective(options)
    rollouts = _rollouts(objective, others, 1.0)
    rows = objective.rows(rollouts, dict)
    expected = []
    for rollout in rollouts:
        rewards = [min(max(r, -0.5), 1.0) if options.reward_clip_range else r for r in rollout.rewards]
        if options.beta:
            away = (rollout.old - rollout.ref).double().split([len(ids) for ids in rollout.completions])
            rewards = [reward - options.beta * float(kl.sum()) for reward, kl in zip(rewards, away, strict=True)]
        for number, reward in enumerate(rewards):
            rest = rewards[:number] + rewards[number + 1 :]
            expected.append(reward - sum(rest) / len(rest))
    if options.normalize_advantages:
        values = torch.tensor(expected, dtype=torch.float64)
        expected = ((values - values.mean()) / (values.std() + 1e-4)).tolist()
    assert [value for row in rows for value in row["advantages"]] == pytest.approx(expected, abs=1e-5)

    loss, norm, _ = _ours(policy, objective, rows, 1.0, pieces=1)
    trainer = trl_trainers["rloo"]
    trainer.model.train()
    trainer.model.zero_grad()
    inputs = _batch(rows)
    flat = [(row["prompt_ids"], ids) for row in rows for ids in row["completions"]]
    if not objective.reuses:
        inputs["old_logps"] = torch.stack([_logps(policy.model, list(p), ids).sum() for p, ids in flat]).detach()
    else:
        inputs["old_logps"] = inputs["old_per_token_logps"].sum(1)
    made = trainer._compute_loss(trainer.model, inputs)
    made.backward()
    assert loss == pytest.approx(float(made.detach()), abs=1e-5)
    assert norm == pytest.approx(_norm(trainer.model), rel=1e-4)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_online_dpo_is_the_papers_formula(loss_type: str, policy: Any, others: Any) -> None:
    options = OnlineDpoOptions(max_new_tokens=8, num_generations=G, loss_type=loss_type, beta=0.3)
    objective = OnlineDpoObjective(options)
    rows = objective.rows(_rollouts(objective, others, 1.0), dict)
    # The best against the worst of each prompt, the first of those that are equal.
    assert [row["completions"] for row in rows] == [
        [COMPLETIONS[0][0], COMPLETIONS[0][1]],
        [COMPLETIONS[1][1], COMPLETIONS[1][3]],
    ]
    loss, norm, _ = _ours(policy, objective, rows, 1.0, pieces=2)
    model, reference = copy.deepcopy(policy.model).double(), copy.deepcopy(others[1]).double()
    losses = []
    for row in rows:
        prompt = list(row["prompt_ids"])
        ratios = []
        for ids in row["completions"]:
            ratio = _logps(model, prompt, ids).sum() - _logps(reference, prompt, ids).sum().detach()
            ratios.append(ratio / len(ids) if loss_type == "ipo" else ratio)
        margin = ratios[0] - ratios[1]
        losses.append((margin - 1 / 0.6) ** 2 if loss_type == "ipo" else -torch.log(torch.sigmoid(0.3 * margin)))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss == pytest.approx(float(expected), abs=1e-5)
    assert norm == pytest.approx(_norm(model), rel=1e-5)


def test_nothing_is_learned_from_equal_rewards() -> None:
    objective = OnlineDpoObjective(OnlineDpoOptions())
    ref = torch.zeros(2)
    equal = objective.choose(Rollout([1, 2], [[5], [6]], [True, True], [1.0, 1.0]))
    other = objective.choose(Rollout([1, 2], [[5], [6]], [True, True], [0.0, 1.0]))
    equal.ref = other.ref = ref
    rows = objective.rows([equal, other], dict)
    assert [row["differ"] for row in rows] == [0.0, 1.0]
    assert rows[1]["completions"] == [[6], [5]]
    assert objective.totals(rows, None) == {"pairs": 1.0}
