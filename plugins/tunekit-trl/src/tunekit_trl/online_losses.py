"""Advantages of completions within their group, and the losses on them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from tunekit.plugins import hf

__all__ = [
    "GrpoObjective",
    "OnlineDpoObjective",
    "OnlineObjective",
    "RlooObjective",
    "Rollout",
    "group_advantages",
    "leave_one_out",
]

Row = Mapping[str, Any]
Totals = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Sums over all processes."""

_EPS = 1e-4
"""Added to standard deviations, as in TRL."""


@dataclass
class Rollout:
    """The completions of one prompt."""

    prompt_ids: Sequence[int]
    completions: list[Sequence[int]]
    finished: list[bool]
    """Whether the model ended each."""
    rewards: list[float]
    """Of each, penalties included."""
    counts: bool = True
    """False: it only keeps processes in step, and nothing of it is learned."""
    old: Any = None
    """(tokens,) float32 on the CPU: log-probabilities of the tokens of all completions under the policy that wrote
    them; None: not asked for."""
    ref: Any = None
    """As ``old``, under the reference."""
    further: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> hf.PromptGroup:
        """What is put to the model."""
        return hf.PromptGroup(self.prompt_ids, self.completions)

    def sums(self, logps: Any) -> list[float]:
        """Log-probabilities of the completions out of those of their tokens."""
        return [float(part.sum()) for part in logps.split([len(made) for made in self.completions])]


def group_advantages(groups: Sequence[Sequence[float]], scale: str, spread: float | None = None) -> list[list[float]]:
    """Rewards less the mean of their group, divided as ``scale`` says (``group``, ``batch``, ``none``).

    Standard deviations are of a sample (divided by n - 1). ``spread``: that of all rewards, for ``batch``.
    """
    made = []
    for rewards in groups:
        mean = statistics.fmean(rewards)
        divisor = 1.0
        if scale == "group":
            divisor = statistics.stdev(rewards) + _EPS
        elif scale == "batch":
            assert spread is not None
            divisor = spread + _EPS
        made.append([(reward - mean) / divisor for reward in rewards])
    return made


