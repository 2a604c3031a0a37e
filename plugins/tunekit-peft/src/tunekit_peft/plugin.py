"""What tunekit-peft offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tunekit.plugins import AdapterSpec, StepSpec, hookimpl

api_version = 1

_REQUIRES = ("torch>=2.8", "transformers>=5.15,<6", "peft>=0.19,<0.22")


@hookimpl
def tunekit_adapters() -> Iterable[AdapterSpec]:
    """LoRA."""
    return [
        AdapterSpec(
            name="lora",
            target="tunekit_peft.adapter:LoraAdapter",
            options="tunekit_peft.options:LoraOptions",
            label="{name} r={r}",
            summary="LoRA (Hu et al. 2021) with its rsLoRA and DoRA variants; merged into the base with proof",
            requires=_REQUIRES,
            install="pip install tunekit-peft",
        )
    ]


@hookimpl
def tunekit_steps() -> Iterable[StepSpec]:
    """The merged model as a step of its own."""
    return [
        StepSpec(
            name="merge",
            target="tunekit_peft.merge:MergeStep",
            summary="The merged model of an adapter-trained step, in a folder of its own",
            requires=_REQUIRES,
            install="pip install tunekit-peft",
        )
    ]
