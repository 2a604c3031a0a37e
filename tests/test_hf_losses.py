"""The cross-entropy of token rows against torch and transformers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch.nn.functional import cross_entropy
from transformers.trainer_pt_utils import LabelSmoother

from tunekit.plugins.hf import losses
from tunekit.plugins.hf.losses import logits_at, token_loss


def _through_head(smoothing: float, dtype: Any, ours: bool, cap: bool) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    hidden = torch.randn(37, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(301, 16, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 301, (37,))
    logits = torch.nn.functional.linear(hidden, weight)
    logits = torch.tanh(logits / 5) * 5 if cap else logits
    if ours:
        loss = token_loss(logits, targets, smoothing=smoothing).loss
    else:
        loss = cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)
    (loss / 37).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("cap", [False, True], ids=["plain", "capped"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loss_and_gradients_equal_those_of_torch(
    dtype: str, smoothing: float, cap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS", 301 * 5)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    ours = _through_head(smoothing, getattr(torch, dtype), True, cap)
    reference = _through_head(smoothing, getattr(torch, dtype), False, cap)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def test_smoothing_is_that_of_transformers_and_hits_are_counted() -> None:
    logits = torch.randn(1, 12, 50)
    labels = torch.randint(0, 50, (1, 12))
    labels[0, 3:5] = -100
    labels[0, 0] = logits[0, 0].argmax()
    kept = labels[0] != -100
    made = token_loss(logits[0, kept].clone(), labels[0, kept], smoothing=0.2)
    expected = LabelSmoother(0.2)({"logits": logits}, labels, num_items_in_batch=1)
    torch.testing.assert_close(made.loss, expected)
    assert int(made.correct) == int((logits[0, kept].argmax(-1) == labels[0, kept]).sum()) >= 1


def test_nothing_to_learn_is_a_loss_of_zero_on_the_graph() -> None:
    """T2: a mean over no target is NaN; a missing graph lets a distributed run hang."""
    weight = torch.randn(11, 4, requires_grad=True)
    loss = token_loss(torch.zeros(0, 4) @ weight.T, torch.zeros(0, dtype=torch.long)).loss
    loss.backward()
    assert float(loss.detach()) == 0.0 and torch.equal(weight.grad, torch.zeros(11, 4))


def test_the_gradient_takes_the_place_of_the_logits() -> None:
    hidden, weight = torch.randn(1, 9, 4), torch.randn(33, 4, requires_grad=True)
    logits = torch.nn.functional.linear(hidden, weight)
    token_loss(logits.flatten(0, 1), torch.arange(9))
    torch.testing.assert_close(logits.detach().sum(-1), torch.zeros(1, 9), atol=1e-5, rtol=0)
    kept = torch.tanh(torch.nn.functional.linear(hidden, weight))  # its backward looks at its result
    before = kept.detach().clone()
    token_loss(kept.flatten(0, 1), torch.arange(9))
    assert torch.equal(kept, before)


class _NoKeep(torch.nn.Module):
    """A model whose forward takes no positions, as those of masked-word models."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20)

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, input_ids: Any) -> Any:
        return self.head(self.body(input_ids)) * 3


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_at_positions_are_those_of_the_whole(rows: int) -> None:
    from tunekit.testing import tiny_model

    ids = torch.randint(5, 20, (rows, 7))
    where = torch.rand(rows, 7) < 0.5
    where[0, 2] = True
    own = _NoKeep()
    with logits_at(own, where) as (arguments, select):
        made = select(own(ids, **arguments))
    torch.testing.assert_close(made, own(ids)[where])
    assert not own.head._forward_pre_hooks
    model = tiny_model()
    with logits_at(model, where) as (arguments, select):
        made = select(model(ids, **arguments).logits)
    torch.testing.assert_close(made, model(ids).logits[where])


def test_gradient_of_entropies_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS", 31 * 2)
    rows, targets = torch.tensor([0, 0, 3, 4, 2]), torch.tensor([7, 9, 30, 0, 5])
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0]), torch.tensor([0.3, 1.0, -1.0, 2.0, 0.7])
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        x, weight = (torch.randn(size, 6, requires_grad=True) for size in (5, 31))
        logits = torch.nn.functional.linear(x, weight)
        if ours:
            made = losses.token_logps(logits, rows, targets, entropy=True)
            logps, entropy = made.logps, made.entropy
        else:
            every = logits.log_softmax(-1)[rows]
            logps, entropy = every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)
        (weights[0] @ logps + weights[1] @ entropy).backward()
        found.append((x.grad, weight.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
