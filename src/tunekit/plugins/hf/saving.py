"""Write a plain model folder that any tool of the field can read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError
from tunekit.plugins.hf.silence import quiet
from tunekit.storage import storage_errors, sync_tree

__all__ = ["count_parameters", "ready_for_use", "save_model", "strip_quantization"]


def count_parameters(model: Any) -> tuple[int, int]:
    """Number of parameters and of those that are trained; tied weights count once."""
    total = trained = 0
    for parameter in model.parameters():
        total += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    return total, trained


def strip_quantization(model: Any) -> Any:
    """Remove what marks a dequantised model (from a GGUF file) as quantized; returns the model.

    With the marks on, ``save_pretrained`` fails, ``Trainer`` refuses the model, and a saved folder would be read as
    quantized.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def ready_for_use(model: Any) -> Any:
    """Undo what training leaves behind: evaluation mode, cache on, no activation checkpointing; returns the model.

    All floating-point weights can be trained again: merging an adapter leaves the base frozen.
    """
    # transformers 5.2x renamed the pair; the old names warn.
    if hasattr(model, "activation_checkpointing_disable"):
        if model.is_activation_checkpointing:
            model.activation_checkpointing_disable()
    elif getattr(model, "is_gradient_checkpointing", False):
        model.gradient_checkpointing_disable()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model.eval()


def save_model(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write weights (safetensors), config, generation config and tokenizer with its chat template to ``folder``.

    What was in ``folder`` is replaced. Tied weights are stored once and tied again on loading; the type of the
    weights is recorded in the config. Files are flushed to the disk.

    Raises:
        ArtifactError: if the model is quantized, or the disk is full or cannot be written.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise ArtifactError(
            "A quantized model cannot be saved as a plain folder.",
            code="quantized-save",
            found=str(getattr(model, "quantization_method", "") or type(model.hf_quantizer).__name__),
            fix="save the model the quantized one was made from",
        )
    aside = folder.with_name(folder.name + ".partial")
    with storage_errors(folder), quiet():
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
        use_cache = getattr(model.config, "use_cache", None)
        if use_cache is not None:
            model.config.use_cache = True
        model.config.dtype = next(model.parameters()).dtype
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        try:
            model.save_pretrained(aside)
        finally:
            if use_cache is not None:
                model.config.use_cache = use_cache
        save_tokenizer(tokenizer, aside)
        sync_tree(aside)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(aside, folder)  # noqa: PTH104  (Path.rename would do the same)
    return folder


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer without the truncation and padding of its last call, which it would otherwise remember."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)
