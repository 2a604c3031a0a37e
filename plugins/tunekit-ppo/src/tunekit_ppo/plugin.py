"""What tunekit-ppo offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tunekit.plugins import TrainerSpec, hookimpl

api_version = 1


@hookimpl
def tunekit_trainers() -> Iterable[TrainerSpec]:
    """Proximal policy optimisation."""
    return [
        TrainerSpec(
            name="ppo",
            stage="align",
            target="tunekit_ppo.ppo:PpoComponent",
            options="tunekit_ppo.options:PpoOptions",
            summary="Proximal policy optimisation (Ziegler et al. 2019) of scored completions, with a value head",
            data=("prompt",),
            rewards="required",
            preview="tunekit_ppo.preview:prompts",
            requires=("torch>=2.8", "transformers>=5.15,<6", "accelerate>=1.13,<2", "safetensors>=0.5"),
            install="pip install tunekit-ppo",
        ),
    ]
