"""A small honest quantizer, int8 by rounding with activation-aware scales, and the same with one bug each.

The folder holds for each linear layer the codes (int8, out x in), a scale per output and a factor per input; the weight
is ``codes * scale / factor``. ``config.json`` says ``quant_method: rtn8``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunekit.errors import StepError
from tunekit.plugins import (
    Artifact,
    DataOptions,
    LoadedModel,
    ModelCard,
    ModelSource,
    QuantizerSpec,
    StepContext,
    hookimpl,
)
from tunekit.plugins.hf import count_parameters

api_version = 1


class Rtn8Options(DataOptions):
    scheme: Literal["int8"] = "int8"
    """Width of the codes."""


class LooseOptions(BaseModel):
    data: Any = None
    scheme: str = "int8"


@dataclass
class Layer:
    """A rounded weight."""

    codes: torch.Tensor
    scale: torch.Tensor
    factor: torch.Tensor

    def weight(self) -> torch.Tensor:
        return self.codes.float() * self.scale.float()[:, None] / self.factor.float()[None, :]


class Rtn8:
    """Rounds every linear layer but the output layer."""

    def run(self, ctx: StepContext) -> Artifact:
        folder = ctx.dir / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        loaded = ctx.model()
        model = self.input(loaded.model)
        self.refuse(model)
        reach = self.activations(ctx, model, loaded.tokenizer)
        layers = {}
        for name in reach:
            self.look(ctx)
            layers[name] = self.rounded(model.get_submodule(name).weight.detach(), reach[name])
        self.write(folder, model, layers)
        self.companions(folder, model, loaded.tokenizer)
        ctx.keep(self.handed_on(ctx, folder, loaded, layers))
        card = ModelCard(path="model", parameters=count_parameters(model)[0], dtype="int8", quantized="rtn8 int8")
        return Artifact(kind="model", model=card, details={"layers": len(layers)})

    def input(self, model: Any) -> Any:
        return model

    def look(self, ctx: StepContext) -> None:
        ctx.cancel.raise_if_cancelled()

    def refuse(self, model: Any) -> None:
        if any(hasattr(module, "adapter_layer_names") for module in model.modules()):
            raise StepError(
                "The model carries an adapter.", code="unmerged-adapter", fix="merge it into its base first"
            )
        if getattr(model, "is_quantized", False):
            raise StepError("The model is quantized already.", code="already-quantized", fix="quantize the original")

    def source(self, ctx: StepContext) -> random.Random:
        return random.Random(ctx.seed)

    def activations(self, ctx: StepContext, model: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Largest input of every linear layer, over four calibration rows."""
        head = model.get_output_embeddings()
        found = {
            name: torch.zeros(module.in_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
        rows = [row["text"] for row in ctx.data.rows()]

        def widen(name: str, values: torch.Tensor) -> None:
            found[name] = found[name].maximum(values.abs().amax((0, 1)))

        hooks = [
            model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: widen(name, inputs[0]))
            for name in found
        ]
        try:
            with torch.no_grad():
                for text in self.source(ctx).sample(rows, 4):
                    self.look(ctx)
                    model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def rounded(self, weight: torch.Tensor, reach: torch.Tensor) -> Layer:
        factor = reach.clamp(min=1e-3).sqrt().half().float()
        scaled = weight * factor
        scale = (scaled.abs().amax(1) / 127).half().clamp(min=2**-14)
        codes = (scaled / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return Layer(codes, scale, factor.half())

    def write(self, folder: Path, model: Any, layers: Mapping[str, Layer]) -> None:
        save_file(self.tensors(model, layers), folder / "model.safetensors", metadata={"format": "pt"})

    def tensors(self, model: Any, layers: Mapping[str, Layer]) -> dict[str, torch.Tensor]:
        made, seen = {}, set()
        for name, tensor in model.state_dict().items():
            layer = name.removesuffix(".weight")
            if layer in layers:
                made |= {f"{layer}.{part}": getattr(layers[layer], part) for part in ("codes", "scale", "factor")}
            elif tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                made[name] = tensor.detach().clone()
        return made

    def companions(self, folder: Path, model: Any, tokenizer: Any) -> None:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.quantization_config = {"quant_method": "rtn8", "bits": 8}
        (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True))
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def handed_on(
        self, ctx: StepContext, folder: Path, loaded: LoadedModel, layers: Mapping[str, Layer]
    ) -> LoadedModel:
        return read(folder)


def read(folder: Path) -> LoadedModel:
    """The model in ``folder``, with plain layers that hold what the codes stand for; frozen and marked."""
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("quantization_config")
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    parts = load_file(folder / "model.safetensors")
    state = {name: tensor for name, tensor in parts.items() if name.endswith(".weight")}
    for name in [name.removesuffix(".codes") for name in parts if name.endswith(".codes")]:
        state[f"{name}.weight"] = Layer(*(parts[f"{name}.{part}"] for part in ("codes", "scale", "factor"))).weight()
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config)
    missing, odd = model.load_state_dict(state, strict=False)
    assert not odd and set(missing) <= {"lm_head.weight"}, (missing, odd)
    model.requires_grad_(False)
    model.is_quantized = True
    return LoadedModel(model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(folder), path=folder)


