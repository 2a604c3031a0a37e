"""Several documents in one sequence without padding, none of which sees another: block-diagonal attention everywhere.

A document may branch: a prompt with several continuations, each of which sees the prompt and itself, and none another.

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

Extent = int | tuple[int, ...]
"""Tokens of a document; of one that branches: of its prompt, and of each of its continuations, the longest first."""

_lengths: contextvars.ContextVar[tuple[Extent, ...] | None] = contextvars.ContextVar("segment_lengths", default=None)
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

    parts: tuple[_Part, ...]
    causal: bool
    masks: tuple[Any, ...]
    """Per part: None, or a boolean mask (queries, keys) where plain causal (or full) attention is not enough."""

    @property
    def plain(self) -> bool:
        """Whether the queries of each part are its keys."""
        return all(part.shared == 0 for part in self.parts)


@dataclass(frozen=True)
class _Part:
    """Queries that are attended to in one go: a document, or a continuation of one."""

    begin: int
    """Position in the sequence of the first query."""
    length: int
    """Queries."""
    prompt: int = 0
    """Position in the sequence of the first token of the prompt before it, which is no query of this part."""
    shared: int = 0
    """Tokens of that prompt. They and the queries are the keys."""


def _parts(lengths: Sequence[Extent]) -> tuple[_Part, ...]:
    made, at = [], 0
    for extent in lengths:
        prompt, *continuations = (extent,) if isinstance(extent, int) else extent
        begin = at
        first = continuations[0] if continuations else 0
        # A prompt and its first continuation are plainly causal together.
        made.append(_Part(begin, prompt + first))
        at += prompt + first
        for length in continuations[1:]:
            if length > first:
                # The model's mask is looked up as if it stood where the first one does.
                raise ValueError("the longest continuation of a prompt comes first")
            made.append(_Part(at, length, begin, prompt))
            at += length
    return tuple(part for part in made if part.length)


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
def segmented(model: Any) -> Iterator[Callable[[Sequence[Extent]], Any]]:
    """Let ``model`` attend document by document; its own attention is back when the context is left.

    Gives a context manager that takes the lengths of the documents in the sequence of the forward pass inside it. For a
    document that branches, these are a tuple of the lengths of its prompt and of its continuations.
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
def _lengths_set(lengths: Sequence[Extent]) -> Iterator[None]:
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
    parts = _parts(lengths)
    # A continuation stands where it would if the prompt were right before it.
    first = torch.tensor([part.prompt if part.shared else part.begin for part in parts], device=device)
    last = first + torch.tensor([part.shared + part.length - 1 for part in parts], device=device)
    zero = torch.zeros_like(first)
    backward = _allowed(mask_function, zero, last, first).tolist()
    forward = _allowed(mask_function, zero, first, last).tolist()
    long = [number for number, part in enumerate(parts) if part.shared + part.length > 1]
    causal = not any(forward[number] for number in long)
    masks: list[Any] = [None] * len(parts)
    for number in long:
        part = parts[number]
        # Plainly causal: the last token sees the first, and not the other way round. Full: both.
        if not part.shared and backward[number] and forward[number] != causal:
            continue
        index = torch.arange(int(first[number]), int(last[number]) + 1, device=device)
        masks[number] = _allowed(mask_function, zero[:1, None], index[part.shared :, None], index[None, :])
    return _Segments(parts, causal, tuple(masks))


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
    parts = _cut(attention_mask, query, key, value)
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


def _cut(segments: _Segments, query: Any, key: Any, value: Any) -> list[tuple[Any, Any, Any]]:
    """Queries, keys and values of each part."""
    import torch

    if len(segments.parts) == 1:
        return [(query, key, value)]
    lengths = [part.length for part in segments.parts]
    queries = query.split(lengths, 2)
    if segments.plain:
        return list(zip(queries, key.split(lengths, 2), value.split(lengths, 2), strict=True))
    made = []
    for part, asking in zip(segments.parts, queries, strict=True):
        own = slice(part.begin, part.begin + part.length)
        seen = [whole[:, :, own] for whole in (key, value)]
        if part.shared:
            before = slice(part.prompt, part.prompt + part.shared)
            seen = [torch.cat((whole[:, :, before], near), 2) for whole, near in zip((key, value), seen, strict=True)]
        made.append((asking, *seen))
    return made
