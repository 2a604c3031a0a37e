"""How much of the machine training uses: floating-point operations per token, and the machine's measured peak."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

__all__ = ["flops_per_token", "measured_peak", "speed_metrics"]

_SECONDS = 0.2
"""Time that one measurement of the peak takes, about."""

_peaks: dict[tuple[str, str, int], float] = {}


def measured_peak(device: Any = None, dtype: Any = None) -> float:
    """Floating-point operations per second of a matrix product on this machine, measured once per process.

    Square products of growing size are timed for about 0.2 s; the fastest counts. A product of (n, n) matrices is
    2 n^3 operations. It is what the machine really does with the threads that this process uses, not a data sheet's
    number, so a share of it is comparable between machines.

    Args:
        device: where; None: :func:`default_device`.
        dtype: of the matrices; None: :func:`compute_dtype`.
    """
    import torch

    from tunekit.plugins.hf.arguments import compute_dtype, default_device

    device = default_device() if device is None else torch.device(device)
    dtype = compute_dtype() if dtype is None else dtype
    key = (str(device), str(dtype), torch.get_num_threads())
    if key not in _peaks:
        _peaks[key] = _measure(device, dtype)
    return _peaks[key]


def _measure(device: Any, dtype: Any) -> float:
    import torch

    began = time.perf_counter()
    best = 0.0
    size = 256
    while True:
        with torch.no_grad():
            # Not zeros, which some processors multiply faster; no random numbers, whose state is the trainer's.
            left = torch.linspace(-1, 1, size * size, device=device).reshape(size, size).to(dtype)
            out = torch.empty_like(left)
            _timed(left, out, device)
            taken = min(_timed(left, out, device) for _ in range(3))
        best = max(best, 2 * size**3 / taken)
        used = time.perf_counter() - began
        # The next size takes eight times as long.
        if size < 8192 and used + 8 * 4 * taken < 2 * _SECONDS:
            size *= 2
        elif used < _SECONDS:
            continue
        else:
            return best


def _timed(left: Any, out: Any, device: Any) -> float:
    import torch

    began = time.perf_counter()
    torch.mm(left, left, out=out)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return max(time.perf_counter() - began, 1e-9)


def flops_per_token(
    model: Any,
    length: float,
    trained: Iterable[str] | None = None,
    *,
    targets: float = 1.0,
    causal: bool = True,
) -> float:
    """Floating-point operations of a training step per input token: forward and backward, one multiply-add is two.

    A matrix product of a layer with n weights costs 2n forward, 2n for the gradient of its input and 2n for that of
    its weights: the "6N" of Kaplan et al. 2020 (arXiv:2001.08361). Of these, the gradient of the weights falls away
    where the layer is frozen, and that of the input where nothing that is trained lies below it: training through an
    adapter costs about 4N. Embedding look-ups cost nothing; the output layer costs as much as its share of positions
    with a target. Attention over ``length`` tokens costs 4 x length x (heads x head size) forward, half of that if it
    is causal, and twice as much backward. Recomputed activations are no useful work and are not counted.
    Layers side by side with the lowest trained one count as above it, which is a few per cent too much at most.

    Args:
        model: a ``transformers`` model, with or without an adapter; its weights may be on the meta device.
        length: tokens of the document a token is in, on average over tokens.
        trained: names of trained parameters; None: those that require a gradient.
        targets: share of the positions at which logits are computed.
        causal: whether a token attends to those before it only.
    """
    names = (
        {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if trained is None
        else set(trained)
    )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = head is not None and _tied(model, head)
    total = 0.0
    below = False
    for name, module in model.named_modules():
        own = {f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)}
        weights = _product_size(module)
        if weights:
            share = targets if module is head else 1.0
            learns = bool(own & names) or (module is head and tied and below)
            total += share * 2 * weights * (1 + below + learns)
        below = below or bool(own & names)
    return total + _attention(model, length, causal, _layers_above(model, names))


def _layers_above(model: Any, trained: set[str]) -> int | None:
    """Layers that the gradient goes through: those from the first trained one on. None: all."""
    numbers = []
    for name, _ in model.named_parameters():
        if name in trained:
            found = re.search(r"\.(\d+)\.", name)
            if found:
                numbers.append(int(found[1]))
            elif not numbers and "norm" not in name and "lm_head" not in name:
                return None
    layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 0)
    return layers - min(numbers) if numbers else 0


def _tied(model: Any, head: Any) -> bool:
    table = model.get_input_embeddings()
    weight: Any = getattr(head, "weight", None)
    shared = weight is getattr(table, "weight", None)
    return bool(shared and getattr(weight, "requires_grad", False))


def _product_size(module: Any) -> int:
    """Weights of a layer that is a matrix product; 0 for every other module."""
    if hasattr(module, "base_layer"):
        return 0  # an adapter's wrapper; the layer itself and the adapter's matrices are modules of their own
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features) * int(module.out_features)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return int(module.weight.shape[0]) * int(module.nf)
    return 0


def _attention(model: Any, length: float, causal: bool, backward: int | None) -> float:
    """Operations per token of attention scores and their product with the values, forward over all layers and
    backward over the last ``backward`` ones."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None)
    if not heads or not layers or not width:
        return 0.0
    size = getattr(config, "head_dim", None) or width // heads
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [("sliding_attention" if window else "full_attention")] * layers
    seen = {True: min(length, window or length), False: length}
    keys = [seen["sliding" in str(kind)] for kind in kinds]
    both = sum(keys) + 2 * sum(keys if backward is None else keys[len(keys) - backward :])
    return float(4 * both * heads * size * (0.5 if causal else 1.0))


def speed_metrics(
    model: Any,
    *,
    seconds: float,
    tokens: int,
    targets: int,
    length: float,
    causal: bool = True,
) -> dict[str, float]:
    """Speed as metrics: tokens per second, and the share of the machine's peak that goes into useful work.

    ``tokens_per_second`` (targets), ``input_tokens_per_second``, ``flops_per_token``, and ``mfu``, the share of
    :func:`measured_peak` in the model's device and type (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, but
    against what the machine was measured to do).

    Args:
        model: the trained model, with its adapter if there is one.
        seconds: time in which the tokens were trained on.
        tokens: input tokens.
        targets: tokens that were learned.
        length: tokens of the document a token is in, on average over tokens.
        causal: whether a token attends to those before it only.
    """
    import torch

    seconds = max(seconds, 1e-9)
    parameter = next(model.parameters())
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
    if torch.is_autocast_enabled(parameter.device.type):
        dtype = torch.get_autocast_dtype(parameter.device.type)
    each = flops_per_token(model, length, targets=targets / max(1, tokens), causal=causal)
    return {
        "tokens_per_second": round(targets / seconds, 1),
        "input_tokens_per_second": round(tokens / seconds, 1),
        "flops_per_token": float(round(each)),
        "mfu": round(each * tokens / seconds / measured_peak(parameter.device, dtype), 4),
    }
