"""Tokenizers and hand-built step contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tunekit.cancel import CancelToken
from tunekit.context import StepContext
from tunekit.data import load_dataset
from tunekit.plan import ComponentRef, ResolvedAdapter, ResolvedStep
from tunekit.plugins import LoadedModel
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


class Events(list[tuple[str, dict[str, Any]]]):
    """What a step said, in order."""

    def __call__(self, kind: str, **values: Any) -> None:
        self.append((kind, values))

    def named(self, kind: str) -> list[dict[str, Any]]:
        return [values for name, values in self if name == kind]

    @property
    def losses(self) -> list[float]:
        return [values["values"]["loss"] for values in self.named("metrics")]

    def codes(self) -> list[str]:
        return [values["code"] for values in self.named("notice")]


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
) -> StepContext:
    """A context as the core builds it. ``kind`` is ``sft`` or ``align``."""
    accepts = ("prompt_completion", "conversation", "text") if kind == "sft" else ("preference",)
    name = "sft" if kind == "sft" else "dpo"
    component = ComponentRef(kind="trainer", name=name, provider="tunekit-trl", version="0", target="x:y", stage=kind)
    adapter = None
    if lora is not None:
        adapter = ResolvedAdapter(
            component=ComponentRef(kind="adapter", name="lora", provider="tunekit-peft", version="0", target="x:y"),
            options={},
            label=f"lora r={lora.r}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[LoadedModel] = []
    ctx = StepContext(
        run_id="test",
        step=ResolvedStep(
            index=1,
            kind=kind,
            name=kind,
            component=component,
            options={},
            input=None,
            adapter=adapter,
            trains=adapter.label if adapter else "full",
            data="list",
        ),
        options=options.resolve(adapter="lora" if lora else None),
        seed=seed,
        dir=folder,
        cancel=cancel or CancelToken(),
        input=None,
        adapter=LoraAdapter(lora) if lora else None,
        data=load_dataset(rows, accepts=accepts),
        _component=lambda: None,
        _load=lambda: loaded,
        _keep=kept.append,
        _emit=Events() if events is None else events,
    )
    ctx.kept = kept  # type: ignore[attr-defined]
    return ctx


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
