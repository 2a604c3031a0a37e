"""Heads for classes, tags and scores on the body of any model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from tunekit.errors import StepError
from tunekit.plugins import hf

__all__ = [
    "CosineModel",
    "MultitaskModel",
    "Scale",
    "bare_head",
    "context_limit",
    "fold_scale",
    "give_body",
    "has_segments",
    "prepare_padding",
    "scale_of",
    "with_head",
]

_AUTO = {
    "classification": "AutoModelForSequenceClassification",
    "ner": "AutoModelForTokenClassification",
    "regression": "AutoModelForSequenceClassification",
}
_PROBLEM = {"classification": "single_label_classification", "regression": "regression", "ner": None}


@dataclass(frozen=True)
class Scale:
    """What a score is learned as: ``(score - mean) / deviation``."""

    mean: float = 0.0
    deviation: float = 1.0


def prepare_padding(model: Any, tokenizer: Any) -> None:
    """Give the tokenizer a padding token and tell the model which it is; heads on decoders find the last token by it.

    Raises:
        StepError: code ``no-pad-token``.
    """
    if tokenizer.pad_token_id is None:
        token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if token is None:
            raise StepError(
                "The tokenizer has no padding token, and no special token that could stand in.",
                code="no-pad-token",
                fix='set tokenizer.pad_token = "..." and save the tokenizer with the model',
            )
        tokenizer.pad_token = token
    rows = int(model.get_input_embeddings().weight.shape[0])
    if tokenizer.pad_token_id >= rows:
        raise StepError(
            f"The padding token {tokenizer.pad_token!r} has the id {tokenizer.pad_token_id}; the model has {rows} "
            "embeddings.",
            code="no-pad-token",
            fix="use a padding token that the model knows, such as tokenizer.pad_token = tokenizer.eos_token",
        )
    model.config.pad_token_id = tokenizer.pad_token_id


def context_limit(model: Any, tokenizer: Any, wanted: int) -> int:
    """The longest row in tokens: ``wanted``, or what the model can read if that is less."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [wanted]
    if isinstance(positions, int) and positions > 0:
        table = next((m for n, m in model.named_modules() if n.endswith("position_embeddings")), None)
        # RoBERTa and its kin begin to count behind the number of the padding token.
        skipped = getattr(table, "padding_idx", None)
        limits.append(positions - (0 if skipped is None else skipped + 1))
    own = getattr(tokenizer, "model_max_length", None)
    if isinstance(own, int) and own < 1_000_000:
        limits.append(own)
    return min(limits)


def has_segments(model: Any) -> bool:
    """Whether the model tells two texts apart by ``token_type_ids``."""
    return (
        "token_type_ids" in inspect.signature(model.base_model.forward).parameters
        and int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
    )


def bare_head(config: Any, kind: str, dtype: Any) -> tuple[Any, str]:
    """A freshly drawn model with a head for the task, and the name of the class that made it.

    Raises:
        StepError: code ``no-head`` if transformers has no such head for the architecture.
    """
    import transformers

    auto = getattr(transformers, _AUTO[kind])
    try:
        with hf.quiet():
            made = auto.from_config(config, dtype=dtype)
    except ValueError as error:
        raise StepError(
            f"transformers has no head for {kind} on the architecture {config.model_type}.",
            code="no-head",
            found=str(error).splitlines()[0][:200],
            fix="use an encoder such as BERT or MiniLM, or a decoder such as Llama",
        ) from error
    made.config.architectures = [type(made).__name__]
    return made, _AUTO[kind]


