"""Products with weights on processors where the library that torch takes for them in float32 is not the fastest."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["fast_products", "linear"]


@functools.cache
def _product() -> Any:
    """oneDNN's product of an input with a weight; None where it is not to be used.

    Torch takes MKL for float32. On AMD processors that reaches 100 to 190 of the 215 GFLOPS that oneDNN does on two
    cores of a Zen 4 (2,048 tokens, weights of 192 to 8,192 by 256 to 1,536). The choice goes by the processor, not by a
    measurement, so that a training that is continued computes what it would have.
    """
    import torch

    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return None
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as stream:
            vendor = next((line for line in stream if line.startswith("vendor_id")), "")
    except OSError:
        return None
    if "AuthenticAMD" not in vendor:
        return None
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if found is None:
        return None
    try:
        # Not part of torch's public interface: used where it does what it is asked, left alone otherwise.
        x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
        right = torch.equal(found(x, weight, None, "none", [], ""), x @ weight.t())
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return found if right else None


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """``torch.nn.functional.linear``, without a gradient.

    Args:
        x: (tokens, size), float32, on a CPU, as are all three.
        weight: (made, size); may be a transposed view.
        bias: (made,), or None.

    Returns:
        (tokens, made).
    """
    import torch

    product = _product()
    if product is None:
        return torch.nn.functional.linear(x, weight, bias)
    return product(x, weight, bias, "none", [], "")


@functools.cache
def _function() -> Any:
    """The autograd function; made at first use, since torch is not imported with this module."""
    import torch
    from torch.autograd.function import once_differentiable

    class FastLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            ctx.save_for_backward(flat, weight)
            ctx.shape = x.shape
            return linear(flat, weight, bias).view(*x.shape[:-1], weight.shape[0])

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            flat, weight = ctx.saved_tensors
            gradient = gradient.reshape(-1, gradient.shape[-1])
            of_x, of_weight, of_bias = ctx.needs_input_grad
            return (
                linear(gradient, weight.t()).view(ctx.shape) if of_x else None,
                gradient.t() @ flat if of_weight else None,
                gradient.sum(0) if of_bias else None,
            )

    return FastLinear


@contextlib.contextmanager
def fast_products(model: Any) -> Iterator[int]:
    """Have the plain linear layers of ``model`` use the faster product; gives their number, 0 where torch's own is.

    Taken are ``torch.nn.Linear`` in float32 on a CPU; under autocast they compute as torch does. The layers are as they
    were when the context is left.
    """
    taken = [module for module in model.modules() if _plain(module)] if _product() is not None else []
    try:
        for module in taken:
            module.forward = _forward(module)
        yield len(taken)
    finally:
        for module in taken:
            del module.forward


def _plain(module: Any) -> bool:
    import torch

    return (
        type(module) is torch.nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def _forward(module: Any) -> Any:
    import torch

    apply, own = _function().apply, module.forward

    def forward(x: Any) -> Any:
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return own(x)
        return apply(x, module.weight, module.bias)

    return forward
