"""What tunekit-trl offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tunekit.plugins import RewardSpec, TrainerSpec, hookimpl

api_version = 1

_REQUIRES = (
    "torch>=2.8",
    "transformers>=5.15,<6",
    "accelerate>=1.13,<2",
    "datasets>=4.7,<6",
)
_INSTALL = "pip install tunekit-trl"

_trainer = partial(TrainerSpec, requires=_REQUIRES, install=_INSTALL)


@hookimpl
def tunekit_trainers() -> Iterable[TrainerSpec]:
    """Supervised fine-tuning, and preference optimisation."""
    return [
        _trainer(
            name="sft",
            stage="sft",
            target="tunekit_trl.sft:SftTrainer",
            options="tunekit_trl.options:SftOptions",
            summary="Supervised fine-tuning on prompts with completions, conversations, or plain text",
            data=("prompt_completion", "conversation", "text"),
            preview="tunekit_trl.preview:sft",
        ),
        _trainer(
            name="reward",
            stage="reward",
            target="tunekit_trl.reward:RewardTrainer",
            options="tunekit_trl.reward_options:RewardOptions",
            summary="Reward model on pairs (Bradley-Terry), ranked lists, ratings or thumbs",
            data=("preference", "ranked", "rated", "feedback", "regression"),
            preview="tunekit_trl.reward_preview:reward",
            scored_by="reward-model",
        ),
        _trainer(
            name="dpo",
            stage="align",
            target="tunekit_trl.dpo:DpoTrainer",
            options="tunekit_trl.options:DpoOptions",
            summary="Direct preference optimisation (Rafailov et al. 2023) on chosen and rejected answers",
            data=("preference",),
            rewards="optional",
            preview="tunekit_trl.preview:dpo",
        ),
        _trainer(
            name="cpo",
            stage="align",
            target="tunekit_trl.dpo:CpoTrainer",
            options="tunekit_trl.pair_options:CpoOptions",
            summary="Contrastive preference optimisation (Xu et al. 2024) on pairs, without a reference model",
            data=("preference",),
            rewards="optional",
            preview="tunekit_trl.preview:dpo",
        ),
        _trainer(
            name="simpo",
            stage="align",
            target="tunekit_trl.dpo:SimpoTrainer",
            options="tunekit_trl.pair_options:SimpoOptions",
            summary="Simple preference optimisation (Meng et al. 2024) on pairs, without a reference model",
            data=("preference",),
            rewards="optional",
            preview="tunekit_trl.preview:dpo",
        ),
        _trainer(
            name="orpo",
            stage="align",
            target="tunekit_trl.dpo:OrpoTrainer",
            options="tunekit_trl.pair_options:OrpoOptions",
            summary="Odds ratio preference optimisation (Hong et al. 2024): fine-tuning and preference in one",
            data=("preference",),
            rewards="optional",
            preview="tunekit_trl.preview:dpo",
        ),
        _trainer(
            name="kto",
            stage="align",
            target="tunekit_trl.unpaired:KtoTrainer",
            options="tunekit_trl.unpaired_options:KtoOptions",
            summary="Kahneman-Tversky optimisation (Ethayarajh et al. 2024) on single answers judged good or bad",
            data=("feedback",),
            preview="tunekit_trl.preview:unpaired",
            rewards="optional",
        ),
        _trainer(
            name="bco",
            stage="align",
            target="tunekit_trl.unpaired:BcoTrainer",
            options="tunekit_trl.unpaired_options:BcoOptions",
            summary="Binary classifier optimisation (Jung et al. 2024) on single answers judged good or bad",
            data=("feedback",),
            preview="tunekit_trl.preview:unpaired",
            rewards="optional",
        ),
        _trainer(
            name="grpo",
            stage="align",
            target="tunekit_trl.online:GrpoTrainer",
            options="tunekit_trl.online_options:GrpoOptions",
            summary="Group relative policy optimisation (Shao et al. 2024) on prompts, by rewards",
            data=("prompt",),
            rewards="required",
            preview="tunekit_trl.prompt_preview:online",
        ),
        _trainer(
            name="rloo",
            stage="align",
            target="tunekit_trl.online:RlooTrainer",
            options="tunekit_trl.online_options:RlooOptions",
            summary="REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024) on prompts, by rewards",
            data=("prompt",),
            rewards="required",
            preview="tunekit_trl.prompt_preview:online",
        ),
        _trainer(
            name="online-dpo",
            stage="align",
            target="tunekit_trl.online:OnlineDpoTrainer",
            options="tunekit_trl.online_options:OnlineDpoOptions",
            summary="Online direct preference optimisation (Guo et al. 2024) on prompts: pairs by rewards",
            data=("prompt",),
            rewards="required",
            preview="tunekit_trl.prompt_preview:online",
        ),
        _trainer(
            name="iterative-dpo",
            stage="align",
            target="tunekit_trl.rounds:IterativeDpoTrainer",
            options="tunekit_trl.round_options:IterativeDpoOptions",
            summary="DPO in rounds on the model's own completions, each kept or rolled back by held-out prompts",
            data=("prompt",),
            rewards="required",
            preview="tunekit_trl.prompt_preview:online",
        ),
    ]


@hookimpl
def tunekit_rewards() -> Iterable[RewardSpec]:
    """What completions are scored with."""
    return [
        RewardSpec(
            name="exact-match",
            target="tunekit_trl.rewards.rules:ExactMatch",
            options="tunekit_trl.rewards.options:ExactMatchOptions",
            summary="1 for the right final answer (numbers, GSM8K, boxed LaTeX), else 0",
            columns=("answer",),
        ),
        RewardSpec(
            name="format",
            target="tunekit_trl.rewards.rules:Format",
            options="tunekit_trl.rewards.options:FormatOptions",
            summary="1 for a completion that a regular expression matches, else 0",
        ),
        RewardSpec(
            name="length",
            target="tunekit_trl.rewards.rules:Length",
            options="tunekit_trl.rewards.options:LengthOptions",
            summary="0 for a good length, down to -1 for one that is too long or far from a target",
        ),
        RewardSpec(
            name="reward-model",
            target="tunekit_trl.reward_model:RewardModel",
            options="tunekit_trl.reward_options:RewardModelOptions",
            summary="The score of a reward model: a reward step's, or any sequence-classification model",
            requires=_REQUIRES,
            install=_INSTALL,
        ),
    ]
