"""From what GPTQModel writes to a model folder that any tool of the field can read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunekit.errors import StepError
from tunekit.plugins.hf import storage_errors
from tunekit_gptq.folder import COMPANIONS, config_of, weight_files
from tunekit_gptq.weights import PARTS

__all__ = ["write_folder"]

_META = ("quantizer", "damp_percent", "act_group_aware", "true_sequential", "static_groups")
"""What is kept of GPTQModel's own notes; the rest holds paths of this machine or defaults of the library."""


def write_folder(
    raw: Path, source: Path, target: Path, *, rest: torch.dtype, kept: Sequence[str]
) -> tuple[list[str], torch.dtype]:
    """Write ``target`` out of GPTQModel's folder ``raw`` and the input model's folder ``source``.

    Weights that are not quantized are stored as ``rest`` (bfloat16 in place of float16 where a value is out of its
    range). Config, tokenizer, chat template and generation config are those of the input model: GPTQModel changes them.

    Args:
        kept: names of linear layers that were left as they are.

    Returns:
        Names of the quantized layers, and the type of the rest.

    Raises:
        ArtifactError: if the disk is full or cannot be written.
        StepError: if a quantized tensor is not finite.
    """
    rest = _fitting(raw, rest)
    layers: list[str] = []
    with storage_errors(target):
        target.mkdir(parents=True)
        for file in weight_files(raw):
            layers += _copy_weights(file, target / file.name, rest)
        _copy_index(raw, target)
        for pattern in COMPANIONS:
            for file in source.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, target / file.name)
        for folder in source.glob("additional_chat_templates"):
            shutil.copytree(folder, target / folder.name)
        quantization = _quantization(raw, layers, kept)
        config = {**(config_of(source) or {}), "quantization_config": quantization}
        config.pop("torch_dtype", None)
        config["dtype"] = str(rest).removeprefix("torch.")
        _write_json(target / "config.json", config)
        # AutoGPTQ and tools of its time read this file in place of the config.
        _write_json(target / "quantize_config.json", quantization)
        for file in target.iterdir():
            if file.is_file():
                _flush(file)
    return layers, rest


def _fitting(raw: Path, rest: torch.dtype) -> torch.dtype:
    from safetensors import safe_open

    if rest != torch.float16:
        return rest
    for file in weight_files(raw):
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (no dict)
                if name.rpartition(".")[2] in PARTS:
                    continue
                tensor = stream.get_tensor(name)
                if tensor.is_floating_point() and float(tensor.abs().max()) > torch.finfo(torch.float16).max:
                    return torch.bfloat16
    return rest


def _copy_weights(source: Path, target: Path, rest: torch.dtype) -> list[str]:
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    layers: list[str] = []
    with safe_open(source, framework="pt") as stream:
        names = set(stream.keys())
        layers = sorted(name.removesuffix(".qweight") for name in names if name.endswith(".qweight"))
        quantized = set(layers)
        for name in sorted(names):
            tensor = stream.get_tensor(name)
            layer, _, part = name.rpartition(".")
            if layer in quantized and part in PARTS:
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise StepError(
                        f"Quantization gave numbers that are not finite in {name}.",
                        code="gptq-not-finite",
                        fix="raise damp_percent, or give more calibration rows",
                    )
                tensors[name] = tensor
            else:
                tensors[name] = tensor.to(rest) if tensor.is_floating_point() else tensor
    save_file(tensors, target, metadata={"format": "pt"})
    return layers


def _copy_index(raw: Path, target: Path) -> None:
    index = raw / "model.safetensors.index.json"
    if not index.is_file():
        return
    data = json.loads(index.read_text(encoding="utf-8"))
    data["metadata"] = {"total_size": sum(file.stat().st_size for file in target.glob("*.safetensors"))}
    _write_json(target / index.name, data)


def _quantization(raw: Path, layers: Sequence[str], kept: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = dict((config_of(raw) or {})["quantization_config"])
    notes = found.get("meta") or {}
    found["meta"] = {key: notes[key] for key in _META if key in notes}
    if kept:
        # optimum knows nothing of GPTQModel's "dynamic" rules, and asks for the layers inside a block.
        found["modules_in_block_to_quantize"] = [sorted({_inside_block(name) for name in layers})]
    return found


def _inside_block(layer: str) -> str:
    parts = layer.split(".")
    last = max((at for at, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last + 1 :])


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