def leave_one_out(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """Rewards less the mean of the others of their group."""
    return [[reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards] for rewards in groups]


class OnlineObjective:
    """What the losses share: an :class:`tunekit.plugins.hf.Objective` on rows that rollouts were made into.

    Until completions are written, a row stands for itself with its own beginning as a completion.
    """

    needs_old = False
    """Whether log-probabilities under the policy that writes are needed besides those of the update."""
    needs_ref = False
    reuses = False
    """Whether completions serve more than one update."""

    def group(self, row: Row) -> hf.PromptGroup:
        """The prompt with its completions."""
        made = row.get("completions")
        prompt = row["prompt_ids"]
        return hf.PromptGroup(prompt, [prompt[:8], prompt[:5]] if made is None else made)

    def choose(self, rollout: Rollout) -> Rollout:
        """What of the completions is put to policy and reference."""
        return rollout

    def rows(self, rollouts: Sequence[Rollout], everywhere: Totals) -> list[dict[str, Any]]:
        """What is learned from the completions of an optimizer step."""
        raise NotImplementedError

    def totals(self, rows: Sequence[Row], ask: Any) -> Mapping[str, float]:
        """Completions, and tokens of those that are learned from."""
        kept = [(made, keep) for row in rows for made, keep in zip(row["completions"], row["kept"], strict=True)]
        return {"completions": float(len(kept)), "tokens": sum(len(made) * keep for made, keep in kept)}

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """The rows' part of the loss."""
        raise NotImplementedError

    def _writer(self, flat: _Flat, values: Any) -> Any:
        """(tokens,): log-probabilities under the policy that wrote them. With one update that is this one: those of
        another pass would differ by rounding, and the ratio would not be 1."""
        return flat.tokens("old", values.detach()) if self.reuses else values.detach()

    def _row(self, rollout: Rollout, advantages: Sequence[float], kept: Sequence[float]) -> dict[str, Any]:
        return {
            "prompt_ids": list(rollout.prompt_ids),
            "completions": [list(made) for made in rollout.completions],
            "advantages": list(advantages),
            "kept": list(kept),
            "old": rollout.old,
            "ref": rollout.ref,
            "counts": rollout.counts,
        }


class GrpoObjective(OnlineObjective):
    """The losses of :class:`tunekit_trl.online_options.GrpoOptions`."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.reuses = self.needs_old = options.num_iterations > 1
        self.needs_ref = options.beta > 0
        self.low = options.epsilon
        self.high = options.epsilon if options.epsilon_high is None else options.epsilon_high

    def rows(self, rollouts: Sequence[Rollout], everywhere: Totals) -> list[dict[str, Any]]:
        """Advantages within groups."""
        spread = None
        if self.options.scale_rewards == "batch":
            rewards = [reward for rollout in rollouts if rollout.counts for reward in rollout.rewards]
            spread = _spread(rewards, everywhere)
        found = group_advantages([rollout.rewards for rollout in rollouts], self.options.scale_rewards, spread)
        mask = self.options.mask_truncated_completions
        return [
            self._row(rollout, advantages, [float(ended or not mask) for ended in rollout.finished])
            for rollout, advantages in zip(rollouts, found, strict=True)
        ]

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """Per token, then over the rows as ``loss_type`` says."""
        options = self.options
        values = logps.logps
        flat = _Flat(logps, rows)
        advantages = flat.per_token("advantages")
        kept = flat.per_token("kept")
        ratio_log = values - self._writer(flat, values)
        if options.importance_sampling_level == "sequence":
            ratio_log = flat.means(ratio_log)[flat.owner]
        ratio = ratio_log.exp()
        measured: dict[str, tuple[Any, float]] = {}
        if options.loss_type == "cispo":
            losses = -ratio.clamp(max=self.high).detach() * advantages * values
            measured["clip_ratio"] = (((ratio > self.high) & (advantages > 0)).detach() * kept, 0.0)
        elif options.loss_type == "sapo":
            steep = torch.where(advantages > 0, options.sapo_temperature_pos, options.sapo_temperature_neg)
            losses = -torch.sigmoid(steep * (ratio - 1)) * 4 / steep * advantages
        else:
            clipped = ratio.clamp(1 - self.low, 1 + self.high)
            limited = ratio if options.delta is None else ratio.clamp(max=options.delta)
            losses = -torch.min(limited * advantages, clipped * advantages)
            beyond = ((ratio < 1 - self.low) & (advantages < 0)) | ((ratio > 1 + self.high) & (advantages > 0))
            measured["clip_ratio"] = (beyond.detach() * kept, 0.0)
        if options.beta > 0:
            away = flat.tokens("ref", None) - values
            # Schulman's estimator k3: never negative, and without bias.
            kl = away.exp() - away - 1
            losses = losses + options.beta * (kl * ratio if options.use_bias_correction_kl else kl)
            measured["kl"] = (kl.detach() * kept, 0.0)
        if logps.entropy is not None:
            measured["entropy"] = (logps.entropy.detach() * kept, 0.0)
        losses = losses * kept
        if options.loss_type in ("grpo", "sapo"):
            loss = flat.means(losses).sum() / max(totals["completions"], 1.0)
        elif options.loss_type == "dr_grpo":
            loss = losses.sum() / (max(totals["completions"], 1.0) * options.max_new_tokens)
        elif options.loss_type == "luspo":
            loss = losses.sum() / max(totals["completions"], 1.0)
        else:
            loss = losses.sum() / max(totals["tokens"], 1.0)
        tokens = float(kept.sum())
        return hf.ObjectiveLoss(loss, {name: (value.sum(), tokens) for name, (value, _) in measured.items()})


class RlooObjective(OnlineObjective):
    """The loss of :class:`tunekit_trl.online_options.RlooOptions`."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.needs_ref = options.beta > 0
        self.reuses = options.num_iterations > 1
        self.needs_old = self.reuses or self.needs_ref
        self.low = options.epsilon
        self.high = options.epsilon if options.epsilon_high is None else options.epsilon_high

    def rows(self, rollouts: Sequence[Rollout], everywhere: Totals) -> list[dict[str, Any]]:
        """Rewards less the divergence, less the mean of the others."""
        options = self.options
        groups = []
        for rollout in rollouts:
            rewards = list(rollout.rewards)
            if options.reward_clip_range is not None:
                low, high = options.reward_clip_range
                rewards = [min(max(reward, low), high) for reward in rewards]
            if self.needs_ref:
                away = rollout.sums(rollout.old - rollout.ref)
                rollout.further["kl"] = away
                rewards = [reward - options.beta * kl for reward, kl in zip(rewards, away, strict=True)]
            groups.append(rewards)
        found = leave_one_out(groups)
        if options.normalize_advantages:
            counted = [value for made, rollout in zip(found, rollouts, strict=True) if rollout.counts for value in made]
            sums = everywhere({"sum": sum(counted), "count": float(len(counted))})
            mean = sums["sum"] / max(sums["count"], 1.0)
            spread = _spread(counted, everywhere) + _EPS
            found = [[(value - mean) / spread for value in made] for made in found]
        return [
            self._row(rollout, made, [1.0] * len(made)) | {"kl": rollout.further.get("kl")}
            for rollout, made in zip(rollouts, found, strict=True)
        ]

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """Mean over completions."""
        flat = _Flat(logps, rows)
        values = logps.logps
        ratio = flat.sums(values - self._writer(flat, values)).exp()
        advantages = flat.per_completion("advantages")
        clipped = ratio.clamp(1 - self.low, 1 + self.high)
        losses = -torch.min(ratio * advantages, clipped * advantages)
        count = float(len(losses))
        beyond = ((ratio < 1 - self.low) & (advantages < 0)) | ((ratio > 1 + self.high) & (advantages > 0))
        measured: dict[str, tuple[Any, float]] = {"clip_ratio": (beyond.float().sum(), count)}
        if rows[0].get("kl") is not None:
            measured["kl"] = (flat.per_completion("kl").sum(), float(sum(logps.lengths)))
        if logps.entropy is not None:
            measured["entropy"] = (logps.entropy.detach().sum(), float(len(logps.entropy)))
        return hf.ObjectiveLoss(losses.sum() / max(totals["completions"], 1.0), measured)


class OnlineDpoObjective(OnlineObjective):
    """The loss of :class:`tunekit_trl.online_options.OnlineDpoOptions`."""

    needs_ref = True

    def __init__(self, options: Any) -> None:
        self.options = options

    def choose(self, rollout: Rollout) -> Rollout:
        """The best completion and the worst; the first of those that are equal."""
        rewards = rollout.rewards
        best = max(range(len(rewards)), key=lambda number: rewards[number])
        worst = min(range(len(rewards)), key=lambda number: rewards[number])
        if best == worst:
            worst = (best + 1) % len(rewards)
        pair = (best, worst)
        return Rollout(
            rollout.prompt_ids,
            [rollout.completions[number] for number in pair],
            [rollout.finished[number] for number in pair],
            [rewards[number] for number in pair],
            rollout.counts,
        )

    def rows(self, rollouts: Sequence[Rollout], everywhere: Totals) -> list[dict[str, Any]]:
        """Pairs; one whose rewards are equal is not learned."""
        return [
            self._row(rollout, rollout.rewards, [1.0, 1.0])
            | {"differ": float(rollout.rewards[0] > rollout.rewards[1]), "ref_sums": rollout.sums(rollout.ref)}
            for rollout in rollouts
        ]

    def totals(self, rows: Sequence[Row], ask: Any) -> Mapping[str, float]:
        """Pairs that are learned from."""
        return {"pairs": float(sum(row["differ"] for row in rows))}

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """Mean over pairs."""
        beta = self.options.beta
        device = logps.logps.device
        reference = torch.tensor([row["ref_sums"] for row in rows], device=device)
        weights = torch.tensor([row["differ"] for row in rows], device=device)
        ratios = logps.sums().view(-1, 2) - reference
        if self.options.loss_type == "ipo":
            lengths = torch.tensor(logps.lengths, device=device, dtype=torch.float32).view(-1, 2)
            scaled = ratios / lengths.clamp(min=1)
            losses = (scaled[:, 0] - scaled[:, 1] - 1 / (2 * beta)) ** 2
        else:
            losses = -logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))
        rewards = beta * ratios.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        count = float(weights.sum())
        measured: dict[str, tuple[Any, float]] = {
            "rewards/chosen": ((rewards[:, 0] * weights).sum(), count),
            "rewards/rejected": ((rewards[:, 1] * weights).sum(), count),
            "rewards/margins": ((margins * weights).sum(), count),
            "rewards/accuracies": (((margins > 0).float() * weights).sum(), count),
            "pairs": (weights.sum(), float(len(rows))),
        }
        if logps.entropy is not None:
            measured["entropy"] = (logps.entropy.detach().sum(), float(len(logps.entropy)))
        return hf.ObjectiveLoss((losses * weights).sum() / max(totals["pairs"], 1.0), measured)


