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
    """Supervised fine-tuning, and preference optimisation."""
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
        TrainerSpec(
            name="cpo",
            stage="align",
            target="tunekit_trl.dpo:CpoTrainer",
            options="tunekit_trl.pair_options:CpoOptions",
            summary="Contrastive preference optimisation (Xu et al. 2024): chosen and rejected answers, no reference model",
            data=("preference",),
            preview="tunekit_trl.preview:dpo",
            requires=_REQUIRES,
            install=_INSTALL,
        ),
        TrainerSpec(
            name="simpo",
            stage="align",
            target="tunekit_trl.dpo:SimpoTrainer",
            options="tunekit_trl.pair_options:SimpoOptions",
            summary="Simple preference optimisation (Meng et al. 2024): mean log-probabilities and a margin, no reference model",
            data=("preference",),
            preview="tunekit_trl.preview:dpo",
            requires=_REQUIRES,
            install=_INSTALL,
        ),
        TrainerSpec(
            name="orpo",
            stage="align",
            target="tunekit_trl.dpo:OrpoTrainer",
            options="tunekit_trl.pair_options:OrpoOptions",
            summary="Odds ratio preference optimisation (Hong et al. 2024): fine-tuning and preference in one, no reference model",
            data=("preference",),
            preview="tunekit_trl.preview:dpo",
            requires=_REQUIRES,
            install=_INSTALL,
        ),
    ]
