"""Training arguments that are right for this machine and for the installed library."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tunekit.errors import MissingDependencyError, OptionsError, nearest

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.plugins.options import TrainOptions

__all__ = ["compute_dtype", "computing", "default_device", "device_defaults", "evaluating", "training_arguments"]

_MANUAL_SAVE = 500
# The library's "constant" has no warm-up.
_SCHEDULES = {"wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}


def default_device() -> Any:
    """The device models go to: this process's CUDA device, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        # A launcher's processes have one each, also before accelerate makes it the current one.
        rank = os.environ.get("LOCAL_RANK", "")
        if rank.isdigit() and int(rank) < torch.cuda.device_count():
            return torch.device("cuda", int(rank))
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def compute_dtype() -> Any:
    """The ``torch.dtype`` to load weights in: bfloat16 on CUDA devices that compute in it, float32 elsewhere.

    On a CPU without bfloat16 instructions bfloat16 is 20 to 30 times slower than float32; transformers claims
    support all the same.
    """
    import torch

    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A context with the model in evaluation mode and without gradients; its mode is put back."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def computing(model: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which a model whose weights are of several types can be called: automatic mixed precision.

    Weights that are trained are float32, also beside a frozen body in bfloat16 or float16, and a layer cannot multiply
    one with the other. During a training on CUDA the trainer's own mixed precision sees to that; this context does
    everywhere else. It does nothing for weights of one type, and for those that ``transformers`` itself keeps in
    float32. Leave it before gradients are computed; it can be entered again.

    Args:
        model: a ``transformers`` model, with or without an adapter.
    """
    import torch

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = {
        name
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for name in getattr(plain, attribute, None) or ()
    }
    sizes: dict[Any, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not (kept and kept.intersection(name.split("."))):
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    halves = [dtype for dtype in sizes if dtype in (torch.float16, torch.bfloat16)]
    if len(sizes) < 2 or not halves:
        return contextlib.nullcontext()
    device = next(model.parameters()).device.type
    mixed: contextlib.AbstractContextManager[Any] = torch.autocast(device, dtype=max(halves, key=sizes.__getitem__))
    return mixed


def device_defaults() -> dict[str, Any]:
    """Keyword arguments of ``TrainingArguments`` that depend on the machine.

    CUDA trains in mixed precision: weights that are trained are float32, matrix products bfloat16 (float16 on older
    devices). CPU and Apple devices train in float32.
    """
    import torch

    device = default_device().type
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "use_cpu": device == "cpu",
        "bf16": bf16,
        "fp16": device == "cuda" and not bf16,
        "dataloader_pin_memory": device == "cuda",
    }


def training_arguments(
    cls: type[Any],
    ctx: StepContext,
    options: TrainOptions,
    **extra: Any,
) -> Any:
    """An instance of ``cls`` (``TrainingArguments`` or a subclass of it) for the options of a step.

    Args:
        cls: the class to build.
        ctx: the step; checkpoints go to ``ctx.dir / "checkpoints"``, seeds are ``ctx.seed``.
        options: the shared options of trainers. Without ``checkpoint_every`` the callback chooses when to save.
        extra: further arguments of ``cls``; they win over those derived here. One that the installed class lacks is
            left out only if it asks for nothing (None or False).

    Raises:
        MissingDependencyError: if the installed class lacks an argument that was asked for.
        OptionsError: if there is no learning rate, or the class refuses a value.
    """
    parameters = inspect.signature(cls).parameters
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in parameters else "gradient_checkpointing"
    wanted: dict[str, Any] = {
        "output_dir": str(ctx.dir / "checkpoints"),
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "num_train_epochs": options.epochs,
        "max_steps": options.max_steps if options.max_steps is not None else -1,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": _SCHEDULES.get(options.schedule, options.schedule),
        "warmup_steps": options.warmup,
        "optim": options.optimizer,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        checkpointing: options.gradient_checkpointing,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": options.checkpoint_every if options.checkpoint_every is not None else _MANUAL_SAVE,
        # Rotation is the callback's: it deletes older checkpoints only after the new one is known to be complete.
        "save_total_limit": None,
        "push_to_hub": False,
        "seed": ctx.seed,
        "data_seed": ctx.seed,
        **device_defaults(),
        **extra,
    }
    if wanted["learning_rate"] is None:
        raise OptionsError(
            f"The step {ctx.step.name!r} has no learning rate.",
            code="learning-rate",
            fix=f"{ctx.step.kind}(learning_rate=1e-4)",
        )
    lacking = {name: value for name, value in wanted.items() if name not in parameters}
    asked = {name: value for name, value in lacking.items() if value is not None and value is not False}
    if asked:
        raise MissingDependencyError(
            f"The installed {_library(cls)} has no argument "
            f"{', '.join(f'{name}={value!r}' for name, value in asked.items())} in {cls.__name__}.",
            code="library-argument",
            asked=", ".join(asked),
            fix="install another version of that package, or leave the option out",
        )
    try:
        return cls(**{name: value for name, value in wanted.items() if name in parameters})
    except ValueError as error:
        raise _refused(cls, error, wanted) from error


def _refused(cls: type[Any], error: ValueError, wanted: dict[str, Any]) -> OptionsError:
    suggestions: tuple[str, ...] = ()
    if "OptimizerNames" in str(error) or str(wanted["optim"]) in str(error):
        from transformers.training_args import OptimizerNames

        suggestions = nearest(str(wanted["optim"]), [item.value for item in OptimizerNames])
    return OptionsError(
        f"{cls.__name__} of {_library(cls)} refuses the options: {str(error).splitlines()[0]}",
        code="library-options",
        suggestions=suggestions,
    )


def _library(cls: type[Any]) -> str:
    name = cls.__module__.partition(".")[0]
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name
