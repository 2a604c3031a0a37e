"""A small honest exporter, float16 safetensors with everything that belongs to the model, and the same with one bug
each."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from tunekit.plugins import Artifact, ExporterSpec, LoadedModel, ModelCard, Options, StepContext, hookimpl

api_version = 1


class HalfOptions(Options):
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type of the exported weights."""


class LooseOptions(BaseModel):
    dtype: str = "float16"


class Half:
    """Writes a model folder in another type."""

    def run(self, ctx: StepContext) -> Artifact:
        folder = ctx.dir / "export"
        self.prepare(ctx, folder)
        loaded = ctx.model()
        tensors = self.tensors(ctx, loaded.model, getattr(torch, ctx.options.dtype))
        save_file(tensors, folder / "model.safetensors", metadata=self.metadata(ctx))
        config = copy.deepcopy(loaded.model.config)
        config.architectures = [type(loaded.model).__name__]
        config.dtype = getattr(torch, ctx.options.dtype)
        config.save_pretrained(folder)
        self.generation_config(loaded).save_pretrained(folder)
        self.tokenizer(loaded).save_pretrained(folder)
        return self.artifact(ctx, folder)

    def prepare(self, ctx: StepContext, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def tensors(self, ctx: StepContext, model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        made, seen = {}, set()
        for name, tensor in model.state_dict().items():
            ctx.cancel.raise_if_cancelled()
            if tensor.data_ptr() not in seen:  # tied weights are stored once
                seen.add(tensor.data_ptr())
                made[name] = tensor.detach().to(dtype, copy=True).contiguous()
        return made

    def metadata(self, ctx: StepContext) -> dict[str, str]:
        return {"format": "pt"}

    def generation_config(self, loaded: LoadedModel) -> Any:
        return loaded.model.generation_config

    def tokenizer(self, loaded: LoadedModel) -> Any:
        return loaded.tokenizer

    def artifact(self, ctx: StepContext, folder: Path) -> Artifact:
        return Artifact(kind="report", details={"path": folder.name, "format": ctx.options.dtype})


class DropsTheTemplate(Half):
    """Only the vocabulary is exported."""

    def tokenizer(self, loaded: LoadedModel) -> Any:
        bare = copy.deepcopy(loaded.tokenizer)
        bare.chat_template = None
        return bare


class Timestamps(Half):
    """The time of the export stands in the file's header."""

    def metadata(self, ctx: StepContext) -> dict[str, str]:
        return {"format": "pt", "exported": time.strftime("%Y-%m-%dT%H:%M:%S")}


class NamesItsFolder(Half):
    """An absolute path gets into the export."""

    def prepare(self, ctx: StepContext, folder: Path) -> None:
        super().prepare(ctx, folder)
        (folder / "export.json").write_text(json.dumps({"made_in": str(ctx.dir)}))


class HalvesInPlace(Half):
    """``model.half()`` works in place."""

    def tensors(self, ctx: StepContext, model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return super().tensors(ctx, model.to(dtype), dtype)


class LosesEos(Half):
    """The end token is left at the format's default."""

    def tokenizer(self, loaded: LoadedModel) -> Any:
        bare = copy.deepcopy(loaded.tokenizer)
        bare.eos_token = None
        return bare


class LosesGenerationConfig(Half):
    """The tokenizer knows the end token, generation does not."""

    def generation_config(self, loaded: LoadedModel) -> Any:
        bare = copy.deepcopy(loaded.model.generation_config)
        bare.eos_token_id = None
        return bare


class SwapsRows(Half):
    """Rows of the queries are permuted for a layout of rotary positions that the reader does not use."""

    def tensors(self, ctx: StepContext, model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        made = super().tensors(ctx, model, dtype)
        for name, tensor in made.items():
            if "q_proj" in name:
                made[name] = tensor.view(4, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape).contiguous()
        return made


class ForgetsTheHead(Half):
    """Every output layer is taken to be tied."""

    def tensors(self, ctx: StepContext, model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        made = super().tensors(ctx, model, dtype)
        if "lm_head.weight" in made:
            made["lm_head.weight"] = made["model.embed_tokens.weight"].clone()
        return made


class IgnoresCancel(Half):
    """Nothing looks at the cancel token."""

    def tensors(self, ctx: StepContext, model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {
            name: tensor.to(dtype, copy=True) for name, tensor in model.state_dict().items() if "lm_head" not in name
        }


class KeepsLeftovers(Half):
    """A journal is appended to, whatever an interrupted attempt left in it."""

    def prepare(self, ctx: StepContext, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        with (folder / "journal.txt").open("a") as stream:
            stream.write("started\n")


class WritesHere(Half):
    """A log is written to the current directory."""

    def prepare(self, ctx: StepContext, folder: Path) -> None:
        super().prepare(ctx, folder)
        Path("export.log").write_text("exporting")


class ClaimsAModel(Half):
    """The export is handed on as the model of the steps to come."""

    def artifact(self, ctx: StepContext, folder: Path) -> Artifact:
        return Artifact(kind="model", model=ModelCard(path=folder.name), details={"path": folder.name})


class TakesAnyOption(Half):
    """The options model allows extra fields."""


BUGGY = (
    DropsTheTemplate,
    Timestamps,
    NamesItsFolder,
    HalvesInPlace,
    LosesEos,
    LosesGenerationConfig,
    SwapsRows,
    ForgetsTheHead,
    IgnoresCancel,
    KeepsLeftovers,
    WritesHere,
    ClaimsAModel,
    TakesAnyOption,
)


@hookimpl
def tunekit_exporters() -> Iterable[ExporterSpec]:
    return [
        ExporterSpec(
            name=each.__name__.lower(),
            target=f"sabotage_exporters:{each.__name__}",
            options=f"sabotage_exporters:{'LooseOptions' if each is TakesAnyOption else 'HalfOptions'}",
        )
        for each in (Half, *BUGGY)
    ]
