"""Losses of reward models beside those of TRL and the papers' formulas, on the same batch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from tunekit.testing.beside import beside
from tunekit_trl.reward_rows import Scale

rewards = beside(__file__, "reward_driver")


@pytest.mark.parametrize("pad", ["<pad>", "<|im_end|>"])
@pytest.mark.parametrize(("margin", "center"), [(False, 0.0), (True, 0.0), (True, 0.01)])
def test_loss_and_gradient_equal_those_of_trl(pad: str, margin: bool, center: float, tmp_path: Path) -> None:
    tokenizer = rewards.driver.byte_tokenizer(pad=pad)
    model = rewards.reward_model(tokenizer)
    other = copy.deepcopy(model)
    rows = rewards.token_rows(rewards.PAIRS if margin else rewards.driver.PREFERENCES, tokenizer)
    assert all(row["prompt_ids"] for row in rows) and len({len(row["completion_ids"][0]) for row in rows}) > 3
    loss = rewards.one_step(model, rows, "bradley-terry", tmp_path / "ours", center)

    columns = {
        side: [row["prompt_ids"] + row["completion_ids"][number] for row in rows]
        for number, side in enumerate(("chosen_ids", "rejected_ids"))
    }
    if margin:
        columns["margin"] = [row["pairs"][0][2] for row in rows]
    theirs = TrlRewardTrainer(
        other,
        RewardConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
            center_rewards_coefficient=center or None,
            max_length=None,
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )
    expected = theirs.compute_loss(other, theirs.data_collator(list(theirs.train_dataset)))
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert rewards.norm(model) == pytest.approx(rewards.norm(other), abs=1e-5)
    assert abs(loss - math.log(2)) > 1e-3


def formula(objective: str, own: torch.Tensor, row: dict[str, Any], center: float) -> torch.Tensor:
    """Loss of one row from the rewards of its answers, as the papers give it; float64."""
    if objective == "regression":
        return (own[0] - row["target"]) ** 2
    if objective == "logistic":
        p = torch.sigmoid(own[0])
        return -torch.log(p if row["target"] else 1 - p)
    ranks = row["ranks"]
    if objective == "plackett-luce":  # Plackett 1975: each place is drawn among what is left
        places = [
            -torch.log(own[i].exp() / (own[i].exp() + sum(own[j].exp() for j in range(len(ranks)) if ranks[j] > r)))
            for i, r in enumerate(ranks)
            if any(other > r for other in ranks)
        ]
        return torch.stack(places).mean()
    pairs = [  # Ouyang et al. 2022, eq. 1
        -torch.log(torch.sigmoid(own[i] - own[j])) + center * (own[i] + own[j]) ** 2
        for i, r in enumerate(ranks)
        for j, s in enumerate(ranks)
        if r < s
    ]
    return torch.stack(pairs).mean()


@pytest.mark.parametrize(
    ("objective", "rows", "center"),
    [
        ("bradley-terry", rewards.RANKED, 0.0),
        ("bradley-terry", rewards.RANKED, 0.05),
        ("plackett-luce", rewards.RANKED, 0.0),
        ("plackett-luce", rewards.driver.PREFERENCES[:5], 0.0),
        ("regression", rewards.RATED[:6], 0.0),
        ("logistic", rewards.THUMBS[:6], 0.0),
    ],
)
def test_loss_and_gradient_equal_the_formula_in_float64(
    objective: str, rows: list[dict[str, Any]], center: float, tmp_path: Path
) -> None:
    tokenizer = rewards.driver.byte_tokenizer(pad="<|im_end|>")
    model = rewards.reward_model(tokenizer)
    scale = Scale.of([row["score"] for row in rows]) if objective == "regression" else Scale()
    made = rewards.token_rows(rows, tokenizer, scale)
    loss = rewards.one_step(model, made, objective, tmp_path, center)
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row in made:
        own = torch.cat(
            [exact(input_ids=torch.tensor([row["prompt_ids"] + ids])).logits[0] for ids in row["completion_ids"]]
        )
        total = total + formula(objective, own, row, center) / len(made)
    total.backward()
    assert loss == pytest.approx(total.item(), abs=1e-5)
    assert rewards.norm(model) == pytest.approx(rewards.norm(exact), rel=1e-5)
