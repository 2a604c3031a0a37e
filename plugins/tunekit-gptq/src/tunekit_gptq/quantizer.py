"""The quantize step: calibrate, run GPTQModel in a process of its own, measure what it cost."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunekit.errors import ArtifactError, StepError
from tunekit.plugins import Artifact, LoadedModel, ModelCard, StepContext
from tunekit.plugins.hf import compute_dtype, count_parameters, default_device, save_model, storage_errors
from tunekit_gptq.calibration import Calibration, choose
from tunekit_gptq.child import run_worker
from tunekit_gptq.folder import quantized_by, weights_size
from tunekit_gptq.options import GptqOptions
from tunekit_gptq.output import write_folder
from tunekit_gptq.quality import compare, measure
from tunekit_gptq.weights import load

__all__ = ["Gptq"]

_PACKED = 32
"""Inputs and outputs of a layer must be multiples of this: codes are packed in int32 words."""
_GROUP_SIZES = (128, 64, 32)


class Gptq:
    """int4 and int8 by GPTQ, through GPTQModel, in the interchange format that AutoGPTQ introduced.

    The artifact's ``details`` hold sizes before and after, group size, layers quantized and left out, what it was
    calibrated on, and the loss on held-out rows before and after.
    """

    def run(self, ctx: StepContext) -> Artifact:
        """Quantize the input model into ``ctx.dir / "model"``.

        Raises:
            StepError: if the input is quantized already or carries an unmerged adapter, no layer can be packed, there
                is nothing to calibrate with, or GPTQModel fails.
            ArtifactError: if the disk is full.
            RunCancelled: promptly after ``ctx.cancel``; the worker process is gone then.
        """
        options: GptqOptions = ctx.options
        work, target = ctx.dir / "work", ctx.dir / "model"
        with storage_errors(ctx.dir):
            for stale in (work, target):
                shutil.rmtree(stale, ignore_errors=True)
            work.mkdir(parents=True)
        try:
            return self._run(ctx, options, work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _run(self, ctx: StepContext, options: GptqOptions, work: Path, target: Path) -> Artifact:
        began = time.monotonic()
        if ctx.input_path is not None:
            refuse_input(ctx.input_path)
        before = ctx.model()
        refuse_model(before.model)
        source = ctx.input_path or save_model(before.model, before.tokenizer, work / "input")
        size_before = weights_size(source)
        shapes = linear_shapes(before.model)
        packed, kept = packable(shapes)
        group_size = self._group_size(ctx, options, packed)
        if kept:
            ctx.notice("gptq-layers-kept", _kept_message(kept, len(shapes)))
        calibration = self._calibration(ctx, options, before, packed)
        quality_before = measure(before.model, calibration.held_out, ctx.cancel)

        output = work / "raw"
        job = {
            "parent": os.getpid(),
            "input": str(source.resolve()),
            "output": str(output.resolve()),
            "offload": str((work / "offload").resolve()),
            "calibration": str((ctx.dir / "calibration.json").resolve()),
            "bits": int(options.scheme.removeprefix("int")),
            "group_size": group_size,
            "sym": options.sym,
            "desc_act": options.desc_act,
            "damp_percent": options.damp_percent,
            # The older layout cannot hold a zero point of 0, which only asymmetric rounding gives.
            "format": "gptq" if options.sym else "gptq_v2",
            "keep": exclusions(kept, packed),
            "seed": ctx.seed,
            **_placement(),
        }
        with storage_errors(ctx.dir):
            (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        done = run_worker(
            work / "job.json",
            folder=work,
            log=ctx.dir / "worker.log",
            cancel=ctx.cancel,
            progress=lambda layers, total: ctx.progress(layers, total, "layers"),
        )
        rest = getattr(torch, options.rest_dtype)
        layers, stored = write_folder(output, source, target, rest=rest, kept=sorted(kept))
        if stored != rest:
            ctx.notice("gptq-rest-dtype", f"Weights beyond the range of {options.rest_dtype} are stored as {stored}.")
        shutil.rmtree(work, ignore_errors=True)
        (ctx.dir / "worker.log").unlink(missing_ok=True)
        ctx.cancel.raise_if_cancelled()

        after = load(target)
        quality = compare(quality_before, measure(after.model, calibration.held_out, ctx.cancel))
        ctx.keep(after)
        size_after = weights_size(target)
        metrics: dict[str, Any] = {"seconds": time.monotonic() - began, "quantize_seconds": done["seconds"]}
        if quality["rows"]:
            measured = {key: quality[key] for key in ("nll_before", "nll_after", "top1_agreement")}
            metrics.update(measured)
            ctx.metrics(0, measured)
        else:
            ctx.notice("gptq-no-held-out", "There was a single calibration row, so nothing was left to measure with.")
        return Artifact(
            kind="model",
            model=ModelCard(
                path="model",
                parameters=count_parameters(before.model)[0],
                size_bytes=size_after,
                dtype=options.scheme,
                quantized=f"gptq {options.scheme}",
            ),
            metrics=metrics,
            details={
                "size_before": size_before,
                "size_after": size_after,
                "ratio": size_before / size_after,
                "scheme": options.scheme,
                "format": job["format"],
                "group_size": group_size,
                "ragged_layers": ragged(packed, group_size),
                "layers_quantized": len(layers),
                "layers_kept": sorted(kept),
                "rest_dtype": str(stored).removeprefix("torch."),
                "calibration": calibration.facts(),
                "quality": quality if quality["rows"] else None,
                "loaded_as": "packed kernels" if default_device().type == "cuda" else "dequantised on load",
            },
        )

    def _group_size(self, ctx: StepContext, options: GptqOptions, packed: Mapping[str, tuple[int, int]]) -> int:
        if not packed:
            raise StepError(
                "No layer of the model can be packed.",
                code="gptq-no-layers",
                found="linear layers whose inputs and outputs are multiples of 32: none",
                fix="leave the quantize step out for this model",
            )
        divides = [size for size in _GROUP_SIZES if not ragged(packed, size)]
        if options.group_size is None:
            return divides[0]
        odd = ragged(packed, options.group_size)
        if odd:
            inputs = sorted({packed[name][0] for name in odd})
            ctx.notice(
                "gptq-ragged-group",
                f"group_size={options.group_size} does not divide the {', '.join(map(str, inputs))} inputs of "
                f"{len(odd)} layers: their last group is smaller. GPTQModel, transformers and tunekit read that; "
                f"llm-compressor and kernels that need whole groups (Marlin, ExLlama in vLLM) refuse it. "
                f"group_size={divides[0]} divides every layer.",
            )
        return options.group_size

    def _calibration(
        self, ctx: StepContext, options: GptqOptions, before: LoadedModel, packed: Mapping[str, tuple[int, int]]
    ) -> Calibration:
        limit = getattr(before.model.config, "max_position_embeddings", None) or options.max_length
        widest = max(inputs for inputs, _ in packed.values())
        calibration = choose(
            [ctx.data] if ctx.data is not None else list(ctx.training_data),
            before.tokenizer,
            rows=options.calibration_rows,
            tokens=options.calibration_tokens or max(4096, 4 * widest),
            max_length=min(options.max_length, int(limit)),
            seed=ctx.seed,
        )
        with storage_errors(ctx.dir):
            text = json.dumps(calibration.to_data(), ensure_ascii=False)
            (ctx.dir / "calibration.json").write_text(text + "\n", encoding="utf-8")
        if calibration.tokens < 2 * widest:
            ctx.notice(
                "gptq-few-tokens",
                f"Calibrated on {calibration.tokens} tokens, fewer than twice the {widest} inputs of the widest layer: "
                "give more rows for a more exact model.",
            )
        return calibration


def refuse_input(folder: Path) -> None:
    """Raise StepError if ``folder`` holds a quantized model or an adapter alone."""
    method = quantized_by(folder)
    if method is not None:
        raise StepError(
            "The input of quantize is quantized already.",
            code="already-quantized",
            found=f"{folder}: {method}",
            fix="quantize the full-precision model it was made from: quantize(..., input=<its step>)",
        )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise StepError(
            "The input of quantize is an adapter without its base model.",
            code="unmerged-adapter",
            found=str(folder),
            fix="merge the adapter into its base first: .merge().quantize(...)",
        )
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder} is not a model folder: config.json is missing.", code="model-folder")


def refuse_model(model: Any) -> None:
    """Raise StepError if ``model`` carries an adapter, or holds weights that were rounded before."""
    # Tuner layers of PEFT have this attribute, also where no wrapper is left around the model.
    adapted = [name for name, module in model.named_modules() if hasattr(module, "adapter_layer_names")]
    if adapted or getattr(model, "peft_config", None):
        raise StepError(
            "The input of quantize carries an adapter that is not merged.",
            code="unmerged-adapter",
            found=f"{type(model).__name__} with an adapter on {len(adapted)} layers",
            fix="merge the adapter into its base first: model.merge_and_unload(), or .merge().quantize(...)",
        )
    if getattr(model, "is_quantized", False):
        method = getattr(model, "tunekit_quantized", None) or getattr(model, "quantization_method", None)
        raise StepError(
            "The input of quantize is quantized already.",
            code="already-quantized",
            found=f"{type(model).__name__} in memory: {method or 'marked as quantized'}",
            fix="quantize the full-precision model it was made from",
        )


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Name to (inputs, outputs) of the linear layers, the output layer left out."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, torch.nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return shapes


def packable(shapes: Mapping[str, tuple[int, int]]) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """Layers whose codes fill whole words, and the others."""
    fits = {name: shape for name, shape in shapes.items() if not any(size % _PACKED for size in shape)}
    return fits, {name: shape for name, shape in shapes.items() if name not in fits}


def ragged(shapes: Mapping[str, tuple[int, int]], group_size: int) -> list[str]:
    """Layers whose number of inputs ``group_size`` does not divide."""
    if group_size == -1:
        return []
    return sorted(name for name, (inputs, _) in shapes.items() if inputs % group_size)


def exclusions(kept: Mapping[str, Any], packed: Mapping[str, Any]) -> list[str]:
    """GPTQModel's rules that leave the layers ``kept`` alone: one per kind of layer where that hits no other."""

    def general(name: str) -> str:
        return r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))

    taken = {general(name) for name in packed}
    rules = {general(name) if general(name) not in taken else re.escape(name) for name in kept}
    return sorted(f"-:^{rule}$" for rule in rules)


def _placement() -> dict[str, Any]:
    """Device and weight type of the worker. On a CPU GPTQModel would take bfloat16, which is five times slower."""
    device = default_device()
    if device.type == "cpu":
        return {"device": "cpu", "dtype": str(compute_dtype()).removeprefix("torch.")}
    return {"device": None, "dtype": None}


def _kept_message(kept: Mapping[str, tuple[int, int]], count: int) -> str:
    sizes: Sequence[str] = sorted({f"{inputs}x{outputs}" for inputs, outputs in kept.values()})
    return (
        f"{len(kept)} of {count} linear layers stay as they are: their sizes ({', '.join(sizes)}) are not multiples of "
        f"{_PACKED}, which packing needs."
    )
