"""Losses and gradients on judged answers equal TRL's on the same batch, and the papers' formulas in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer
from trl.trainer import kto_trainer

from tunekit.plugins import hf
from tunekit.plugins.hf import completions
from tunekit.plugins.hf.isolation import Layout
from tunekit.testing.beside import beside
from tunekit_trl.encoding import Encoder
from tunekit_trl.unpaired_encoding import judged
from tunekit_trl.unpaired_losses import BcoObjective, KtoObjective

driver = beside(__file__, "trl_driver")

BETA, GOOD, BAD = 0.3, 1.5, 0.7
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Say red."},
]
ROWS = [
    {"prompt": row["prompt"], "completion": row["chosen"] if at % 3 else row["rejected"], "label": at % 3 > 0}
    for at, row in enumerate(driver.PREFERENCES[:6])
] + [{"prompt": TALK, "completion": "red, of course", "label": True}]


class Batch:
    """Rows with their reference, a policy away from it, and what puts them to it. ``back`` exchanges the two models:
    the estimate of the divergence is above 0 in one direction only."""

    def __init__(self, layout: str, back: bool) -> None:
        policy, start = driver.tiny_model(), driver.tiny_model()
        with torch.no_grad():
            for parameter, away in zip(policy.parameters(), driver.tiny_model(seed=1).parameters(), strict=True):
                parameter.lerp_(away, 0.3)
        self.policy, self.start = (start, policy) if back else (policy, start)
        # Padding is the token that ends an answer.
        self.tokenizer = driver.byte_tokenizer(pad="<|im_end|>")
        made: list[Any] = judged(Encoder(self.tokenizer, 256), ROWS)
        self.rows: list[dict[str, Any]] = [
            {
                "number": at,
                "held_out": 0.0,
                "label": float(row.label),
                "prompt_ids": row.prompt_ids,
                "completion_ids": row.completion_ids,
            }
            for at, row in enumerate(made)
        ]
        groups = [hf.PromptGroup(row["prompt_ids"], (row["completion_ids"],)) for row in self.rows]
        with pytest.MonkeyPatch.context() as patch:
            if layout == "padded":
                patch.setattr(completions, "proven_layout", lambda model, rows: Layout("padded", "for the test"))
            self.frozen = hf.CompletionModel(self.start, groups)
            self.moving = hf.CompletionModel(self.policy, groups)
        assert self.moving.layout.packs == (layout != "padded")
        for row, value in zip(self.rows, self.sums(self.frozen, self.start, groups).tolist(), strict=True):
            row["ref_completion_logps"] = value

    @staticmethod
    def sums(puts: Any, model: Any, groups: Any) -> torch.Tensor:
        with puts.attending(), torch.no_grad():
            return puts(model, groups).sums()

    def loss(self, objective: Any) -> tuple[float, dict[str, float], list[torch.Tensor]]:
        """Loss, what is logged, and the gradient of each parameter; in two pieces."""
        if isinstance(objective, KtoObjective):
            objective.sets = {False: self.rows}
            pairs = objective.pairs(self.rows)
            if pairs:
                known = self.sums(self.frozen, self.start, [objective.pair_group(pair) for pair in pairs])
                objective.mismatched = dict(zip(pairs, known.tolist(), strict=True))
        totals = objective.totals(self.rows, lambda groups: self.sums(self.moving, self.policy, groups))
        self.policy.zero_grad()
        loss, logged = 0.0, {}
        for part in (self.rows[:3], self.rows[3:]):
            with self.moving.attending():
                made = self.moving(self.policy, [objective.group(row) for row in part])
                found = objective.loss(made, part, totals)
            found.loss.backward()
            loss += found.loss.item()
            for name, (value, count) in found.measured.items():
                before = logged.get(name, (0.0, 0.0))
                logged[name] = (before[0] + float(value), before[1] + count)
        return (
            loss,
            {name: value / count for name, (value, count) in logged.items()},
            [parameter.grad.clone() for parameter in self.policy.parameters()],
        )


@pytest.fixture(scope="module", params=["packed", "packed-back", "padded"])
def batch(request: pytest.FixtureRequest) -> Batch:
    layout, _, back = request.param.partition("-")
    return Batch(layout, bool(back))


@pytest.fixture(scope="module")
def kto_trainer_of_trl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return KTOTrainer(
        driver.tiny_model(),
        ref_model=driver.tiny_model(),
        args=KTOConfig(
            output_dir=str(tmp_path_factory.mktemp("kto")),
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
            per_device_train_batch_size=7,
            disable_tqdm=True,
            beta=BETA,
            desirable_weight=GOOD,
            undesirable_weight=BAD,
        ),
        train_dataset=Dataset.from_list(ROWS[:4]),
        processing_class=driver.byte_tokenizer(),
    )


def norm(parts: Any) -> float:
    return float(torch.stack([part.double().norm() for part in parts]).norm())


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto_equals_trl(loss_type: str, batch: Batch, kto_trainer_of_trl: Any) -> None:
    trainer, model = kto_trainer_of_trl, kto_trainer_of_trl.model
    model.load_state_dict(batch.policy.state_dict())
    trainer.ref_model.load_state_dict(batch.start.state_dict())
    model.zero_grad()
    trainer.loss_type, trainer.calculate_KL = loss_type, loss_type == "kto"
    trainer._metrics["train"].clear()
    model.train()
    plain = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row["completion_ids"],
            "label": row["label"] > 0,
            **({"KL_completion_ids": batch.rows[at - 1]["completion_ids"]} if loss_type == "kto" else {}),
        }
        for at, row in enumerate(batch.rows)
    ]
    collate = kto_trainer.DataCollatorForUnpairedPreference(pad_token_id=batch.tokenizer.pad_token_id)
    expected = trainer.compute_loss(model, collate(plain))
    expected.backward()
    theirs = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}

    loss, logged, gradients = batch.loss(KtoObjective(BETA, loss_type, GOOD, BAD))
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    assert norm(gradients) == pytest.approx(norm([p.grad for p in model.parameters()]), rel=1e-5, abs=1e-5)
    for one, other in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-3, atol=1e-5)
    common = {name for name in set(logged) & set(theirs) if loss_type == "kto" or name != "kl"}
    assert common >= {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
    for name in common:
        assert logged[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name


def test_estimate_of_the_divergence_is_not_always_zero() -> None:
    """T14. In one direction the estimate is negative and counts as 0; in the other it enters the loss."""
    found = [Batch("packed", back).loss(KtoObjective(BETA, "kto", 1.0, 1.0))[1]["kl"] for back in (False, True)]
    assert min(found) == 0.0 and max(found) > 0.1


def formula(batch: Batch, method: str) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients from the full logits of float64 models, as the papers give them."""
    policy, start = copy.deepcopy(batch.policy).double(), copy.deepcopy(batch.start).double()
    policy.zero_grad()

    def ratio(prompt: list[int], answer: list[int]) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *answer]])
        found = []
        for model in (policy, start):
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            found.append(logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum())
        return found[0] - found[1].detach()

    ratios = [ratio(row["prompt_ids"], row["completion_ids"]) for row in batch.rows]
    with torch.no_grad():
        others = [ratio(row["prompt_ids"], batch.rows[at - 1]["completion_ids"]) for at, row in enumerate(batch.rows)]
    divergence = max(0.0, float(torch.stack(others).mean()))
    shift = BETA * float(torch.stack(ratios).mean().detach())
    losses = []
    for row, value in zip(batch.rows, ratios, strict=True):
        good = row["label"] > 0
        if method == "kto":  # Ethayarajh et al. 2024, eq. 7
            value = value - divergence
            losses.append(
                GOOD - GOOD * torch.sigmoid(BETA * value) if good else BAD - BAD * torch.sigmoid(-BETA * value)
            )
        elif method == "apo_zero_unpaired":  # D'Oosterlinck et al. 2024, eq. 7
            losses.append(GOOD * (1 - torch.sigmoid(BETA * value)) if good else BAD * torch.sigmoid(BETA * value))
        else:  # Jung et al. 2024, eq. 8
            reward = BETA * value - shift
            losses.append(-torch.log(torch.sigmoid(reward)) if good else -torch.log(1 - torch.sigmoid(reward)))
    total = torch.stack(losses).mean()
    total.backward()
    return total.item(), [parameter.grad for parameter in policy.parameters()]


