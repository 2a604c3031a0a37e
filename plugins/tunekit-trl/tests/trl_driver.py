"""Tokenizers and hand-built step contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tunekit.cancel import CancelToken
from tunekit.data import load_dataset
from tunekit.plugins import LoadedModel
from tunekit.testing.contexts import BuiltContext, StepEvents, step_context
from tunekit.testing.fakes import CHATML, SPECIALS, tiny_model
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions

__all__ = ["CHATML", "SPECIALS", "Events", "byte_tokenizer", "context", "tiny_model"]


def byte_tokenizer(
    template: str | None = CHATML,
    *,
    pad: str = "<pad>",
    eos: str = "<|im_end|>",
    bos: bool = False,
    merges: Sequence[tuple[str, str]] = (),
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: one token per byte unless ``merges`` say otherwise. Special ids first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIALS, *alphabet))}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        eos_token=eos,
        bos_token="<bos>" if bos else None,
        additional_special_tokens=[t for t in SPECIALS if t not in (pad, eos, "<bos>" if bos else "")],
    )
    tokenizer.chat_template = template
    return tokenizer


Events = StepEvents


def context(
    kind: str,
    folder: Path,
    loaded: LoadedModel,
    rows: Any,
    options: Any,
    *,
    lora: LoraOptions | None = None,
    seed: int = 7,
    events: Callable[..., None] | None = None,
    cancel: CancelToken | None = None,
) -> BuiltContext:
    """A context as the core builds it. ``kind`` is ``sft`` or ``align``."""
    accepts = ("prompt_completion", "conversation", "text") if kind == "sft" else ("preference",)
    return step_context(
        folder,
        options.resolve(adapter="lora" if lora else None),
        kind=kind,
        name="sft" if kind == "sft" else "dpo",
        provider="tunekit-trl",
        loaded=loaded,
        adapter=LoraAdapter(lora) if lora else None,
        label=f"lora r={lora.r}" if lora else "",
        seed=seed,
        events=events,
        cancel=cancel,
        data=load_dataset(rows, accepts=accepts),
    )


PAIRS = [
    {"prompt": f"Say {word} {count} times.", "completion": " ".join([word] * count)}
    for word in ("red", "green", "blue", "grey")
    for count in (1, 2, 3, 4)
]
PREFERENCES = [
    {"prompt": f"Say {word} {count} times.", "chosen": " ".join([word] * count), "rejected": "no" * (5 - count)}
    for word in ("red", "green", "blue", "grey")
    for count in (1, 2, 3, 4)
]
