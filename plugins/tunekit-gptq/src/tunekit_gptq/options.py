"""Options of ``quantize(method="gptq")``. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunekit.plugins import DataOptions

__all__ = ["GptqOptions"]


class GptqOptions(DataOptions):
    """GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): weights are rounded column by column, and what is
    lost is made up for in the columns that follow, weighted by the activations of the calibration rows.

    ``data`` is for calibration rows of one's own; by default the run's training data are used.
    """

    scheme: Literal["int4", "int8"] = "int4"
    """Width of the stored weights."""
    group_size: Literal[-1, 16, 32, 64, 128, 256, 512, 1024] | None = None
    """Inputs that share a scale; -1: all of a row. None: the largest of 128, 64 and 32 that divides every layer's
    number of inputs."""
    sym: bool = True
    """Symmetric rounding. False stores zero points too, in the format ``gptq_v2``, which fewer tools read."""
    desc_act: bool = False
    """Round the columns with the largest activations first: a little more exact, slower when used."""
    damp_percent: float = Field(default=0.05, gt=0, lt=1)
    """Share of the mean diagonal that is added to the Hessian, so that it can be inverted."""
    calibration_rows: int = Field(default=128, ge=1, json_schema_extra={"unit": "rows"})
    """Most calibration rows."""
    calibration_tokens: int | None = Field(default=None, ge=64, json_schema_extra={"unit": "tokens"})
    """Calibration ends at this many tokens. None: four for each input of the widest layer, at least 4096."""
    max_length: int = Field(default=512, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest calibration row in tokens; longer texts are cut to pieces, longer chats at their end."""
    rest_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type of what is not quantized: embeddings, norms, the output layer."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of the choice of calibration rows. None: the run's seed."""
