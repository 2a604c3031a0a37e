"""What tunekit-trl offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tunekit.plugins import TrainerSpec, hookimpl

api_version = 1

_REQUIRES = (
    "torch>=2.8",
    "transformers>=5.15,<6",
    "accelerate>=1.13,<2",
    "datasets>=4.7,<6",
    # 1.15 fails on machines without Triton.
    "trl>=1.14,!=1.15.*,<1.17",
)
_INSTALL = "pip install tunekit-trl"


@hookimpl
def tunekit_trainers() -> Iterable[TrainerSpec]:
    """Supervised fine-tuning, and direct preference optimisation."""
    return [
        TrainerSpec(
            name="sft",
            stage="sft",
            target="tunekit_trl.sft:SftTrainer",
            options="tunekit_trl.options:SftOptions",
            summary="Supervised fine-tuning on prompts with completions, conversations, or plain text",
            data=("prompt_completion", "conversation", "text"),
            preview="tunekit_trl.preview:sft",
            requires=_REQUIRES,
            install=_INSTALL,
        ),
        TrainerSpec(
            name="dpo",
            stage="align",
            target="tunekit_trl.dpo:DpoTrainer",
            options="tunekit_trl.options:DpoOptions",
            summary="Direct preference optimisation (Rafailov et al. 2023) on chosen and rejected answers",
            data=("preference",),
            preview="tunekit_trl.preview:dpo",
            requires=_REQUIRES,
            install=_INSTALL,
        ),
    ]