@pytest.mark.parametrize("method", ["kto", "apo_zero_unpaired", "bco"])
def test_losses_equal_the_formulas_in_float64(method: str, batch: Batch) -> None:
    objective = BcoObjective(BETA) if method == "bco" else KtoObjective(BETA, method, GOOD, BAD)
    loss, logged, gradients = batch.loss(objective)
    expected, exact = formula(batch, method)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert norm(gradients) == pytest.approx(norm(exact), rel=1e-5)
    for one, other in zip(gradients, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5)
    assert 0.0 <= logged["rewards/accuracies"] <= 1.0 and abs(loss - math.log(2)) > 1e-3


def test_shift_of_bco_is_the_mean_reward_so_far() -> None:
    """Over optimizer steps, held-out rows left out; a checkpoint's numbers continue it."""
    batch = Batch("packed", False)
    objective = BcoObjective(BETA)
    rewards = [
        BETA * (value - row["ref_completion_logps"])
        for value, row in zip(
            batch.sums(batch.moving, batch.policy, [objective.group(row) for row in batch.rows]).tolist(),
            batch.rows,
            strict=True,
        )
    ]
    ask = lambda groups: batch.sums(batch.moving, batch.policy, groups) if groups else torch.zeros(0)  # noqa: E731
    for step, seen in ((slice(0, 3), 3), (slice(3, 7), 7)):
        totals = objective.totals(batch.rows[step], ask)
        for _ in range(2):  # two pieces
            assert objective.point(totals) == pytest.approx(sum(rewards[:seen]) / seen, abs=1e-5)
        held_out = objective.totals([{**row, "held_out": 1.0} for row in batch.rows[:2]], ask)
        assert objective.point(held_out) == pytest.approx(sum(rewards[:seen]) / seen, abs=1e-5)
    assert objective.seen == (pytest.approx(sum(rewards), abs=1e-4), 7)