def with_head(model: Any, kind: str, labels: Sequence[str], seed: int, *, keep: bool = True) -> tuple[Any, bool]:
    """The model with a head for the task, and whether the head is new.

    The weights of the body are those of ``model``, which gives them away. A head that fits already is kept. A new one
    is drawn from ``seed``; the global random state is left as it was. ``tunekit_new_modules`` of the result names what
    is new, for adapters to train in full.

    Args:
        model: a ``transformers`` model with or without a head.
        kind: ``classification``, ``ner`` or ``regression``.
        labels: names of the outputs.
        seed: of the head.
        keep: whether a head that fits already is used.

    Raises:
        StepError: code ``no-head`` if the architecture has no such head, ``body`` if weights do not fit.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = _PROBLEM[kind]
    if keep and _fits(model, kind, labels):
        model.config.problem_type = _PROBLEM[kind]
        _mark(model, ())
        return model, False
    body = model.base_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made, _ = bare_head(config, kind, next(body.parameters()).dtype)
    new = give_body(made, body)
    device = next(body.parameters()).device
    made = made.to(device).eval()
    _mark(made, new)
    return made, True


def _fits(model: Any, kind: str, labels: Sequence[str]) -> bool:
    ending = "ForTokenClassification" if kind == "ner" else "ForSequenceClassification"
    config = model.config
    if not type(model).__name__.endswith(ending) or config.num_labels != len(labels):
        return False
    if kind == "regression":
        return config.problem_type in ("regression", None)
    own = [config.id2label.get(number) for number in range(len(labels))]
    return config.problem_type in (_PROBLEM[kind], None) and own == list(labels)


def _mark(model: Any, new: Sequence[str]) -> None:
    heads = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    model.tunekit_new_modules = (*heads, *new)


def give_body(made: Any, body: Any) -> tuple[str, ...]:
    """Put the weights of ``body`` into the body of ``made``; names of what stayed new.

    Raises:
        StepError: code ``body`` if they do not fit.
    """
    own = made.base_model
    if type(own) is type(body) and _names(own) == _names(body):
        setattr(made, made.base_model_prefix, body)
        body.config = made.config
        return ()
    state = {
        name: value
        for name, value in body.state_dict().items()
        if not name.startswith("pooler.") or name in _names(own)
    }
    try:
        missing, unexpected = own.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise _unfit(made, body, str(error).splitlines()[-1].strip()) from error
    wrong = [name for name in missing if not name.startswith("pooler.")] + list(unexpected)
    if wrong:
        raise _unfit(made, body, ", ".join(wrong[:5]))
    return ("pooler",) if missing else ()


def _unfit(made: Any, body: Any, found: str) -> StepError:
    return StepError(
        f"The weights of {type(body).__name__} do not fit the body of {type(made).__name__}.", code="body", found=found
    )


def _names(module: Any) -> set[str]:
    return {name for name, _ in module.named_parameters()}


# ---------------------------------------------------------------- scores


def _output_layer(model: Any) -> Any:
    """The linear layer that gives the score: the last trained one outside of the body."""
    found = None
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    base = plain.base_model_prefix
    for name, module in plain.named_modules():
        # Beside the copy that an adapter trains lies the frozen original.
        frozen = name.startswith(f"{base}.") or ".original_module" in f".{name}"
        if isinstance(module, torch.nn.Linear) and module.out_features == 1 and not frozen:
            found = module
    if found is None:
        raise StepError(f"{type(plain).__name__} has no linear layer that gives a score.", code="no-head")
    return found


def scale_of(model: Any, scores: Sequence[float], standardize: bool) -> Scale:
    """The scale that scores are learned in. A head without bias cannot shift its output: its scores are only
    divided."""
    if not standardize:
        return Scale()
    mean = sum(scores) / len(scores) if _output_layer(model).bias is not None else 0.0
    deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return Scale(mean, deviation if deviation > 0 else 1.0)


@torch.no_grad()
def fold_scale(model: Any, scale: Scale, *, back: bool = False) -> None:
    """Have the head of a model that gives standardised scores give scores as in the data; ``back``: the other way."""
    layer = _output_layer(model)
    if back:
        if layer.bias is not None:
            layer.bias.sub_(scale.mean)
            layer.bias.div_(scale.deviation)
        layer.weight.div_(scale.deviation)
        return
    layer.weight.mul_(scale.deviation)
    if layer.bias is not None:
        layer.bias.mul_(scale.deviation)
        layer.bias.add_(scale.mean)


class _Composite(torch.nn.Module):
    """A module around a body, with what ``transformers.Trainer`` asks of a model."""

    body: Any

    @property
    def config(self) -> Any:
        """The body's."""
        return self.body.config

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The body's."""
        return bool(getattr(self.body, "is_gradient_checkpointing", False))

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The body's."""
        self.body.gradient_checkpointing_enable(**kwargs)

    def get_input_embeddings(self) -> Any:
        """The body's."""
        return self.body.get_input_embeddings()


class CosineModel(_Composite):
    """Score of two texts: cosine of their mean token vectors, from ``low`` (cosine 0) to ``high`` (cosine 1).

    Reimers & Gurevych 2019 (arXiv:1908.10084), with mean pooling.
    """

    def __init__(self, body: Any, low: float, high: float) -> None:
        super().__init__()
        self.body, self.low, self.high = body, low, high

    def forward(self, input_ids: Any, pair_input_ids: Any, **inputs: Any) -> Any:
        """``logits``: (rows, 1) scores. Masks are ``attention_mask`` and ``pair_attention_mask``, or absent."""
        left = self._vectors(input_ids, inputs.get("attention_mask"))
        right = self._vectors(pair_input_ids, inputs.get("pair_attention_mask"))
        cosine = torch.nn.functional.cosine_similarity(left, right, dim=-1)
        return SimpleNamespace(logits=(self.low + (self.high - self.low) * cosine)[:, None])

    def _vectors(self, ids: Any, mask: Any) -> Any:
        hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if mask is None:
            return hidden.mean(1)
        weight = mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


class MultitaskModel(_Composite):
    """One body and a head per task.

    Each head is an ordinary ``transformers`` model that has given its own body away, so that every architecture
    computes its outputs as it always does. State names: ``body...`` and ``heads.task_<name>...``.

    Args:
        body: the shared body.
        models: task name to a model with a head for it. Their bodies are dropped.
    """

    def __init__(self, body: Any, models: dict[str, Any]) -> None:
        super().__init__()
        self.body = body
        self.heads = torch.nn.ModuleDict()
        for name, model in models.items():
            del model._modules[model.base_model_prefix]
            self.heads[f"task_{name}"] = model
            for child in model.children():
                if any(True for _ in child.parameters()):
                    # Heads are trained in float32, also on a body that an adapter leaves in half precision.
                    child.register_forward_pre_hook(_in_own_type, with_kwargs=True)
        self.link()

    def link(self) -> None:
        """Let the heads use the present :attr:`body`."""
        for head in self.heads.values():
            # Not a submodule: its parameters would stand in the state once per task.
            head.__dict__[head.base_model_prefix] = self.body

    def head(self, task: str) -> Any:
        """The model of a task; its body is the shared one."""
        return self.heads[f"task_{task}"]

    def head_parameters(self) -> Iterator[Any]:
        """The parameters outside of the body."""
        yield from self.heads.parameters()

    def forward(self, task: str, **inputs: Any) -> Any:
        """The output of one task's model."""
        return self.head(task)(**inputs)


def _in_own_type(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Cast what a module is given to the type of its weights."""
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(cast(value) for value in args), {name: cast(value) for name, value in kwargs.items()}
