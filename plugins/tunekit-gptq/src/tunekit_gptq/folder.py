"""What a model folder says about itself. Standard library only: read while a plan is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError

__all__ = [
    "COMPANIONS",
    "ZERO_OFFSETS",
    "config_of",
    "layout_of",
    "layout_problem",
    "quantization_config",
    "quantized_by",
    "weight_files",
    "weights_size",
]

COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "chat_template.json",
)
"""Files that go with a model besides its config and weights."""

ZERO_OFFSETS: Mapping[str, int] = {"gptq": 1, "gptq_v2": 0}
"""Layout to what it subtracts from the zero points it stores."""


def config_of(folder: Path) -> dict[str, Any] | None:
    """``config.json`` of a model folder, or None if there is none that can be read."""
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def quantized_by(folder: Path) -> str | None:
    """Quantization method that ``config.json`` names, such as ``gptq`` or ``bitsandbytes``; None for a plain model."""
    config = config_of(folder) or {}
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        return None
    return str(found.get("quant_method", "unknown"))


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """The GPTQ section of ``config.json``, or None if the folder is not a GPTQ model."""
    if quantized_by(folder) != "gptq":
        return None
    found: dict[str, Any] = (config_of(folder) or {})["quantization_config"]
    return found


def layout_of(quantization: Mapping[str, Any]) -> str:
    """``gptq`` (the interchange format), ``gptq_v2``, or another layout of GPTQ weights."""
    return str(quantization.get("checkpoint_format") or quantization.get("format") or "gptq")


def layout_problem(quantization: Mapping[str, Any]) -> str:
    """Why the weights cannot be dequantised by us, or an empty text."""
    layout = layout_of(quantization)
    if layout not in ZERO_OFFSETS:
        return f"the GPTQ layout {layout!r} is not read; known are {', '.join(ZERO_OFFSETS)}"
    bits = quantization.get("bits")
    if bits not in (2, 4, 8):
        return f"GPTQ weights of {bits} bits are not read; known are 2, 4 and 8"
    return ""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those of its index, or its only one.

    Raises:
        ArtifactError: if there is none, or the index names files that are not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(f"{index} is damaged.", code="weights", found=str(error)) from error
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
        if not files[0].is_file():
            files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ArtifactError(
            f"The weights of {folder} are not complete.",
            code="weights",
            found=f"missing: {', '.join(missing) or '*.safetensors'}",
            fix="copy the folder anew, or run the step that makes it again",
        )
    return files


def weights_size(folder: Path) -> int:
    """Bytes of the weight files: safetensors, or those of ``torch.save``.

    Raises:
        ArtifactError: if there are none, or some are missing.
    """
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        return sum(file.stat().st_size for file in pickled)
    return sum(file.stat().st_size for file in weight_files(folder))
