"""Reads GPTQ folders into plain linear layers.

The interchange format (``quant_method: gptq``) stores, for a layer of ``in`` inputs and ``out`` outputs with ``bits``
per weight and ``groups`` groups of inputs:

* ``qweight``: int32, ``(in * bits / 32, out)``; every word holds ``32 / bits`` neighbouring inputs, lowest bits first.
* ``qzeros``: int32, ``(groups, out * bits / 32)``; every word holds neighbouring outputs. Format ``gptq`` stores the
  zero point minus one, ``gptq_v2`` the zero point.
* ``scales``: float16, ``(groups, out)``.
* ``g_idx``: int32, ``(in,)``: the group of each input.

The weight of input ``i`` and output ``o`` is ``scales[g, o] * (code - zero)`` with ``g = g_idx[i]``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tunekit.errors import ArtifactError
from tunekit_gptq.folder import quantization_config, weight_files

__all__ = ["dequantize", "load_dequantized", "load_with_kernels"]

_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def _unpack(words: torch.Tensor, bits: int, *, rows: bool) -> torch.Tensor:
    """The unsigned codes in int32 words: along the rows for weights, along the columns for zero points."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    if rows:
        codes = (words.unsqueeze(1) >> shifts.view(1, -1, 1)) & mask
        return codes.reshape(-1, words.shape[1])
    codes = (words.unsqueeze(2) >> shifts.view(1, 1, -1)) & mask
    return codes.reshape(words.shape[0], -1)


def dequantize(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor,
    *,
    zero_offset: int = 1,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The weight that the codes stand for, shape ``(in, out)``, computed in float32 and cast to ``dtype``.

    Args:
        zero_offset: what the format subtracted from the zero points: 1 for ``gptq``, 0 for ``gptq_v2``.

    Raises:
        ValueError: if the shapes do not belong together, or the width is not 2, 4 or 8 bits.
    """
    inputs = g_idx.numel()
    bits, rest = divmod(qweight.shape[0] * 32, inputs)
    if rest or bits not in (2, 4, 8):
        raise ValueError(f"qweight of shape {tuple(qweight.shape)} for {inputs} inputs is not packed in 2, 4 or 8 bits")
    groups, outputs = scales.shape
    if qweight.shape[1] != outputs or qzeros.shape[0] != groups or qzeros.shape[1] * (32 // bits) < outputs:
        raise ValueError(
            f"shapes differ: qweight {tuple(qweight.shape)}, qzeros {tuple(qzeros.shape)}, scales {tuple(scales.shape)}"
        )
    group = g_idx.long()
    if int(group.min()) < 0 or int(group.max()) >= groups:
        raise ValueError(f"g_idx names a group outside 0..{groups - 1}")
    codes = _unpack(qweight, bits, rows=True).float()
    # The sum may leave the bits of a word: a stored zero of 2**bits - 1 stands for 2**bits in the v1 format.
    zeros = (_unpack(qzeros, bits, rows=False)[:, :outputs] + zero_offset).float()
    return (scales.float()[group] * (codes - zeros[group])).to(dtype)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """transformers without its progress bars, which would go to the caller's terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _plain_weights(folder: Path, zero_offset: int, dtype: torch.dtype, transposed: set[str]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    weights: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (not a dict)
                layer, _, part = name.rpartition(".")
                if part not in _PARTS:
                    tensor = stream.get_tensor(name)
                    weights[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
                    continue
                found = parts.setdefault(layer, {})
                found[part] = stream.get_tensor(name)
                if len(found) == len(_PARTS):
                    weight = dequantize(**parts.pop(layer), zero_offset=zero_offset, dtype=dtype)
                    weights[f"{layer}.weight"] = weight if layer in transposed else weight.T.contiguous()
    if parts:
        layer, found = next(iter(parts.items()))
        raise ValueError(f"{layer} lacks {', '.join(sorted(set(_PARTS) - set(found)))}")
    return weights


def load_dequantized(folder: Path, *, dtype: torch.dtype | None = None, device: str | None = None) -> tuple[Any, Any]:
    """Model and tokenizer of a GPTQ folder, with plain linear layers that hold exactly the numbers the codes stand for.

    GPTQModel is not imported. Memory is that of the unquantized model in ``dtype``.

    Args:
        dtype: type of the weights and of the arithmetic; default: the one that is fast on this machine.

    Raises:
        ArtifactError: if files are missing, damaged, or in a layout that is not read here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.pytorch_utils import Conv1D

    quantization = quantization_config(folder)
    if quantization is None:
        raise ArtifactError(f"{folder} holds no GPTQ model.", code="not-gptq", fix="load it as a plain model folder")
    layout = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
    offsets = {"gptq": 1, "gptq_v2": 0}
    if layout not in offsets:
        raise ArtifactError(
            f"The GPTQ layout {layout!r} of {folder} is not read on this device.",
            code="gptq-layout",
            asked=f"checkpoint_format {layout!r}",
            found="known layouts: gptq, gptq_v2",
            fix="save the model in the format gptq",
        )
    if dtype is None:
        from tunekit.plugins.hf import compute_dtype

        dtype = compute_dtype()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        del config.quantization_config
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config)
        transposed = {name for name, module in shell.named_modules() if isinstance(module, Conv1D)}
        weights = _plain_weights(folder, offsets[layout], dtype, transposed)
        with quiet_loading():
            model, report = type(shell).from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
            )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise _damaged(folder, error) from error
    lost = sorted(report["missing_keys"])
    odd = sorted({str(key) for key in report["unexpected_keys"]} | {str(key) for key in report["mismatched_keys"]})
    if lost or odd:
        raise _damaged(folder, f"missing tensors {lost[:3]}, unusable tensors {odd[:3]}")
    if device:
        model = model.to(device)
    return mark(model, quantization), tokenizer


def load_with_kernels(folder: Path, *, device_map: Any = "auto", dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Model and tokenizer of a GPTQ folder with GPTQModel's packed kernels, through transformers: for accelerators.

    GPTQModel changes the environment and prints when it is imported; both are undone here.

    Raises:
        ArtifactError: if files are missing or damaged.
        MissingDependencyError: if optimum or gptqmodel are missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunekit_gptq.guard import contained

    try:
        with quiet_loading(), contained():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or torch.float16, device_map=device_map, local_files_only=True
            )
            model.eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        from tunekit.errors import MissingDependencyError

        raise MissingDependencyError(
            "GPTQ kernels need optimum and gptqmodel.",
            found=str(error),
            fix="pip install 'gptqmodel>=7.6,<8' 'optimum>=2.3,<3'",
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(folder, error) from error
    return mark(model, quantization_config(folder) or {}), tokenizer


def mark(model: Any, quantization: dict[str, Any]) -> Any:
    """Frozen and marked as quantized, in the words of transformers, so that its ``Trainer`` and ours refuse it."""
    model.requires_grad_(False)
    model.is_quantized = True
    model.tunekit_quantized = f"gptq int{quantization.get('bits', '?')}"
    return model.eval()


def _damaged(folder: Path, error: object) -> ArtifactError:
    return ArtifactError(
        f"The GPTQ model in {folder} cannot be read.",
        code="gptq-damaged",
        found=str(error),
        fix="quantize again, or copy the folder anew",
        details={"path": str(folder)},
    )
