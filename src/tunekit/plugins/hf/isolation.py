"""Proof, on real rows, that documents that share a sequence do not see each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.plugins.hf.arguments import computing, evaluating
from tunekit.plugins.hf.batches import Collator
from tunekit.plugins.hf.pieces import Piece, PieceLoss
from tunekit.plugins.hf.segments import Layout, NotSegmentable, layout_of

__all__ = ["branching_problem", "isolation_problem", "proven_layout", "tolerance"]

PROBE_ROWS = 3
PROBE_TOKENS = 24

_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def tolerance(dtype: Any) -> float:
    """Largest difference of values that are the same but for rounding, as a share of their size. Rounding alone makes
    1e-6 in float32.

    Args:
        dtype: the ``torch.dtype`` they are computed in.
    """
    return _TOLERANCE.get(str(dtype).removeprefix("torch."), _TOLERANCE["bfloat16"])


def proven_layout(model: Any, rows: Any) -> Layout:
    """The best layout of micro-batches that ``model`` provably takes: what is promised by its architecture is checked
    on some of the ``rows`` before it is used.

    Args:
        model: a ``transformers`` model, with or without an adapter.
        rows: token rows; see :class:`tunekit.plugins.hf.batches.Collator`.
    """
    layout = layout_of(model)
    if not layout.packs:
        return layout
    problem = isolation_problem(model, [rows[number]["input_ids"] for number in range(min(len(rows), 8))], layout)
    return Layout("padded", problem) if problem else layout


def isolation_problem(model: Any, documents: Sequence[Sequence[int]], layout: Layout | None = None) -> str:
    """What is wrong when documents share a sequence; empty: nothing.

    Each document's logits must be those that the model computes for it alone with its own attention, and changing
    the first document must change nothing in the others.

    Args:
        model: a ``transformers`` model.
        documents: token ids; the first three with at least two tokens are used, 24 tokens each.
        layout: the layout to check; default: what :func:`tunekit.plugins.hf.segments.layout_of` says.
    """
    layout = layout_of(model) if layout is None else layout
    if not layout.packs:
        return layout.why
    chosen = [list(map(int, ids[:PROBE_TOKENS])) for ids in documents if len(ids) > 1][:PROBE_ROWS]
    if not chosen:
        return ""
    while len(chosen) < PROBE_ROWS:
        chosen.append(chosen[0][: max(2, len(chosen[0]) // 2)])
    changed = [[chosen[-1][0]] * len(chosen[0]), *chosen[1:]]
    if changed[0] == chosen[0]:
        changed[0] = [chosen[0][0], *([chosen[0][0] - 1 if chosen[0][0] else 1] * (len(chosen[0]) - 1))]
    try:
        with evaluating(model), computing(model):
            alone = [_alone(model, ids) for ids in chosen]
            together = _together(model, chosen, layout)
            other = _together(model, changed, layout)
    except NotSegmentable as reason:
        return str(reason)
    scale = max(1.0, max(float(part.abs().max()) for part in alone))
    limit = tolerance(alone[0].dtype) * scale
    apart = _largest(together, alone)
    if not apart <= limit:
        return f"its logits differ by {apart:.3g} from those of the same document alone"
    seen = _largest(other[1:], together[1:])
    if not seen <= limit:
        return f"its logits change by {seen:.3g} with the document before"
    return ""


def _alone(model: Any, ids: list[int]) -> Any:
    import torch

    device = next(model.parameters()).device
    return model(input_ids=torch.tensor([ids], device=device)).logits[0]


def _together(model: Any, documents: list[list[int]], layout: Layout) -> list[Any]:
    """Logits of each document, (tokens, vocabulary), out of one forward pass over all."""
    import torch

    device = next(model.parameters()).device
    rows: list[Mapping[str, Any]] = [{"input_ids": ids, "labels": ids} for ids in documents]
    batch = Collator()(rows)
    piece = Piece(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        targets=batch["targets"].to(device),
        lengths=batch["lengths"],
        target_count=batch["target_count"],
    )
    loss = PieceLoss(model, layout)
    with loss.attending():
        logits = loss.logits(model, piece, torch.ones_like(piece.targets, dtype=torch.bool))
    return list(logits.split(piece.lengths))


def _largest(left: Sequence[Any], right: Sequence[Any]) -> float:
    import torch

    return float(torch.stack([(a - b).abs().max() for a, b in zip(left, right, strict=True)]).max())


def branching_problem(model: Any, rows: Any) -> str:
    """What is wrong when continuations share a prompt; empty: nothing.

    Each continuation's logits must be those that the model computes for it after the prompt alone.

    Args:
        model: a ``transformers`` model whose layout is ``segments``.
        rows: token rows; the first two with at least four tokens are used, 24 tokens each.
    """
    import torch

    chosen = [list(map(int, row["input_ids"][:PROBE_TOKENS])) for row in rows if len(row["input_ids"]) > 3][:2]
    if not chosen:
        return "there are no rows to prove it on"
    first, last = chosen[0], chosen[-1]
    # The first continuation is the longer one, and the other no beginning of it.
    prompt, left = first[: len(first) // 2], [*first[len(first) // 2 :], *last]
    right = last[::-1]
    lengths = (len(prompt), len(left), len(right))
    device = next(model.parameters()).device
    positions = [*range(len(prompt) + len(left)), *range(len(prompt), len(prompt) + len(right))]
    ids = torch.tensor([prompt + left + right], device=device)
    targets = torch.zeros_like(ids)
    piece = Piece(
        input_ids=ids,
        position_ids=torch.tensor([positions], device=device),
        targets=targets,
        lengths=(sum(lengths),),
        target_count=len(positions),
        extents=(lengths,),
    )
    loss = PieceLoss(model, Layout("segments"))
    try:
        with evaluating(model), computing(model):
            alone = [_alone(model, prompt + left), _alone(model, prompt + right)[len(prompt) :]]
            with loss.attending():
                together = loss.logits(model, piece, torch.ones_like(targets, dtype=torch.bool))
    except NotSegmentable as reason:
        return str(reason)
    scale = max(1.0, max(float(part.abs().max()) for part in alone))
    limit = tolerance(alone[0].dtype) * scale
    apart = _largest(list(together.split((len(prompt) + len(left), len(right)))), alone)
    return "" if apart <= limit else f"logits of a continuation differ by {apart:.3g} from those after its prompt alone"
