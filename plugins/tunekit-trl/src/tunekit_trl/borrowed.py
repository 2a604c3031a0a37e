"""Lend a model to a trainer, and take it back as it was but for its weights."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tunekit.plugins import hf

__all__ = ["borrowed"]


@contextmanager
def borrowed(model: Any, tokenizer: Any) -> Iterator[None]:
    """Undo, on leaving, what trainers do to what they are given.

    They put a ``forward`` of mixed precision on the model, set dropout to zero, write padding ids into configs and
    tokenizer, add tags and hooks, and seed the global random generators. Weights, and the token ids a ``Trainer``
    aligns with the tokenizer, stay. Warnings and log lines of the libraries are kept from the terminal.
    """
    layers = [model]
    if hasattr(model, "get_base_model"):
        layers.append(model.get_base_model())
    base = layers[-1]
    attributes = [dict(vars(layer)) for layer in layers]
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    pads = [
        (config, config.pad_token_id)
        for config in (base.config.get_text_config(), getattr(base, "generation_config", None))
        if config is not None and hasattr(config, "pad_token_id")
    ]
    pad_token = tokenizer.pad_token
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        with hf.quiet(), warnings.catch_warnings():
            # Renamed arguments of the libraries among themselves; nothing a user could act on.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
        if hasattr(base, "_require_grads_hooks"):
            base.disable_input_require_grads()
        for layer, before in zip(layers, attributes, strict=True):
            for name in set(vars(layer)) - set(before):
                delattr(layer, name)
            for name in ("forward", "model_tags"):
                if name in before:
                    setattr(layer, name, before[name])
        for module, p in dropouts:
            module.p = p
        # With a padding token of its own, a tokenizer is the authority; without one some make one up.
        if pad_token is None:
            tokenizer.pad_token = None
            for config, pad in pads:
                config.pad_token_id = pad
