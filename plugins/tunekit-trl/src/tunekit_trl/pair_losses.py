"""Losses of pairs of completions, from their log-probabilities. Sources stand at each function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

__all__ = ["PAIR_LOSSES", "PairTerms", "log_odds", "shaped_reward"]


@dataclass(frozen=True)
class PairTerms:
    """Of some pairs, all tensors (pairs,)."""

    chosen: Any
    """Log-probability of the chosen completion under the policy minus that under the reference, summed over tokens."""
    rejected: Any
    """The same of the rejected completion."""
    chosen_tokens: Any
    """Tokens of the chosen completion."""
    rejected_tokens: Any
    """Tokens of the rejected completion."""
    beta: float
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05
    f_divergence: str = "reverse_kl"
    f_alpha: float = 0.5
    offsets: Any = 0.0
    """What the chosen reward must be above the rejected one by, (pairs,) or a number."""

    def scores(self) -> tuple[Any, Any]:
        """Chosen and rejected log-ratios as the divergence sees them: f'(u) of u = policy / reference, up to a constant
        (Wang et al. 2023, arXiv:2309.16240, table 1). The reverse KL divergence leaves them as they are."""
        return self._score(self.chosen), self._score(self.rejected)

    def _score(self, ratio: Any) -> Any:
        if self.f_divergence == "reverse_kl":
            return ratio
        if self.f_divergence == "forward_kl":
            return -torch.exp(_bounded(-ratio))
        if self.f_divergence == "js_divergence":
            return logsigmoid(ratio)
        # Generator (u^(1-a) - (1-a) u - a) / (a (a-1)); its derivative is (1 - u^-a) / a.
        return -torch.expm1(_bounded(-self.f_alpha * ratio)) / self.f_alpha

    def logits(self) -> Any:
        """Difference of the scores, times beta."""
        chosen, rejected = self.scores()
        return self.beta * (chosen - rejected)

    def mean_scores(self) -> tuple[Any, Any]:
        """Scores over the number of tokens."""
        chosen, rejected = self.scores()
        return chosen / self.chosen_tokens.clamp(min=1), rejected / self.rejected_tokens.clamp(min=1)


def _bounded(exponent: Any) -> Any:
    """float32 holds no more than e^88, and infinity minus infinity is no number."""
    return exponent.clamp(max=80)


def _sigmoid(x: PairTerms) -> Any:
    """Rafailov et al. 2023, arXiv:2305.18290, eq. 7; with offsets Amini et al. 2024, arXiv:2402.10571, eq. 8."""
    return -logsigmoid(x.logits() - x.offsets)


def _sigmoid_norm(x: PairTerms) -> Any:
    """The same on log-ratios averaged over the tokens (Lambert et al. 2024, arXiv:2411.15124, eq. 6)."""
    chosen, rejected = x.mean_scores()
    return -logsigmoid(x.beta * (chosen - rejected))


def _hinge(x: PairTerms) -> Any:
    """Zhao et al. 2023, arXiv:2305.10425, with log-ratios in place of log-probabilities; margin 1 / beta."""
    return torch.relu(1 - x.logits())


def _ipo(x: PairTerms) -> Any:
    """Azar et al. 2023, arXiv:2310.12036, eq. 17; beta is tau. On means over the tokens, as its authors did."""
    chosen, rejected = x.mean_scores()
    return (chosen - rejected - 1 / (2 * x.beta)) ** 2


def _robust(x: PairTerms) -> Any:
    """Chowdhury et al. 2024, arXiv:2403.00409, eq. 12; label_smoothing is the share of flipped labels."""
    logits, flipped = x.logits(), x.label_smoothing
    return (flipped * logsigmoid(-logits) - (1 - flipped) * logsigmoid(logits)) / (1 - 2 * flipped)


def _exo_pair(x: PairTerms) -> Any:
    """Ji et al. 2024, arXiv:2402.00856, eq. 16: KL from the policy's preference to (1 - e, e); e = label_smoothing."""
    logits = x.logits()
    first, second = logsigmoid(logits), logsigmoid(-logits)
    right, wrong = math.log1p(-x.label_smoothing), math.log(x.label_smoothing)
    return first.exp() * (first - right) + second.exp() * (second - wrong)


def _nca_pair(x: PairTerms) -> Any:
    """Chen et al. 2024, arXiv:2402.05369, noise contrastive alignment of two answers."""
    chosen, rejected = x.beta * x.chosen, x.beta * x.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _bco_pair(x: PairTerms) -> Any:
    """Jung et al. 2024, arXiv:2404.04656, binary classifier without its reward shift."""
    return -logsigmoid(x.beta * x.chosen) - logsigmoid(-x.beta * x.rejected)


def _apo_zero(x: PairTerms) -> Any:
    """D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7."""
    return torch.sigmoid(-x.beta * x.chosen) + torch.sigmoid(x.beta * x.rejected)


def _apo_down(x: PairTerms) -> Any:
    """D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8."""
    return torch.sigmoid(x.beta * x.chosen) + torch.sigmoid(-x.beta * (x.chosen - x.rejected))


def _sppo_hard(x: PairTerms) -> Any:
    """Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with probabilities 1 and 0; beta is 1 / eta."""
    half = 0.5 / x.beta
    return (x.chosen - half) ** 2 + (x.rejected + half) ** 2


def _discopop(x: PairTerms) -> Any:
    """Lu et al. 2024, arXiv:2406.08414, eq. 5: logistic and exponential loss, mixed by the margin."""
    logits = x.logits()
    mixed = torch.sigmoid(logits / x.discopop_tau)
    return -logsigmoid(logits) * (1 - mixed) + torch.exp(_bounded(-logits)) * mixed


PAIR_LOSSES: Mapping[str, Callable[[PairTerms], Any]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "sppo_hard": _sppo_hard,
    "discopop": _discopop,
}
"""Name to loss: (pairs,) each."""


def log_odds(mean_logps: Any) -> Any:
    """Logarithm of the odds p / (1 - p) of the probability whose logarithm is given; finite where p rounds to 1."""
    logps = mean_logps.clamp(max=-1e-6)
    return logps - torch.log(-torch.expm1(logps))


def shaped_reward(mean_logps: Any, alpha: float) -> Any:
    """The reward (1 - p^-alpha) / alpha of AlphaPO (Gupta et al. 2025, arXiv:2501.03884, eq. 9); log p for alpha 0."""
    return mean_logps if alpha == 0 else -torch.expm1(-alpha * mean_logps) / alpha
