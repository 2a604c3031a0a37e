"""Losses on single answers, each judged good or bad: KTO and BCO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import logsigmoid, sigmoid
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from tunekit.plugins import hf

__all__ = [
    "REWARDS",
    "BcoObjective",
    "KeptShift",
    "KtoObjective",
    "PairGroups",
    "UnpairedObjective",
    "mismatched",
    "pairwise_accuracy",
]

Row = Mapping[str, Any]
Ask = Callable[[Sequence[hf.PromptGroup]], torch.Tensor]
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
"""Names in the log."""


class UnpairedObjective:
    """What both losses share: the reward ``beta * log(policy / reference)`` of an answer, and what is logged.

    Rows hold ``prompt_ids``, ``completion_ids``, ``label`` (1: good), ``number``, ``held_out`` and
    ``ref_completion_logps``.

    Attributes:
        at_start: called once with the rewards of the first rows whose loss is asked for and the scale of the terms they
            are differences of.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.at_start: Callable[[Sequence[float], float], None] | None = None

    def group(self, row: Row) -> hf.PromptGroup:
        """The prompt with its answer."""
        return hf.PromptGroup(row["prompt_ids"], (row["completion_ids"],))

    def totals(self, rows: Sequence[Row], ask: Ask) -> dict[str, float]:
        """Number of rows, and of those that are good."""
        return {"rows": len(rows), "good": sum(row["label"] > 0 for row in rows)}

    def rewards(self, logps: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """(rows,): beta times the log-ratio of policy and reference."""
        known = [row["ref_completion_logps"] for row in rows]
        return self.beta * (logps - torch.tensor(known, dtype=logps.dtype, device=logps.device))

    def losses(self, rewards: torch.Tensor, good: torch.Tensor, point: float) -> torch.Tensor:
        """(rows,): the loss of each answer. ``point``: the reward that is neither good nor bad."""
        raise NotImplementedError

    def point(self, totals: Mapping[str, float]) -> float:
        """The reward that is neither good nor bad."""
        raise NotImplementedError

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Any], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """Mean over all rows of the optimizer step."""
        sums = logps.sums()
        rewards = self.rewards(sums, rows)
        good = torch.tensor([row["label"] > 0 for row in rows], device=sums.device)
        point = self.point(totals)
        loss = self.losses(rewards, good, point).sum() / max(totals["rows"], 1)
        seen, sums = rewards.detach(), sums.detach()
        check, self.at_start = self.at_start, None
        if check is not None:
            check(seen.tolist(), self.beta * max(1.0, float(sums.abs().max())))
        return hf.ObjectiveLoss(loss, self._measured(seen, sums, good, totals, point))

    def logged(self, point: float) -> dict[str, float]:
        """What the log calls the point of reference."""
        raise NotImplementedError

    def _measured(
        self,
        rewards: torch.Tensor,
        logps: torch.Tensor,
        good: torch.Tensor,
        totals: Mapping[str, float],
        point: float,
    ) -> dict[str, tuple[Any, float]]:
        # Of the whole step's numbers each part gives its share.
        share = len(rewards) / max(totals["rows"], 1)
        kinds = {"chosen": (good, totals["good"]), "rejected": (~good, totals["rows"] - totals["good"])}
        made: dict[str, tuple[Any, float]] = {
            name: (value * share, share) for name, value in self.logged(point).items()
        }
        # Which names there are must not depend on the process: only the whole step's numbers decide.
        for kind, (which, count) in kinds.items():
            if count:
                here = float(which.sum())
                made[f"rewards/{kind}"] = (rewards[which].sum(), here)
                made[f"logps/{kind}"] = (logps[which].sum(), here)
        if all(count for _, count in kinds.values()):
            of_good, of_bad = (rewards[which].sum() / count for which, count in kinds.values())
            made["rewards/margins"] = (of_good - of_bad, share)
        above = rewards - point
        right = torch.where(good, above > 0, above < 0).float() + 0.5 * (above == 0).float()
        made["rewards/accuracies"] = (right.sum(), float(len(rewards)))
        return made


class KtoObjective(UnpairedObjective):
    """KTO (arXiv:2402.01306, eq. 7) and APO-zero on unpaired answers (arXiv:2408.06266).

    The point of reference of ``kto`` is beta times an estimate of the divergence of policy and reference: the mean
    log-ratio, 0 if it is negative, of the prompts of the optimizer step with answers to other prompts of it. It has no
    gradient, and does not depend on how the step is divided into micro-batches.
    """

    def __init__(self, beta: float, loss_type: str, desirable_weight: float, undesirable_weight: float) -> None:
        super().__init__(beta)
        self.anchored = loss_type == "apo_zero_unpaired"
        self.weights = desirable_weight, undesirable_weight
        self.sets: Mapping[bool, Sequence[Row]] = {}
        """Training rows (False) and held-out rows (True)."""
        self.mismatched: dict[Pair, float] = {}
        """Summed log-probability of answers to other prompts, under the reference."""

    def pairs(self, rows: Sequence[Row]) -> list[Pair]:
        """The mismatched pairs of an optimizer step of ``rows``."""
        if self.anchored or not rows:
            return []
        held_out = bool(rows[0]["held_out"])
        numbers = [int(row["number"]) for row in rows]
        return [Pair(held_out, *pair) for pair in mismatched(numbers, self.sets[held_out])]

    def pair_group(self, pair: Pair) -> hf.PromptGroup:
        """The prompt of one row with the answer of another."""
        rows = self.sets[pair.held_out]
        return hf.PromptGroup(rows[pair.prompt]["prompt_ids"], (rows[pair.answer]["completion_ids"],))

    def totals(self, rows: Sequence[Row], ask: Ask) -> dict[str, float]:
        """Besides the numbers of rows, the log-ratios of the mismatched pairs and their number."""
        made = super().totals(rows, ask)
        if self.anchored:
            return made
        pairs = self.pairs(rows)
        logps = ask([self.pair_group(pair) for pair in pairs])
        known = torch.tensor([self.mismatched[pair] for pair in pairs], dtype=torch.float64)
        return {**made, "divergence": float((logps.double() - known).sum()), "pairs": len(pairs)}

    def point(self, totals: Mapping[str, float]) -> float:
        """Beta times the estimate of the divergence."""
        return 0.0 if self.anchored else self.beta * max(0.0, totals["divergence"] / max(totals["pairs"], 1))

    def logged(self, point: float) -> dict[str, float]:
        """``kl``, in nats per answer."""
        return {} if self.anchored else {"kl": point / self.beta}

    def losses(self, rewards: torch.Tensor, good: torch.Tensor, point: float) -> torch.Tensor:
        """One minus the value of each answer, times the weight of its kind."""
        above = rewards - point
        desirable, undesirable = self.weights
        return torch.where(good, desirable * (1 - sigmoid(above)), undesirable * (1 - sigmoid(-above)))


