"""Which alignment method fits what users said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.errors import DataError

__all__ = ["learners", "method_for"]


def learners(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What to write to learn from rows, given shape -> rows, best first; empty where nothing learns from them."""
    found = []
    if rows.get("preference"):
        found.append('align(method="dpo") learns from pairs')
    labels = {bool(row["label"]) for row in rows.get("feedback", ())}
    if len(labels) == 2:
        found.append('align(method="kto") or align(method="bco") from single answers, good and bad ones')
    elif labels == {True}:
        found.append("sft() from good answers")
    if rows.get("rated"):
        found.append("reward() from ratings")
    return found


def method_for(rows: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> tuple[str, str]:
    """``(method, reason)``, given shape -> rows.

    A pair says something about two answers, a thumb about one. ``dpo`` (arXiv 2305.18290) is named where the pairs
    cover at least as many answers as the thumbs do, else ``kto`` (arXiv 2402.01306), which learns from single answers
    but needs good and bad ones.

    Raises:
        DataError: if neither can learn from them.
    """
    pairs = len(rows.get("preference", ()))
    thumbs = rows.get("feedback", ())
    up = sum(bool(row["label"]) for row in thumbs)
    down = len(thumbs) - up
    ratings = len(rows.get("rated", ()))
    shown = f"{pairs:,} preference pairs, {up:,} good and {down:,} bad answers, {ratings:,} ratings"
    if pairs and (2 * pairs >= up + down or not (up and down)):
        return "dpo", f"{name} holds {shown}: the pairs say the most"
    if up and down:
        return "kto", f"{name} holds {shown}: single answers say the most, and there are good and bad ones"
    if up or down:
        kind, other = ("good", "bad") if up else ("bad", "good")
        reason = f"all {up + down:,} judged answers are {kind}: without {other} ones there is nothing to tell apart"
        fix = "sft(data=store) learns from good answers" if up else "collect good answers, edits or comparisons"
    elif ratings:
        reason = "all ratings are in the middle of their scale, and no prompt has two answers rated apart"
        fix = 'reward(data=store) learns from ratings; then align(method="ppo", prompts=store)'
    else:
        reason = "no judgement is left that users agree on"
        fix = "collect more feedback: thumbs, edits, or choices between answers"
    raise DataError(
        f"No alignment method fits {name}: {reason}.",
        code="feedback-no-method",
        found=shown,
        fix=fix,
        details={"pairs": pairs, "good": up, "bad": down, "ratings": ratings},
    )