@dataclass
class Rtn8Folder:
    """A folder as :class:`Rtn8` writes it."""

    ref: str
    kind: str = "folder"

    def describe(self) -> str:
        return f"rtn8 model folder {self.ref}"

    def problems(self) -> Sequence[str]:
        return ()

    def fingerprint(self) -> str:
        return hashlib.sha256((Path(self.ref) / "model.safetensors").read_bytes()).hexdigest()

    def load(self) -> LoadedModel:
        return read(Path(self.ref))


# ---------------------------------------------------------------- bugs


class HandsOnTheUnrounded(Rtn8):
    """Scales are stored in float16; the model that the step hands on was made with those in float32."""

    def handed_on(
        self, ctx: StepContext, folder: Path, loaded: LoadedModel, layers: Mapping[str, Layer]
    ) -> LoadedModel:
        kept = read(folder)
        for name, layer in layers.items():
            exact = loaded.model.get_submodule(name).weight.detach()
            kept.model.get_submodule(name).weight.data = (layer.weight() + exact) / 2
        return kept


class FakeQuantization(Rtn8):
    """The codes are stored as floats."""

    def rounded(self, weight: torch.Tensor, reach: torch.Tensor) -> Layer:
        layer = super().rounded(weight, reach)
        layer.codes = layer.codes.float()
        return layer


class KeepsTheOriginal(Rtn8):
    """The original weights lie beside the codes."""

    def write(self, folder: Path, model: Any, layers: Mapping[str, Layer]) -> None:
        super().write(folder, model, layers)
        save_file(super().tensors(model, {}), folder / "original.safetensors")


class UnseededCalibration(Rtn8):
    """Calibration rows are drawn without the seed."""

    def source(self, ctx: StepContext) -> random.Random:
        return random.Random()


class DropsTheAdapter(Rtn8):
    """An adapter is left out without a word."""

    def input(self, model: Any) -> Any:
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        return plain.unload() if hasattr(plain, "unload") else plain

    def refuse(self, model: Any) -> None:
        return None

    def activations(self, ctx: StepContext, model: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
        return {name: reach for name, reach in super().activations(ctx, model, tokenizer).items() if "lora" not in name}


class RoundsInPlace(Rtn8):
    """The rounded weights are put into the input model, which is then handed on."""

    def handed_on(
        self, ctx: StepContext, folder: Path, loaded: LoadedModel, layers: Mapping[str, Layer]
    ) -> LoadedModel:
        for name, layer in layers.items():
            loaded.model.get_submodule(name).weight.data = layer.weight()
        return loaded


class WrongAxis(Rtn8):
    """One scale of each layer is used for all its outputs."""

    def rounded(self, weight: torch.Tensor, reach: torch.Tensor) -> Layer:
        layer = super().rounded(weight, reach)
        layer.scale = layer.scale.mean().expand_as(layer.scale).contiguous()
        return layer


class DropsTheTemplate(Rtn8):
    """The chat template does not travel."""

    def companions(self, folder: Path, model: Any, tokenizer: Any) -> None:
        bare = copy.deepcopy(tokenizer)
        bare.chat_template = None
        super().companions(folder, model, bare)


class UntiesTheHead(Rtn8):
    """The config says that embeddings are tied, whatever they are."""

    def companions(self, folder: Path, model: Any, tokenizer: Any) -> None:
        super().companions(folder, model, tokenizer)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))


class IgnoresCancel(Rtn8):
    """Nothing looks at the cancel token."""

    def look(self, ctx: StepContext) -> None:
        return None


class TakesAnyOption(Rtn8):
    """The options model allows extra fields."""


class RoundsTwice(Rtn8):
    """A quantized model is quantized again."""

    def refuse(self, model: Any) -> None:
        if any(hasattr(module, "adapter_layer_names") for module in model.modules()):
            super().refuse(model)


class WritesHere(Rtn8):
    """A log is written to the current directory."""

    def write(self, folder: Path, model: Any, layers: Mapping[str, Layer]) -> None:
        super().write(folder, model, layers)
        Path("quantize.log").write_text("done")


BUGGY = (
    HandsOnTheUnrounded,
    FakeQuantization,
    KeepsTheOriginal,
    UnseededCalibration,
    DropsTheAdapter,
    RoundsInPlace,
    WrongAxis,
    DropsTheTemplate,
    UntiesTheHead,
    IgnoresCancel,
    TakesAnyOption,
    RoundsTwice,
    WritesHere,
)


@hookimpl
def tunekit_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name=each.__name__.lower(),
            target=f"sabotage_quantizers:{each.__name__}",
            options=f"sabotage_quantizers:{'LooseOptions' if each is TakesAnyOption else 'Rtn8Options'}",
            schemes=("int8",),
            calibrated=True,
        )
        for each in (Rtn8, *BUGGY)
    ]


@hookimpl(tryfirst=True)
def tunekit_resolve_model(ref: str) -> ModelSource | None:
    try:
        config = json.loads((Path(ref) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    ours = config.get("quantization_config", {}).get("quant_method") == "rtn8"
    return Rtn8Folder(ref) if ours else None
