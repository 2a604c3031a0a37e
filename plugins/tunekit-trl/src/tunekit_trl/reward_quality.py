"""How good rewards are on rows that were not learned: accuracy, and whether a difference means what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["calibration", "compared_quality", "rated_quality", "spread"]

Row = Mapping[str, Any]

_BINS = 10
_NEAREST = 1e-12


def calibration(chances: Sequence[float], right: Sequence[bool], weights: Sequence[float] | None = None) -> Any:
    """Whether things that are given a chance of x happen x of the time.

    A chance below a half is read as that of the contrary, so that confidences go from 0.5 to 1; they are put into ten
    bins of equal width.

    Args:
        chances: of each thing.
        right: whether it happened.
        weights: of each thing; None: 1.

    Returns:
        ``ece``, the expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean over the things of how far
        apart confidence and frequency are in their bin; ``brier``; ``log_loss``; and ``bins`` with ``low``, ``high``,
        ``count`` (weights added up), ``expected`` (mean confidence) and ``seen`` (share that happened).
    """
    p = np.asarray(chances, dtype=np.float64)
    happened = np.asarray(right, dtype=bool)
    weight = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
    total = float(weight.sum())
    turned = p < 0.5
    confidence = np.where(turned, 1 - p, p)
    hit = np.where(turned, ~happened, happened).astype(np.float64)
    # Undecided is neither right nor wrong.
    hit = np.where(p == 0.5, 0.5, hit)
    number = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins = []
    error = 0.0
    for at in range(_BINS):
        inside = number == at
        share = float(weight[inside].sum())
        if share == 0:
            continue
        expected = float((weight * confidence)[inside].sum() / share)
        seen = float((weight * hit)[inside].sum() / share)
        error += share / total * abs(expected - seen)
        bins.append(
            {
                "low": 0.5 + at / (2 * _BINS),
                "high": 0.5 + (at + 1) / (2 * _BINS),
                "count": share,
                "expected": expected,
                "seen": seen,
            }
        )
    truth = happened.astype(np.float64)
    likely = np.clip(np.where(happened, p, 1 - p), _NEAREST, 1)
    return {
        "ece": error,
        "brier": float((weight * (p - truth) ** 2).sum() / total),
        "log_loss": float(-(weight * np.log(likely)).sum() / total),
        "bins": bins,
    }


def compared_quality(rewards: Sequence[Sequence[float]], rows: Sequence[Row]) -> dict[str, Any]:
    """Of pairs and lists: ``accuracy``, the share of pairs in which the better answer has the higher reward, each row
    counted once; ``margin``, the mean difference; ``expected_win_rate``, what the rewards make of it; for lists
    ``best_first``, the share in which a best answer has the highest reward; and :func:`calibration`.

    Args:
        rewards: of the answers of each row.
        rows: with ``pairs`` and ``ranks``.
    """
    differences, weights = [], []
    best = 0
    for own, row in zip(rewards, rows, strict=True):
        for better, worse, _ in row["pairs"]:
            differences.append(own[better] - own[worse])
            weights.append(1 / len(row["pairs"]))
        best += row["ranks"][max(range(len(own)), key=own.__getitem__)] == min(row["ranks"])
    difference, weight = np.asarray(differences), np.asarray(weights)
    total = float(weight.sum())
    chances = _sigmoid(difference)
    made = {
        "rows": len(rows),
        "pairs": len(differences),
        "accuracy": float((weight * (difference > 0)).sum() / total),
        "margin": float((weight * difference).sum() / total),
        "expected_win_rate": float((weight * np.maximum(chances, 1 - chances)).sum() / total),
        # The better answer stands first in every pair: whether the order is known must not follow from that.
        **calibration(chances.tolist(), [True] * len(differences), weights),
    }
    if any(len(own) > 2 for own in rewards):
        made["best_first"] = best / len(rows)
    return made


def rated_quality(rewards: Sequence[float], scores: Sequence[float], objective: str) -> dict[str, Any]:
    """Of ratings: ``rmse`` and ``mae`` in units of ``scores``, given ``rewards`` in these units, ``rmse_of_mean`` (what
    their mean alone would give), ``pearson`` and ``spearman``. Of thumbs (``logistic``): ``accuracy``,
    ``accuracy_of_majority`` and :func:`calibration`. A correlation with a constant is None."""
    own, truth = np.asarray(rewards, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if objective == "logistic":
        good = truth > 0.5
        share = float(good.mean())
        return {
            "rows": len(truth),
            "accuracy": float(((own > 0) == good).mean()),
            "accuracy_of_majority": max(share, 1 - share),
            **calibration(_sigmoid(own).tolist(), good.tolist()),
        }
    return {
        "rows": len(truth),
        "rmse": float(np.sqrt(((own - truth) ** 2).mean())),
        "mae": float(np.abs(own - truth).mean()),
        "rmse_of_mean": float(truth.std()),
        "pearson": _correlation(own, truth),
        "spearman": _correlation(_ranks(own), _ranks(truth)),
    }


def spread(rewards: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; a deviation of 0 becomes 1."""
    values = np.asarray(rewards, dtype=np.float64)
    return float(values.mean()), float(values.std()) or 1.0


def _sigmoid(values: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -values))


def _correlation(left: Any, right: Any) -> float | None:
    if left.std() == 0 or right.std() == 0:
        return None
    made = float(np.corrcoef(left, right)[0, 1])
    return made if math.isfinite(made) else None


def _ranks(values: Any) -> Any:
    """Ranks, ties at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
