"""What tunekit-gptq offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tunekit.plugins import QuantizerSpec, hookimpl

if TYPE_CHECKING:
    from tunekit.plugins import ModelSource

api_version = 1


@hookimpl
def tunekit_quantizers() -> Iterable[QuantizerSpec]:
    """GPTQ."""
    return [
        QuantizerSpec(
            name="gptq",
            target="tunekit_gptq.quantizer:Gptq",
            options="tunekit_gptq.options:GptqOptions",
            summary="int4 or int8 weights by GPTQ, calibrated on the run's own training data",
            requires=("torch>=2.8", "transformers>=5.15,<6", "gptqmodel>=7.6,<8", "optimum>=2.3,<3"),
            schemes=("int4", "int8"),
            calibrated=True,
        )
    ]


# Before the plugin for plain folders, which would take a GPTQ folder for one of them.
@hookimpl(tryfirst=True)
def tunekit_resolve_model(ref: str) -> ModelSource | None:
    """Folders that hold a GPTQ model."""
    from tunekit_gptq.source import resolve

    return resolve(ref)
