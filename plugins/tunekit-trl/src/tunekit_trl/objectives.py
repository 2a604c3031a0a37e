"""Objectives on pairs: what is put to the model, the loss of an optimizer step, and what is logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import logsigmoid

from tunekit.plugins import hf
from tunekit_trl.pair_losses import PAIR_LOSSES, PairTerms, log_odds, shaped_reward

__all__ = ["CpoObjective", "DpoObjective", "OrpoObjective", "PairObjective", "REWARDS"]

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
"""Names in the log."""

Row = Mapping[str, Any]


class Sides(NamedTuple):
    """Summed log-probabilities and numbers of tokens of some pairs, (pairs,) each."""

    chosen: Any
    rejected: Any
    chosen_tokens: Any
    rejected_tokens: Any

    def means(self) -> tuple[Any, Any]:
        """Mean log-probability of a token, chosen and rejected."""
        return self.chosen / self.chosen_tokens.clamp(min=1), self.rejected / self.rejected_tokens.clamp(min=1)


class PairObjective:
    """Base: rows hold ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``.

    The loss of an optimizer step is the mean over all of its pairs; a term of the likelihood of the chosen answers is
    the mean over all of their tokens.
    """

    def group(self, row: Row) -> hf.PromptGroup:
        """The two completions of a prompt."""
        return hf.PromptGroup(row["prompt_ids"], (row["chosen_ids"], row["rejected_ids"]))

    def totals(self, rows: Sequence[Row], ask: Any) -> Mapping[str, float]:
        """Pairs and tokens of chosen completions."""
        return {"pairs": len(rows), "chosen_tokens": sum(map(self.chosen_tokens, rows))}

    def chosen_tokens(self, row: Row) -> int:
        """Tokens of the chosen side that have a log-probability."""
        prompt, (chosen, _) = self.group(row)
        return len(chosen) - (not prompt)

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """As :class:`tunekit.plugins.hf.Objective` says."""
        raise NotImplementedError

    @staticmethod
    def sides(logps: hf.CompletionLogps) -> Sides:
        """The completions, chosen and rejected taking turns."""
        sums = logps.sums()
        tokens = torch.tensor(logps.lengths, device=sums.device, dtype=sums.dtype)
        return Sides(sums[::2], sums[1::2], tokens[::2], tokens[1::2])

    @staticmethod
    def measured(
        logps: hf.CompletionLogps, sides: Sides, chosen: Any, rejected: Any, **further: tuple[Any, float]
    ) -> dict[str, tuple[Any, float]]:
        """For the log: rewards (pairs,) each, log-probabilities, accuracy of the chosen tokens."""
        chosen, rejected, pairs = chosen.detach(), rejected.detach(), float(len(chosen))
        correct = torch.stack([part.sum() for part in logps.correct.split(logps.lengths)])[::2].sum()
        return {
            "rewards/chosen": (chosen.sum(), pairs),
            "rewards/rejected": (rejected.sum(), pairs),
            "rewards/margins": ((chosen - rejected).sum(), pairs),
            "rewards/accuracies": ((chosen > rejected).float().sum(), pairs),
            "logps/chosen": (sides.chosen.detach().sum(), pairs),
            "logps/rejected": (sides.rejected.detach().sum(), pairs),
            "mean_token_accuracy": (correct, float(sum(logps.lengths[::2]))),
            **further,
        }


class DpoObjective(PairObjective):
    """Losses of log-ratios against the reference. Rows also hold ``ref_chosen_logps`` and ``ref_rejected_logps``.

    Args:
        losses: name in ``PAIR_LOSSES``, or ``sft``, to weight.
        beta: see each loss.
        label_smoothing: of ``robust`` and ``exo_pair``.
        discopop_tau: of ``discopop``.
        f_divergence: what holds the policy to the reference.
        f_alpha: of ``alpha_divergence``.
        offset: factor of the rows' ``margin``, in ``sigmoid``.

    Attributes:
        at_start: called once with the rewards of the first pairs whose loss is asked for and the scale of the terms
            they are differences of.
    """

    def __init__(
        self,
        losses: Mapping[str, float],
        beta: float,
        *,
        label_smoothing: float = 0.0,
        discopop_tau: float = 0.05,
        f_divergence: str = "reverse_kl",
        f_alpha: float = 0.5,
        offset: float = 0.0,
    ) -> None:
        self.losses, self.beta, self.offset = dict(losses), beta, offset
        self._settings: dict[str, Any] = {
            "beta": beta,
            "label_smoothing": label_smoothing,
            "discopop_tau": discopop_tau,
            "f_divergence": f_divergence,
            "f_alpha": f_alpha,
        }
        self.at_start: Callable[[Sequence[float], float], None] | None = None

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """The weighted sum of the losses."""
        sides = self.sides(logps)
        reference = torch.tensor(
            [[row["ref_chosen_logps"] for row in rows], [row["ref_rejected_logps"] for row in rows]],
            device=sides.chosen.device,
            dtype=sides.chosen.dtype,
        )
        chosen, rejected = sides.chosen - reference[0], sides.rejected - reference[1]
        offsets = 0.0
        if self.offset:
            offsets = self.offset * torch.tensor([row["margin"] for row in rows], device=chosen.device)
        terms = PairTerms(
            chosen, rejected, sides.chosen_tokens, sides.rejected_tokens, offsets=offsets, **self._settings
        )
        total = torch.zeros((), device=chosen.device)
        for name, weight in self.losses.items():
            if name == "sft":
                total = total - weight * sides.chosen.sum() / max(totals["chosen_tokens"], 1)
            else:
                total = total + weight * PAIR_LOSSES[name](terms).sum() / max(totals["pairs"], 1)
        self._check(chosen, rejected, reference)
        return hf.ObjectiveLoss(total, self.measured(logps, sides, self.beta * chosen, self.beta * rejected))

    def _check(self, chosen: Any, rejected: Any, reference: Any) -> None:
        check, self.at_start = self.at_start, None
        if check is not None:
            rewards = self.beta * torch.cat([chosen, rejected]).detach()
            check(rewards.tolist(), self.beta * max(1.0, float(reference.abs().max())))


class CpoObjective(PairObjective):
    """Losses of the policy's own log-probabilities: CPO (arXiv:2401.08417), SimPO (arXiv:2405.14734), AlphaPO
    (arXiv:2501.03884).

    Args:
        loss: ``sigmoid``, ``hinge`` or ``ipo``.
        beta: factor of the rewards; tau in ``ipo``.
        means: log-probabilities are means over the tokens, not sums.
        gamma: what the chosen reward shall be above the rejected one (``sigmoid`` only).
        label_smoothing: share of pairs that are taken to be the wrong way round (``sigmoid`` only).
        nll: weight of the cross-entropy of the chosen completions.
        alpha: shape of AlphaPO's reward; 0: the log-probability.
    """

    def __init__(
        self,
        loss: str,
        beta: float,
        *,
        means: bool,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        nll: float = 0.0,
        alpha: float = 0.0,
    ) -> None:
        self.kind, self.beta, self.means, self.gamma = loss, beta, means, gamma
        self.label_smoothing, self.nll, self.alpha = label_smoothing, nll, alpha

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """The preference loss plus the weighted cross-entropy."""
        sides = self.sides(logps)
        chosen, rejected = sides.means() if self.means else (sides.chosen, sides.rejected)
        chosen, rejected = shaped_reward(chosen, self.alpha), shaped_reward(rejected, self.alpha)
        margins = chosen - rejected
        if self.kind == "hinge":
            losses = torch.relu(1 - self.beta * margins)
        elif self.kind == "ipo":
            losses = (margins - 1 / (2 * self.beta)) ** 2
        else:
            logits = self.beta * margins - self.gamma
            losses = -logsigmoid(logits) * (1 - self.label_smoothing) - logsigmoid(-logits) * self.label_smoothing
        total = losses.sum() / max(totals["pairs"], 1)
        if self.nll:
            total = total - self.nll * sides.chosen.sum() / max(totals["chosen_tokens"], 1)
        tokens = float(sum(logps.lengths[::2]))
        nll = (-sides.chosen.detach().sum(), tokens)
        return hf.ObjectiveLoss(
            total, self.measured(logps, sides, self.beta * chosen, self.beta * rejected, nll_loss=nll)
        )


class OrpoObjective(PairObjective):
    """Cross-entropy of the chosen text plus the odds ratio (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

    Args:
        beta: the paper's lambda.
        prompts: the cross-entropy is over prompt and completion, as in the authors' code.
    """

    def __init__(self, beta: float, *, prompts: bool) -> None:
        self.beta, self.prompts = beta, prompts

    def group(self, row: Row) -> hf.PromptGroup:
        """With ``prompts``, prompt tokens are asked for as well."""
        if not self.prompts:
            return super().group(row)
        prompt = row["prompt_ids"]
        return hf.PromptGroup((), ([*prompt, *row["chosen_ids"]], [*prompt, *row["rejected_ids"]]))

    def loss(self, logps: hf.CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """The sum of both terms."""
        whole = self.sides(logps)
        own = self._completions(logps, rows) if self.prompts else logps
        sides = self.sides(own)
        chosen, rejected = sides.means()
        odds = log_odds(chosen) - log_odds(rejected)
        ratios = logsigmoid(odds)
        total = -self.beta * ratios.sum() / max(totals["pairs"], 1)
        total = total - whole.chosen.sum() / max(totals["chosen_tokens"], 1)
        pairs = float(len(rows))
        measured = self.measured(
            own,
            sides,
            self.beta * chosen,
            self.beta * rejected,
            nll_loss=(-whole.chosen.detach().sum(), float(whole.chosen_tokens.sum())),
            log_odds_ratio=(ratios.detach().sum(), pairs),
            log_odds_chosen=(odds.detach().sum(), pairs),
        )
        return hf.ObjectiveLoss(total, measured)

    @staticmethod
    def _completions(logps: hf.CompletionLogps, rows: Sequence[Row]) -> hf.CompletionLogps:
        """Without the tokens of the prompts."""
        lengths = [len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
        lengths = [min(length, whole) for length, whole in zip(lengths, logps.lengths, strict=True)]
        parts = [
            [tokens[len(tokens) - length :] for tokens, length in zip(found.split(logps.lengths), lengths, strict=True)]
            for found in (logps.logps, logps.correct)
        ]
        return hf.CompletionLogps(torch.cat(parts[0]), tuple(lengths), torch.cat(parts[1]))