class PairGroups(Sequence[hf.PromptGroup]):
    """Mismatched pairs as groups; each is made when it is looked at: there are rows times epochs of them."""

    def __init__(self, objective: KtoObjective, pairs: Sequence[Pair]) -> None:
        self._objective, self._pairs = objective, pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._objective.pair_group(pair) for pair in self._pairs[number]]
        return self._objective.pair_group(self._pairs[number])


class BcoObjective(UnpairedObjective):
    """BCO (arXiv:2404.04656, eq. 8): cross-entropy of a classifier whose logit is the reward less a shift.

    The shift is the mean reward of all training rows so far, those of the optimizer step included; it has no gradient.
    All answers count alike in it, as in the trainer that TRL had; where good and bad ones are equally many, that is the
    mean of the means of both kinds.
    """

    def __init__(self, beta: float) -> None:
        super().__init__(beta)
        self.before = (0.0, 0.0)
        """Sum of the rewards, and number of rows, of the optimizer steps before this one."""
        self.now = (0.0, 0.0)
        """Those of this one."""

    @property
    def seen(self) -> tuple[float, float]:
        """Sum of the rewards, and number of rows, so far."""
        return self.before[0] + self.now[0], self.before[1] + self.now[1]

    def totals(self, rows: Sequence[Row], ask: Ask) -> dict[str, float]:
        """Besides the numbers of rows, the sum of the rewards of training rows and their number."""
        self.before, self.now = self.seen, (0.0, 0.0)
        learned = [row for row in rows if not row["held_out"]]
        rewards = self.rewards(ask([self.group(row) for row in learned]), learned)
        return {**super().totals(rows, ask), "learned": len(learned), "reward": float(rewards.double().sum())}

    def point(self, totals: Mapping[str, float]) -> float:
        """The shift."""
        if totals["learned"]:
            self.now = totals["reward"], totals["learned"]
        summed, count = self.seen
        return summed / max(count, 1)

    def logged(self, point: float) -> dict[str, float]:
        """``rewards/shift``."""
        return {"rewards/shift": point}

    def losses(self, rewards: torch.Tensor, good: torch.Tensor, point: float) -> torch.Tensor:
        """Cross-entropy of each answer's label."""
        above = rewards - point
        return -logsigmoid(torch.where(good, above, -above))


class KeptShift(TrainerCallback, ExportableState):
    """Keeps the shift of BCO in checkpoints, and takes it up again."""

    def __init__(self, objective: BcoObjective) -> None:
        self.objective = objective

    def state(self) -> dict[str, Any]:
        """What is written to ``trainer_state.json``."""
        summed, count = self.objective.seen
        return {"args": {}, "attributes": {"reward": summed, "rows": count}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and kept is not None:
            known = kept["attributes"]
            self.objective.before, self.objective.now = (known["reward"], known["rows"]), (0.0, 0.0)


class Pair(NamedTuple):
    """Row numbers: a prompt with the answer to another."""

    held_out: bool
    prompt: int
    answer: int


def mismatched(step: Sequence[int], rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(prompt, answer) row numbers: each prompt of a step with the answer of the row before it in the step, the first
    with that of the last; with the nearest one before that has another prompt where that is the same.

    The answers of all ``rows`` are taken where a step has one prompt only. A prompt without any other gets no pair.
    """
    prompts = {number: rows[number]["prompt_ids"] for number in step}
    made: list[tuple[int, int]] = []
    for place, number in enumerate(step):
        own = prompts[number]
        near = (step[place - back] for back in range(1, len(step)))
        answer = next((other for other in near if prompts[other] != own), None)
        if answer is None:
            far = ((number - back) % len(rows) for back in range(1, len(rows)))
            answer = next((other for other in far if rows[other]["prompt_ids"] != own), None)
        if answer is not None:
            made.append((number, answer))
    return made


def pairwise_accuracy(rewards: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Share of the pairs of a good and a bad answer in which the good one has the higher reward; ties count half. The
    area under the ROC curve (Mann and Whitney 1947). None if there is no such pair."""
    good = sorted(reward for reward, label in zip(rewards, labels, strict=True) if label)
    bad = sorted(reward for reward, label in zip(rewards, labels, strict=True) if not label)
    if not good or not bad:
        return None
    won = below = upto = 0
    for reward in good:
        while below < len(bad) and bad[below] < reward:
            below += 1
        while upto < len(bad) and bad[upto] <= reward:
            upto += 1
        won += below + upto
    return won / (2 * len(good) * len(bad))
