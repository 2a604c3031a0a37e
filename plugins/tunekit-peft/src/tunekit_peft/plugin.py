"""What tunekit-peft offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from tunekit.plugins import AdapterSpec, hookimpl

api_version = 1


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
            requires=("torch>=2.8", "transformers>=5.15,<6", "peft>=0.19,<0.22"),
            install="pip install tunekit-peft",
        )
    ]
