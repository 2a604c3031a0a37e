"""Rows of single answers, each judged good or bad, as token ids."""

from __future__ import annotations

from collections.abc import Mapping

from tunekit.data import Dataset
from tunekit.plugins import StepContext
from tunekit_trl.completion_rows import CompletionRows
from tunekit_trl.encoding import Encoder
from tunekit_trl.rows import DataFacts, encode_rows
from tunekit_trl.unpaired_encoding import judged
from tunekit_trl.unpaired_options import one_sided

__all__ = ["balance", "judged_rows", "refuse_one_sided", "tell_balance", "tell_conflicts"]

_BALANCED = (0.95, 1.4)
"""Between 1 and 4/3, as the paper has it, and what rounding to a handy weight does."""


def judged_rows(
    ctx: StepContext, encoder: Encoder, data: Dataset, *, held_out: bool = False
) -> tuple[CompletionRows, DataFacts]:
    """Columns ``prompt_ids``, ``completion_ids``, ``label`` (1: good), ``number`` and ``held_out``.

    Raises:
        DataError: for no rows, or a row that cannot be used (unless ``on_bad_row="skip"``).
    """
    facts = DataFacts(encoder.template, encoder.max_length, "completion")
    rows, labels = CompletionRows(("completion",)), []
    before = encoder.appended_stops
    for made in encode_rows(ctx, data, facts, lambda batch: judged(encoder, batch)):
        length, answer = len(made.prompt_ids) + len(made.completion_ids), len(made.completion_ids)
        facts.count(length, answer, length, made.cut, made.boundary)
        facts.lost_thoughts += made.lost_thoughts
        facts.totals.add(tokens=length, trained=answer, cut=made.cut, stopped=made.stopped)
        rows.add(made.prompt_ids, made.completion_ids)
        labels.append(made.label)
    facts.appended_stops = encoder.appended_stops - before
    rows.set_column("label", labels)
    rows.set_column("number", range(len(labels)))
    rows.set_column("held_out", [float(held_out)] * len(labels))
    return rows, facts


def balance(rows: CompletionRows) -> dict[str, int]:
    """How many answers are good and how many bad."""
    good = sum(row["label"] > 0 for row in rows)
    return {"good": good, "bad": len(rows) - good}


def tell_balance(ctx: StepContext, counts: Mapping[str, int]) -> None:
    """A notice where the weights of good and bad answers do not make up for their numbers as the KTO paper wants."""
    options = ctx.options
    ratio = options.desirable_weight * counts["good"] / (options.undesirable_weight * counts["bad"])
    if _BALANCED[0] <= ratio <= _BALANCED[1]:
        return
    wanted = options.undesirable_weight * counts["bad"] / counts["good"]
    ctx.notice(
        "unbalanced-feedback",
        f"{counts['good']:,} answers are good and {counts['bad']:,} bad; with these weights the good ones count "
        f"{ratio:.2g} times as much as the bad ones, and the paper of KTO wants between 1 and 4/3 times: "
        f"desirable_weight between {wanted:.3g} and {wanted * 4 / 3:.3g} gives that.",
    )


def refuse_one_sided(ctx: StepContext, counts: Mapping[str, int]) -> None:
    """Raises:
    DataError: if all answers are good, or all are bad.
    """
    if not (counts["good"] and counts["bad"]):
        raise one_sided(counts["good"], counts["bad"])


def tell_conflicts(ctx: StepContext, rows: CompletionRows) -> int:
    """A notice about answers that are judged both good and bad; their number."""
    verdicts: dict[tuple[tuple[int, ...], tuple[int, ...]], set[bool]] = {}
    for row in rows:
        answer = tuple(row["prompt_ids"]), tuple(row["completion_ids"])
        verdicts.setdefault(answer, set()).add(row["label"] > 0)
    torn = sum(len(verdict) > 1 for verdict in verdicts.values())
    if torn:
        ctx.notice(
            "conflicting-feedback",
            f"{torn:,} answers are judged good in one row and bad in another; they pull in both directions.",
        )
    return torn
