"""LoRA as tunekit-peft does it, with one bug each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from tunekit.plugins import AdapterSpec, hookimpl
from tunekit_peft.adapter import LoraAdapter

api_version = 1


def _layers(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "lora_B"))


class NonZeroStart(LoraAdapter):
    """Both factors are drawn at random."""

    def attach(self, model: Any, *, seed: int) -> Any:
        attached = super().attach(model, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        for layer in _layers(attached):
            layer.lora_B["default"].weight.data.normal_(0, 0.02, generator=draw)
        return attached


class ForgetsTheScale(LoraAdapter):
    """B A is added without alpha / r."""

    def merge(self, model: Any) -> Any:
        for layer in _layers(model):
            layer.scaling["default"] = 1.0
        return super().merge(model)


class UntiesEmbeddings(LoraAdapter):
    """The output layer gets a weight of its own, and training goes on with that one."""

    def merge(self, model: Any) -> Any:
        merged = super().merge(model)
        merged.lm_head.weight = torch.nn.Parameter(merged.lm_head.weight.detach() * 1.01)
        return merged


class TrainsTheBase(LoraAdapter):
    """Norms of the base stay trainable, as some recipes want it, but are not part of what is saved."""

    def attach(self, model: Any, *, seed: int) -> Any:
        attached = super().attach(model, seed=seed)
        for name, parameter in attached.named_parameters():
            if "norm" in name:
                parameter.requires_grad_(True)
        return attached


class StaysOffAfterAnError(LoraAdapter):
    """What is switched off is switched on again only when nothing was raised."""

    def detached(self, model: Any) -> AbstractContextManager[None]:
        @contextmanager
        def off() -> Iterator[None]:
            model.base_model.disable_adapter_layers()
            yield
            model.base_model.enable_adapter_layers()

        return off()


class FreezesAfterDetached(LoraAdapter):
    """The trainable flags that PEFT resets are not put back."""

    def detached(self, model: Any) -> AbstractContextManager[None]:
        @contextmanager
        def off() -> Iterator[None]:
            with super(FreezesAfterDetached, self).detached(model):
                yield
            for parameter in model.parameters():
                parameter.requires_grad_(False)

        return off()


class SaveDropsALayer(LoraAdapter):
    """The last layer is missing in the file."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if ".layers.1.mlp.down_proj." not in name}
        save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})


class SavesEverything(LoraAdapter):
    """The base goes into the adapter's folder too."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "all.safetensors")


class UnseededStart(LoraAdapter):
    """``seed`` is not used."""

    def attach(self, model: Any, *, seed: int) -> Any:
        return get_peft_model(model, self._config(model))


class KeepsWrappers(LoraAdapter):
    """Weights are merged, but the layers of PEFT stay around them."""

    def merge(self, model: Any) -> Any:
        model.merge_adapter()
        return model.get_base_model()


class MergesInHalfPrecision(LoraAdapter):
    """PEFT's own merge: the update is rounded to the base's type before it is added."""

    def merge(self, model: Any) -> Any:
        return model.merge_and_unload(safe_merge=True)


class HalfAdapter(LoraAdapter):
    """The adapter's weights have the base's type."""

    def attach(self, model: Any, *, seed: int) -> Any:
        attached = super().attach(model, seed=seed)
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(next(model.parameters()).dtype)
        return attached


class _AlwaysOn(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(values, 0.5, training=True)


class DropoutInEvaluation(LoraAdapter):
    """Functional dropout that does not ask for the mode."""

    def attach(self, model: Any, *, seed: int) -> Any:
        attached = super().attach(model, seed=seed)
        if self.options.dropout:
            for layer in _layers(attached):
                layer.lora_dropout["default"] = _AlwaysOn()
        return attached


BUGGY = (
    NonZeroStart,
    ForgetsTheScale,
    UntiesEmbeddings,
    TrainsTheBase,
    StaysOffAfterAnError,
    FreezesAfterDetached,
    SaveDropsALayer,
    SavesEverything,
    UnseededStart,
    KeepsWrappers,
    MergesInHalfPrecision,
    HalfAdapter,
    DropoutInEvaluation,
)


@hookimpl
def tunekit_adapters() -> Iterable[AdapterSpec]:
    return [
        AdapterSpec(
            name=each.__name__.lower(),
            target=f"sabotage_adapters:{each.__name__}",
            options="tunekit_peft.options:LoraOptions",
        )
        for each in BUGGY
    ]
