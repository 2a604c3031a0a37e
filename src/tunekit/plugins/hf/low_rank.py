"""Linear layers with a low-rank update, forward and backward without the passes over memory in between."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from tunekit.plugins.hf.products import linear

__all__ = ["fused_low_rank"]


@functools.cache
def _function() -> Any:
    """The autograd function; made at first use, since torch is not imported with this module."""
    import torch
    from torch.autograd.function import once_differentiable

    class LowRankLinear(torch.autograd.Function):
        """x W' + b + s (x A') B', with the update added inside the product that makes it."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            inner = flat @ down.t()
            made = linear(flat, weight, bias).addmm_(inner, up.t(), alpha=scale)
            ctx.save_for_backward(flat, weight, down, up, inner)
            ctx.scale, ctx.shape = scale, x.shape
            return made.view(*x.shape[:-1], made.shape[-1])

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            flat, weight, down, up, inner = ctx.saved_tensors
            gradient = gradient.reshape(-1, gradient.shape[-1])
            through = (gradient @ up).mul_(ctx.scale)
            of_up = (gradient.t() @ inner).mul_(ctx.scale)
            of_down = through.t() @ flat
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x = linear(gradient, weight.t()).addmm_(through, down).view(ctx.shape)
            return of_x, None, None, of_down, of_up, None

    return LowRankLinear


@contextlib.contextmanager
def fused_low_rank(model: Any) -> Iterator[int]:
    """Run the plain LoRA layers of ``model`` in fewer passes over memory; gives their number.

    PEFT's layer computes the update, scales it, and adds it, each a pass over (tokens, output size), and as many again
    backward. On a CPU these passes cost as much as the products of rank 8 themselves. Taken are layers on a CPU in
    float32 that do nothing but that: one adapter, no dropout, no variant such as DoRA, a frozen base. The layers are as
    they were when the context is left.
    """
    taken = [module for module in model.modules() if _plain(module)]
    try:
        for module in taken:
            module.forward = _forward(module)
        yield len(taken)
    finally:
        for module in taken:
            del module.forward


def _plain(module: Any) -> bool:
    import torch

    base: Any = getattr(module, "base_layer", None)
    if type(base) is not torch.nn.Linear or "forward" in vars(module) or not hasattr(module, "lora_A"):
        return False
    names = list(getattr(module, "active_adapters", ()))
    if len(names) != 1 or names[0] not in module.lora_A or getattr(module, "lora_variant", None):
        return False
    down, up = module.lora_A[names[0]], module.lora_B[names[0]]
    dropout = module.lora_dropout[names[0]]
    still = isinstance(dropout, torch.nn.Identity) or getattr(dropout, "p", 1.0) == 0.0
    linear = type(down) is torch.nn.Linear and type(up) is torch.nn.Linear and up.bias is None
    if not (still and linear) or module.merged or module.disable_adapters:
        return False
    weights = (base.weight, down.weight, up.weight)
    frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (base, down, up, dropout))
    alike = all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights)
    return frozen and alike and not hooked


def _forward(module: Any) -> Any:
    import torch

    name = module.active_adapters[0]
    base, down, up, scale = module.base_layer, module.lora_A[name], module.lora_B[name], module.scaling[name]
    apply = _function().apply
    own = module.forward

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or module.disable_adapters or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return own(x, *args, **kwargs)
        return apply(x, base.weight, base.bias, down.weight, up.weight, scale)

    return forward
