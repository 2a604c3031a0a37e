"""The faster product of weights: the same numbers, and layers that are left as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunekit.plugins import hf
from tunekit.plugins.hf import products


def _model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.ReLU(), torch.nn.Linear(40, 8, bias=False))


@pytest.fixture
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product is used whatever the processor is, by torch's own if there is no other."""
    if products._product() is None:
        monkeypatch.setattr(
            products, "_product", lambda: lambda x, weight, bias, *_: torch.nn.functional.linear(x, weight, bias)
        )


@pytest.mark.usefixtures("on_any_processor")
def test_numbers_and_gradients_are_those_of_plain_layers() -> None:
    model, x = _model(), torch.randn(3, 5, 24, requires_grad=True)
    expected = model(x)
    expected.square().sum().backward()
    wanted = [x.grad, *(parameter.grad for parameter in model.parameters())]
    x.grad = None
    model.zero_grad(set_to_none=True)
    with hf.fast_products(model) as taken:
        made = model(x)
        made.square().sum().backward()
    assert taken == 2
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    for got, grad in zip([x.grad, *(parameter.grad for parameter in model.parameters())], wanted, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("on_any_processor")
def test_a_frozen_weight_and_a_frozen_input_get_no_gradient() -> None:
    model, x = _model(), torch.randn(4, 24)
    model[0].weight.requires_grad_(False)
    with hf.fast_products(model):
        model(x).sum().backward()
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None
    assert model[2].weight.grad is not None


@pytest.mark.usefixtures("on_any_processor")
def test_layers_are_left_as_they_were_after_an_error() -> None:
    model = _model()
    with pytest.raises(ZeroDivisionError), hf.fast_products(model):
        assert "forward" in vars(model[0])
        raise ZeroDivisionError
    assert "forward" not in vars(model[0])


@pytest.mark.usefixtures("on_any_processor")
def test_other_types_and_layers_are_left_alone() -> None:
    class Own(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(Own(4, 4), torch.nn.Linear(4, 4).to(torch.bfloat16))
    with hf.fast_products(model) as taken:
        assert taken == 0


def test_without_the_product_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_product", lambda: None)
    model: Any = _model()
    with hf.fast_products(model) as taken:
        assert taken == 0
        x = torch.randn(2, 24)
        assert torch.equal(products.linear(x, model[0].weight), torch.nn.functional.linear(x, model[0].weight))
