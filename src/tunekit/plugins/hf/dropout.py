"""Training without dropout, where what is learned from must be computed as what learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  (this module is reached through the lazy package only)

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["dropout_off", "tell_dropout"]


@contextmanager
def dropout_off(model: Any) -> Iterator[None]:
    """Set all dropout to zero: layers, and what modules apply by a function, as in the attention of Llama. The rates
    are back when the context is left."""
    found = _rates(model)
    try:
        for module, name, _ in found:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in found:
            setattr(module, name, rate)


def tell_dropout(ctx: StepContext, model: Any) -> None:
    """Say, if model or adapter have rates of dropout above zero, that this step does not apply them."""
    rates = {rate for _, _, rate in _rates(model)}
    if rates:
        ctx.notice(
            "dropout-off",
            f"{ctx.step.component.name} runs without dropout; the rates {', '.join(f'{p:g}' for p in sorted(rates))} "
            "of model or adapter are not applied in this step.",
        )


def _rates(model: Any) -> list[tuple[Any, str, float]]:
    found = [(module, "p", module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    found += [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float) and value < 1
    ]
    return [(module, name, rate) for module, name, rate in found if rate > 0]