class _Flat:
    """Values of rows beside the log-probabilities of all their completions' tokens, one after the other."""

    def __init__(self, logps: hf.CompletionLogps, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.device = logps.logps.device
        self.lengths = torch.tensor(logps.lengths, device=self.device)
        numbers = torch.arange(len(logps.lengths), device=self.device)
        self.owner = torch.repeat_interleave(numbers, self.lengths)
        """(tokens,): number of the completion that each token is of."""

    def per_completion(self, name: str) -> Any:
        """(completions,)"""
        return torch.tensor([value for row in self._rows for value in row[name]], device=self.device)

    def per_token(self, name: str) -> Any:
        """(tokens,): the completion's value at each of its tokens."""
        return self.per_completion(name)[self.owner]

    def tokens(self, name: str, default: Any) -> Any:
        """(tokens,) of what rows hold for each token; ``default`` where they hold nothing."""
        if self._rows[0].get(name) is None:
            return default
        return torch.cat([row[name] for row in self._rows]).to(self.device)

    def sums(self, values: Any) -> Any:
        """(completions,): sums over their tokens."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.owner, values)

    def means(self, values: Any) -> Any:
        """(completions,): means over their tokens."""
        return self.sums(values) / self.lengths.clamp(min=1)


def _spread(values: Sequence[float], everywhere: Totals) -> float:
    """Standard deviation (n - 1) of values of all processes."""
    sums = everywhere({"sum": sum(values), "count": float(len(values))})
    count = sums["count"]
    if count < 2:
        return 0.0
    mean = sums["sum"] / count
    squares = everywhere({"squares": sum((value - mean) ** 2 for value in values)})["squares"]
    return float((squares / (count - 1)) ** 0.5)
