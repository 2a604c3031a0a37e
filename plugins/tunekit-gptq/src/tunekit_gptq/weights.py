"""Reads GPTQ folders into plain linear layers, or with packed kernels.

The interchange format (``quant_method: gptq``) stores, for a layer of ``in`` inputs and ``out`` outputs with ``bits``
per weight and ``groups`` groups of inputs:

* ``qweight``: int32, ``(in * bits / 32, out)``; every word holds ``32 / bits`` neighbouring inputs, lowest bits first.
* ``qzeros``: int32, ``(groups, out * bits / 32)``; every word holds neighbouring outputs. Layout ``gptq`` stores the
  zero points minus one, ``gptq_v2`` the zero points.
* ``scales``: float16, ``(groups, out)``.
* ``g_idx``: int32, ``(in,)``: the group of each input.

The weight of input ``i`` and output ``o`` is ``scales[g, o] * (code - zero)`` with ``g = g_idx[i]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunekit.errors import ArtifactError, MissingDependencyError
from tunekit.plugins import LoadedModel
from tunekit.plugins.hf import compute_dtype, default_device, quiet
from tunekit_gptq.folder import ZERO_OFFSETS, layout_of, layout_problem, quantization_config, weight_files
from tunekit_gptq.guard import contained

__all__ = ["PARTS", "dequantize", "load", "load_dequantized", "load_with_kernels"]

PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""Tensors of a quantized layer."""


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
        zero_offset: what the layout subtracts from the zero points: 1 for ``gptq``, 0 for ``gptq_v2``.

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
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    codes = ((qweight.unsqueeze(1) >> shifts.view(1, -1, 1)) & mask).reshape(inputs, outputs)
    # GPTQModel subtracts one from whole words, so that a zero point of 0 borrows from its neighbour: adding to whole
    # words (which wrap around) is the exact inverse. For zero points from 1 on it is the same as adding to each.
    ones = sum(zero_offset << shift for shift in range(0, 32, bits))
    words = qzeros + torch.tensor(ones, dtype=torch.int64).to(torch.int32)
    zeros = ((words.unsqueeze(2) >> shifts.view(1, 1, -1)) & mask).reshape(groups, -1)[:, :outputs]
    return (scales.float()[group] * (codes - zeros[group])).to(dtype)


def load(folder: Path) -> LoadedModel:
    """The model in ``folder`` as is right for this machine: packed on CUDA, dequantised elsewhere.

    Raises:
        ArtifactError: if files are missing, damaged, or in a layout that is not read.
        MissingDependencyError: on CUDA, if optimum or gptqmodel are missing.
    """
    if default_device().type == "cuda":
        return load_with_kernels(folder)
    return load_dequantized(folder)


def load_dequantized(folder: Path, *, dtype: torch.dtype | None = None) -> LoadedModel:
    """A GPTQ folder as a model of plain linear layers that hold exactly the numbers the codes stand for.

    GPTQModel is not imported. Memory and speed are those of the unquantized model in ``dtype``. The model is frozen and
    marked as quantized.

    Args:
        dtype: type of the weights and of the arithmetic; None: the one that is fast on this machine.

    Raises:
        ArtifactError: if files are missing, damaged, or in a layout that is not read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.pytorch_utils import Conv1D

    quantization = quantization_config(folder)
    if quantization is None:
        raise ArtifactError(f"{folder} holds no GPTQ model.", code="not-gptq", fix="load it as a plain model folder")
    unknown = layout_problem(quantization)
    if unknown:
        raise ArtifactError(f"{folder}: {unknown}.", code="gptq-layout", fix="save the model in the format gptq")
    dtype = dtype or compute_dtype()
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            del config.quantization_config
            with torch.device("meta"):
                shell = AutoModelForCausalLM.from_config(config)
            transposed = {name for name, module in shell.named_modules() if isinstance(module, Conv1D)}
            weights = _plain_weights(folder, ZERO_OFFSETS[layout_of(quantization)], dtype, transposed)
            model, report = type(shell).from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
            )
            del weights
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _damaged(folder, error) from error
    lost = sorted(report["missing_keys"])
    odd = sorted({str(key) for key in report["unexpected_keys"]} | {str(key) for key in report["mismatched_keys"]})
    if lost or odd:
        raise _damaged(folder, f"missing tensors {lost[:3]}, unusable tensors {odd[:3]}")
    model = model.to(default_device())
    return LoadedModel(model=_mark(model, quantization), tokenizer=tokenizer, path=folder)


def _plain_weights(folder: Path, zero_offset: int, dtype: torch.dtype, transposed: set[str]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    weights: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (no dict)
                layer, _, part = name.rpartition(".")
                tensor = stream.get_tensor(name)
                if part not in PARTS:
                    weights[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
                    continue
                found = parts.setdefault(layer, {})
                found[part] = tensor
                if len(found) == len(PARTS):
                    weight = dequantize(**parts.pop(layer), zero_offset=zero_offset, dtype=dtype)
                    weights[f"{layer}.weight"] = weight if layer in transposed else weight.T.contiguous()
    if parts:
        layer, found = next(iter(parts.items()))
        raise ValueError(f"{layer} lacks {', '.join(sorted(set(PARTS) - set(found)))}")
    return weights


def load_with_kernels(
    folder: Path, *, device_map: Any = "auto", dtype: torch.dtype | None = None, backend: str = "auto"
) -> LoadedModel:
    """A GPTQ folder with GPTQModel's packed kernels, through transformers: for accelerators.

    GPTQModel prints and changes the environment when it is imported; that is contained. The model is frozen and marked
    as quantized.

    Args:
        device_map: as ``from_pretrained`` takes it.
        dtype: type of the arithmetic; None: the one that is fast on this machine.
        backend: kernel, as GPTQModel spells it.

    Raises:
        ArtifactError: if files are missing or damaged.
        MissingDependencyError: if optimum or gptqmodel are missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

    quantization = quantization_config(folder) or {}
    try:
        with quiet(), contained():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or compute_dtype(),
                device_map=device_map,
                quantization_config=GPTQConfig(bits=quantization.get("bits", 4), backend=backend),
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise MissingDependencyError(
            "The packed GPTQ kernels need optimum and gptqmodel.",
            found=str(error),
            fix="pip install 'gptqmodel>=7.6,<8' 'optimum>=2.3,<3'",
        ) from error
    except Exception as error:
        raise _damaged(folder, error) from error
    return LoadedModel(model=_mark(model, quantization), tokenizer=tokenizer, path=folder)


def _mark(model: Any, quantization: dict[str, Any]) -> Any:
    """Frozen and marked as quantized in the words of transformers, so that its ``Trainer`` refuses it."""
    model.requires_grad_(False)
    model.is_quantized = True
    model.tunekit_quantized = f"gptq int{quantization.get('bits', '?')}"
    return model.eval()


def _damaged(folder: Path, error: object) -> ArtifactError:
    text = str(error).strip() or type(error).__name__
    return ArtifactError(
        f"The GPTQ model in {folder} cannot be read.",
        code="gptq-damaged",
        found=text,
        fix="quantize again, or copy the folder anew",
        details={"path": str(folder)},
    )
