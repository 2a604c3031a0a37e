"""LoRA on a transformers model, through PEFT."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from tunekit.errors import ArtifactError, OptionsError, StepError, nearest
from tunekit.plugins import hf
from tunekit_peft.options import ALL_LINEAR, LoraOptions

with hf.quiet():  # optional libraries that PEFT looks for complain when they are imported
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora.layer import dispatch_default
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

__all__ = ["LoraAdapter", "linear_names"]

ADAPTER_NAME = "default"
"""Name of the one adapter that is trained; PEFT's own default, so that its loaders need no argument."""

_LINEAR = (torch.nn.Linear, Conv1D)


def linear_names(model: Any) -> list[str]:
    """Last path components of the model's linear layers, sorted; the output layer among them."""
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, _LINEAR)})


class LoraAdapter:
    """Trains low-rank updates of linear layers, then folds them into the weights.

    ``attach`` and ``merge`` work in place: the model handed in is the one that carries the adapter, and afterwards the
    one that carries the merged weights. No copy of the base weights is made.
    """

    def __init__(self, options: LoraOptions) -> None:
        self.options = options.resolve(adapter=None)

    def attach(self, model: Any, *, seed: int) -> Any:
        """The model with a fresh adapter on it: same output as before, since B starts at zero.

        Only the adapter is trainable; its weights are float32 whatever the base holds. The start values depend on
        ``seed`` alone, and the caller's random state is left as it was. Modules that ``model.tunekit_new_modules``
        names, such as the head of a classifier, are trained in full and saved with the adapter; what the body gives
        them is cast to their type, so that the model also computes outside of autocast.

        Raises:
            OptionsError: for layer names that the model does not have.
            StepError: if the model carries an adapter already, or is quantized.
        """
        self._refuse_unfit(model)
        config = self._config(model)
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with _quiet(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            attached = get_peft_model(model, config, adapter_name=ADAPTER_NAME, autocast_adapter_dtype=True)
        for parameter in attached.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
        for module in attached.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.register_forward_pre_hook(_in_own_type, with_kwargs=True)
        _save_plainly(attached)
        return attached

    def save(self, model: Any, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json``, the layout that PEFT reads.

        Only the trained adapter is written, never a frozen reference copy beside it.

        Raises:
            ArtifactError: if the folder cannot be written.
        """
        self._require_attached(model)
        base = model.get_base_model()
        # PEFT records where the base came from; a base that an earlier step trained in memory has no such place.
        model.peft_config[ADAPTER_NAME].base_model_name_or_path = getattr(base, "name_or_path", "") or None
        try:
            with _quiet():
                model.save_pretrained(
                    str(folder),
                    selected_adapters=[ADAPTER_NAME],
                    safe_serialization=True,
                    save_embedding_layers=False,
                )
        except OSError as error:
            raise ArtifactError(
                "The adapter cannot be written.", code="adapter-save", asked=str(folder), found=str(error)
            ) from error

    def merge(self, model: Any) -> Any:
        """Fold the adapter into the base weights and return the plain model.

        Base and update are added in float32, and the sum is rounded once to the type that the base holds, as are
        modules that were trained in full. The result is the base model object itself, with every parameter trainable as
        before :meth:`attach`, tied embeddings still tied, and nothing left that says "adapter".

        Raises:
            StepError: if the merged weights are not finite.
        """
        self._require_attached(model)
        for attribute in ("save_pretrained", "create_or_update_model_card"):
            vars(model).pop(attribute, None)
        tied = _tied(model.get_base_model())
        try:
            with _quiet(), torch.no_grad():
                for module in model.modules():
                    if isinstance(module, BaseTunerLayer):
                        _merge_layer(module)
                    elif isinstance(module, ModulesToSaveWrapper):
                        _round_saved(module)
                merged = model.unload()
        except ValueError as error:
            raise StepError(
                "The adapter cannot be merged: the merged weights are not finite.",
                code="merge-not-finite",
                found=str(error),
                fix="train with a lower learning rate or max_grad_norm",
            ) from error
        for attribute in ("peft_config", "_hf_peft_config_loaded", "active_adapter"):
            vars(merged).pop(attribute, None)
        if tied and not _tied(merged):
            merged.tie_weights()
        # These weights are no longer what lies where the base was read from.
        if "name_or_path" in vars(merged):
            merged.name_or_path = ""
        if hasattr(getattr(merged, "config", None), "_name_or_path"):
            merged.config._name_or_path = ""
        for parameter in merged.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        return merged

    def detached(self, model: Any) -> AbstractContextManager[None]:
        """A context in which ``model`` computes exactly what the base computes."""
        self._require_attached(model)
        return _disabled(model)

    def _config(self, model: Any) -> LoraConfig:
        options = self.options
        alpha = options.alpha if options.alpha is not None else 2.0 * options.r
        config = LoraConfig(
            r=options.r,
            lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
            lora_dropout=options.dropout,
            target_modules=ALL_LINEAR if options.targets == ALL_LINEAR else self._targets(model),
            use_rslora=options.rslora,
            use_dora=options.dora,
            init_lora_weights="gaussian" if options.init == "gaussian" else True,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            bias="none",
            trainable_token_indices=_new_tokens(model) if options.train_new_tokens else None,
            # Layers that a trainer has just drawn hold nothing that a small update could build on.
            modules_to_save=list(getattr(model, "tunekit_new_modules", ())) or None,
            task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
        )
        # Without this, PEFT imports every quantization library it finds, one after another, to ask whether a layer is
        # one of theirs. GPTQModel alone takes seconds, prints a banner and writes environment variables. Quantized
        # models are refused above, so a linear layer is a plain one.
        config._register_custom_module(dict.fromkeys(_LINEAR, dispatch_default))
        return config

    def _targets(self, model: Any) -> list[str]:
        """The names asked for, each checked: PEFT passes over a name that matches nothing beside one that does."""
        known = linear_names(model)
        tied = _tied(model)
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        for name in self.options.targets:
            matched = [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")]
            if not matched or not all(isinstance(module, _LINEAR) for module in matched):
                kinds = sorted({type(module).__name__ for module in matched})
                raise OptionsError(
                    f"LoRA has no linear layer {name!r} to act on in this {type(model).__name__}.",
                    code="lora-targets",
                    asked=f"targets={self.options.targets!r}",
                    found=(f"{name} is {', '.join(kinds)}; " if kinds else "") + f"linear layers: {', '.join(known)}",
                    suggestions=nearest(re.split(r"[.]", name)[-1], known),
                    fix='targets="all-linear", or a list of the names above',
                )
            if tied and any(module is output for module in matched):
                raise OptionsError(
                    f"LoRA cannot act on {name!r} alone: its weights are shared with the input embeddings.",
                    code="lora-targets-tied",
                    asked=f"targets={self.options.targets!r}",
                    fix=f"leave {name!r} out of targets",
                )
        return list(self.options.targets)

    @staticmethod
    def _refuse_unfit(model: Any) -> None:
        if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise StepError(
                "The model carries an adapter already.",
                code="adapter-twice",
                found=type(model).__name__,
                fix="merge the adapter first, and hand in the merged model",
            )
        method = getattr(model, "quantization_method", None) or getattr(
            getattr(model, "config", None), "quantization_config", None
        )
        if method is not None or getattr(model, "is_quantized", False):
            raise StepError(
                "LoRA needs a model in full precision: an update trained on quantized weights cannot be merged back.",
                code="adapter-on-quantized",
                found=f"a quantized model ({getattr(method, 'value', None) or type(method).__name__})",
                fix="fine-tune before quantize(...)",
            )

    @staticmethod
    def _require_attached(model: Any) -> None:
        if not isinstance(model, PeftModel) or ADAPTER_NAME not in model.peft_config:
            raise StepError(
                "The model carries no adapter.",
                code="adapter-missing",
                found=type(model).__name__,
                fix="pass the model that attach() returned",
            )


def _new_tokens(model: Any) -> dict[str, list[int]] | None:
    """Rows to train in the input embeddings and, if it has its own, the output layer; None without new tokens."""
    added = getattr(getattr(model, "config", None), "tunekit_new_tokens", None)
    if not added:
        return None
    first, count = added
    layers = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and not _tied(model):
        layers.append(head)  # PEFT lets a tied one follow by itself
    names = {name for name, module in model.named_modules() if any(module is layer for layer in layers)}
    return {name: list(range(first, first + count)) for name in sorted(names)}


def _tied(model: Any) -> bool:
    """Whether input and output embeddings are one tensor."""
    try:
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    if inputs is None or outputs is None:
        return False
    return getattr(inputs, "weight", None) is getattr(outputs, "weight", 0)


def _merge_layer(layer: Any) -> None:
    """Merge one layer. In half precision PEFT would round the update before it is added, which loses most of what is
    left where the two nearly cancel; the copy in float32 is that of one layer at a time.

    Raises:
        ValueError: if the result is not finite.
    """
    base = layer.get_base_layer()
    dtype = base.weight.dtype
    if dtype not in (torch.float16, torch.bfloat16):
        layer.merge(safe_merge=True)
        return
    base.weight.data = base.weight.data.float()
    layer.merge(safe_merge=True)
    base.weight.data = base.weight.data.to(dtype)
    if not bool(torch.isfinite(base.weight).all()):
        raise ValueError(f"a merged weight is beyond the range of {dtype}")


def _round_saved(wrapper: Any) -> None:
    """Give a module that was trained in full the types of the one it replaces: a folder has one type of weights.

    Raises:
        ValueError: if the result is not finite.
    """
    saved = wrapper.modules_to_save[ADAPTER_NAME]
    for own, original in zip(saved.parameters(), wrapper.original_module.parameters(), strict=True):
        own.data = own.data.to(original.dtype)
        if not bool(torch.isfinite(own).all()):
            raise ValueError(f"a trained weight is beyond the range of {original.dtype}")


def _in_own_type(wrapper: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Cast what a module that is trained in float32 is given by a body in half precision."""
    used = wrapper.original_module if wrapper.disable_adapters else wrapper.modules_to_save[ADAPTER_NAME]
    dtype = next(used.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(cast(value) for value in args), {name: cast(value) for name, value in kwargs.items()}


def _save_plainly(model: Any) -> None:
    """Let checkpoints hold the adapter and nothing else, and keep them off the network.

    By default PEFT asks the hub whether the vocabulary of the base has changed (LoRA here never touches embeddings, so
    there is nothing to ask), and writes the form of a model card to be filled in.
    """
    original = type(model).save_pretrained

    def save_pretrained(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("save_embedding_layers", False)
        return original(model, *args, **kwargs)

    def create_or_update_model_card(output_dir: str) -> None:
        return None

    model.save_pretrained = save_pretrained
    model.create_or_update_model_card = create_or_update_model_card


@contextmanager
def _disabled(model: Any) -> Iterator[None]:
    """PEFT's ``disable_adapter``, with the trainable flags put back exactly as they were."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PEFT says about attributes that transformers renamed; nothing a user could act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield
