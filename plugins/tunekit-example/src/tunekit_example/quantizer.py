"""Round linear weights to int8: one scale for each row, the largest weight of a row becomes 127."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tunekit.errors import StepError
from tunekit.plugins import Artifact, ModelCard, StepContext, hf
from tunekit_example.source import METHOD, SCALE


def round_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest int8 codes, (outputs, inputs), and a float32 scale for each row, (outputs, 1)."""
    values = weight.detach().float()
    scale = values.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(values / scale).to(torch.int8), scale


class RtnQuantizer:
    """The input model stays as it is; the rounded one is written to ``model/``."""

    def run(self, ctx: StepContext) -> Artifact:
        """Round layer by layer and write the folder."""
        loaded = ctx.model()
        model = loaded.model
        refuse_changed(model)
        head = model.get_output_embeddings()
        linear = {
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():  # a tied weight comes once
            ctx.cancel.raise_if_cancelled()
            if name in linear:
                codes, scale = round_rows(parameter)
                tensors[name], tensors[name + SCALE] = codes.cpu(), scale.cpu()
            else:
                tensors[name] = parameter.detach().cpu().contiguous()
            ctx.progress(len(tensors), None, "tensors", "rounding")
        folder = ctx.dir / "model"
        folder.mkdir()
        with hf.storage_errors(folder):
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            loaded.tokenizer.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
            config["quantization_config"] = {"quant_method": METHOD, "bits": 8}
            (folder / "config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
        total, _ = hf.count_parameters(model)
        return Artifact(
            kind="model",
            model=ModelCard(path=folder.name, parameters=total, dtype="int8", quantized=f"{METHOD} int8"),
            details={"layers": len(linear)},
        )


def refuse_changed(model: Any) -> None:
    """Only a plain model can be rounded: an adapter's weights, or rounded ones, would be lost without a word."""
    if getattr(model, "is_quantized", False):
        raise StepError("The model is quantized already.", fix="quantize the model it was made from")
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    extra = sorted({name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()})
    if extra:
        raise StepError(
            "The model carries an adapter.",
            found=f"{len(extra)} weights that a {type(plain).__name__} does not have, such as {extra[0]}",
            fix="merge the adapter into its base first",
        )
