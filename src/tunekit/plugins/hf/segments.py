"""Several documents in one sequence without padding, none of which sees another: block-diagonal attention everywhere.

``transformers`` lets attention and mask functions be registered by name. The ones registered here make no mask of
(tokens, tokens): the "mask" is the list of the documents' lengths, and attention runs document by document, on the
kernel's fast causal path wherever a document's own mask is plainly causal. Windowed and chunked attention follow from
the model's own mask function, evaluated inside each document.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["NAME", "Layout", "NotSegmentable", "layout_of", "segmented"]

NAME = "tunekit_segments"
"""Under which the attention is registered in ``transformers``."""

_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
_OURS = ("sdpa", "eager", "flex_attention")
_ATTENDING = ("full_attention", "sliding_attention", "chunked_attention")

_lengths: contextvars.ContextVar[tuple[int, ...] | None] = contextvars.ContextVar("segment_lengths", default=None)
_registering = threading.Lock()
_registered = False


class NotSegmentable(Exception):
    """The model does in its attention what the attention here has no counterpart for."""


@dataclass(frozen=True)
class Layout:
    """How micro-batches are put to a model."""

    kind: str
    """``segments`` (one sequence, attention per document), ``flash`` (one sequence, the model's own variable-length
    kernel) or ``padded`` (a row per document, padded on the right)."""
    why: str = ""
    """For ``padded``: what of the model rules the others out."""

    @property
    def packs(self) -> bool:
        """Whether documents share a sequence."""
        return self.kind != "padded"


@dataclass(frozen=True, eq=False)
class _Segments:
    """What stands in the place of an attention mask."""

    lengths: tuple[int, ...]
    causal: bool
    masks: tuple[Any, ...]
    """Per document: None, or a boolean mask (length, length) where plain causal (or full) attention is not enough."""


def layout_of(model: Any) -> Layout:
    """What the architecture says about how documents can share a sequence; the numbers are probed elsewhere.

    Args:
        model: a ``transformers`` model, with or without an adapter.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = plain.config.get_text_config()
    peft = getattr(model, "active_peft_config", None)
    if getattr(peft, "is_prompt_learning", False):
        return Layout("padded", "the adapter puts virtual tokens in front of each row")
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        return Layout("padded", f"{type(plain).__name__} takes no position_ids")
    kinds = set(getattr(config, "layer_types", None) or ())
    other = sorted(kind for kind in kinds if str(kind).endswith("attention") and kind not in _ATTENDING)
    if other or getattr(plain, "_is_stateful", False):
        return Layout(
            "padded", f"it has layers that carry a state along the sequence ({', '.join(other) or 'stateful'})"
        )
    if any(hasattr(module, "sinks") for module in plain.modules()):
        return Layout("padded", "its attention has sinks")
    implementation = config._attn_implementation
    if implementation in _FLASH:
        return Layout("flash")
    if implementation not in _OURS and implementation != NAME:
        return Layout("padded", f"its attention implementation is {implementation!r}")
    if not getattr(plain, "_supports_attention_backend", False):
        return Layout("padded", f"{type(plain).__name__} does not let its attention be exchanged")
    return Layout("segments")


@contextlib.contextmanager
def segmented(model: Any) -> Iterator[Callable[[Sequence[int]], Any]]:
    """Let ``model`` attend document by document; its own attention is back when the context is left.

    Gives a context manager that takes the lengths of the documents in the sequence of the forward pass inside it.
    """
    _register()
    configs = _configs(model)
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            if config._attn_implementation_internal in _OURS:
                config._attn_implementation_internal = NAME
        yield _lengths_set
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation_internal = own


def _configs(model: Any) -> list[Any]:
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


@contextlib.contextmanager
def _lengths_set(lengths: Sequence[int]) -> Iterator[None]:
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def _register() -> None:
    global _registered
    with _registering:
        if _registered:
            return
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _mask)
        _registered = True


def _mask(
    batch_size: int,
    *args: Any,
    mask_function: Any,
    attention_mask: Any = None,
    use_vmap: bool = False,
    device: Any = None,
    **kwargs: Any,
) -> _Segments:
    """The mask function of ``transformers``' interface: what each document's own mask looks like."""
    import torch

    lengths = _lengths.get()
    if lengths is None or batch_size != 1:
        raise NotSegmentable("a forward pass in it has no segment lengths")
    if use_vmap or attention_mask is not None:
        raise NotSegmentable("it has an attention mask of its own")
    ends = torch.tensor(lengths, device=device).cumsum(0)
    last = ends - 1
    first = ends - torch.tensor(lengths, device=device)
    zero = torch.zeros_like(first)
    backward = _allowed(mask_function, zero, last, first).tolist()
    forward = _allowed(mask_function, zero, first, last).tolist()
    long = [number for number, length in enumerate(lengths) if length > 1]
    causal = not any(forward[number] for number in long)
    masks: list[Any] = [None] * len(lengths)
    for number in long:
        # Plainly causal: the last token sees the first, and not the other way round. Full: both.
        if backward[number] and forward[number] != causal:
            continue
        index = torch.arange(int(first[number]), int(ends[number]), device=device)
        masks[number] = _allowed(mask_function, zero[:1, None], index[:, None], index[None, :])
    return _Segments(lengths, causal, tuple(masks))


def _allowed(function: Any, batch: Any, query: Any, key: Any) -> Any:
    import torch

    made = function(batch, batch, query, key)
    shape = torch.broadcast_shapes(query.shape, key.shape)
    if not isinstance(made, torch.Tensor):
        return torch.full(shape, bool(made), device=query.device)
    return made.expand(shape)


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """The attention function of ``transformers``' interface: queries (1, heads, tokens, size), result (1, tokens,
    heads, size)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if not isinstance(attention_mask, _Segments):
        raise NotSegmentable("its attention masks are not made by the common mask functions")
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise NotSegmentable(f"its attention uses {name}")
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {}
    if groups > 1:
        if any(mask is not None for mask in attention_mask.masks) or key.shape[-1] != value.shape[-1]:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        else:
            options["enable_gqa"] = True
    lengths = list(attention_mask.lengths)
    if len(lengths) == 1:
        parts = [(query, key, value)]
    else:
        parts = list(zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True))
    made = [
        scaled_dot_product_attention(
            *part,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=attention_mask.causal and mask is None,
            **options,
        )
        for part, mask in zip(parts, attention_mask.masks, strict=True)
    ]
    joined = made[0] if len(made) == 1 else torch.cat(made, 2)
    return joined.transpose(1, 2).contiguous(), None
