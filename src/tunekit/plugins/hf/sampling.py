"""Completions of prompts by a causal model: drawn with a generator of their own, many at a time."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunekit.cancel import CancelToken
from tunekit.data import as_messages, plain_pair
from tunekit.errors import DataError, OptionsError, StepError
from tunekit.plugins.hf.arguments import computing, evaluating
from tunekit.plugins.hf.facts import model_facts
from tunekit.plugins.hf.isolation import tolerance
from tunekit.plugins.hf.segments import NAME as SEGMENTS

__all__ = ["Sampled", "prompt_ids", "sample"]

CACHE_BYTES = 2**30
"""Most memory of the keys and values of a batch."""
LOGITS = 2**26
"""Most logits of a step: 256 MB in float32."""

_POSITIONS_MOVE = ("dynamic", "longrope")
"""Kinds of rotary positions that depend on the longest row of a pass."""

_pads: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Sampled(NamedTuple):
    """One completion."""

    ids: tuple[int, ...]
    """Its tokens, with the one that ended it."""
    finished: bool
    """Whether the model ended it; False: the length limit did."""
    text: str
    """What it says, without special tokens, as it stands behind the prompt."""


def prompt_ids(
    tokenizer: Any, prompt: str | Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> list[int]:
    """Token ids of a prompt, up to where the model is to write: with one begin-of-text token, if the tokenizer or the
    template puts one there.

    Args:
        tokenizer: the model's. With a chat template the prompt is rendered with it, a text as a message of the user;
            otherwise it is plain text.
        prompt: text, or messages.
        tools: JSON schemas of functions, for the template.

    Raises:
        DataError: if the prompt is empty, the template refuses it, or there are tools and no template.
    """
    if getattr(tokenizer, "chat_template", None):
        text = _rendered(tokenizer, as_messages(prompt), tools)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        if tools:
            raise DataError(
                "The prompt has tools, and plain text cannot carry them.",
                code="tools-need-template",
                fix="take a model whose tokenizer has a chat template",
            )
        # As the trainers write it.
        text = prompt if isinstance(prompt, str) else plain_pair(prompt, as_messages("", "assistant"))[0]
        ids = list(tokenizer(text)["input_ids"])
        eos = getattr(tokenizer, "eos_token_id", None)
        # Some tokenizers end every text they are given.
        if len(ids) > 1 and ids[-1] == eos and not text.endswith(str(tokenizer.eos_token)):
            ids.pop()
    bos = getattr(tokenizer, "bos_token_id", None)
    while bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        ids.pop(0)
    if not ids:
        raise DataError(
            "A prompt is empty.", code="empty-prompt", found=repr(prompt), fix="leave it out, or write something"
        )
    return [int(token) for token in ids]


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=True,
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise DataError(
            f"The chat template refuses a prompt: {error}",
            code="chat-template",
            found=f"roles: {', '.join(str(message.get('role')) for message in messages)}",
            fix="use the roles and the order the model's template knows",
        ) from error


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    count: int = 1,
    seed: int | None = None,
    stop_ids: Sequence[int] | None = None,
    cancel: CancelToken | None = None,
) -> list[list[Sampled]]:
    """``count`` completions of each prompt.

    A prompt is run once; its completions go on from the same keys and values. Prompts of about one length are run
    together, and completions that have ended leave their batch. The model is in evaluation mode meanwhile, without
    gradients; neither torch's random numbers nor the model are changed.

    Each completion has random numbers of its own, whatever shares its batch: the same call gives the same completions,
    whatever ran before and however much memory there is, and a larger ``max_new_tokens`` only continues them. Tokens
    are drawn by the inverse of the distribution function.

    Args:
        model: a ``transformers`` causal model, with its adapter if there is one.
        tokenizer: turns tokens into text.
        prompts: token ids; see :func:`prompt_ids`.
        max_new_tokens: longest completion in tokens. It ends sooner at the last position that the model has.
        temperature: what logits are divided by; 0: the likeliest token each time.
        top_p: draw among the likeliest tokens that together have this probability (after ``top_k``).
        top_k: draw among this many likeliest tokens; 0: all.
        count: completions of each prompt.
        seed: of the random numbers; None: drawn from torch's own generator.
        stop_ids: tokens that end a completion; None: the model's and the tokenizer's end-of-text tokens.
        cancel: looked at before each token.

    Returns:
        For each prompt its completions.

    Raises:
        OptionsError: for numbers that make no sense.
        DataError: if a prompt is empty, or leaves no position for a completion.
        StepError: if logits are not finite.
        RunCancelled: after a cancel.
    """
    import torch

    _check(max_new_tokens, temperature, top_p, top_k, count)
    if not prompts:
        return []
    facts = model_facts(model)
    for number, ids in enumerate(prompts):
        if not len(ids) or (facts.positions is not None and len(ids) >= facts.positions):
            raise DataError(
                f"Prompt {number} cannot be continued: it has {len(ids)} tokens.",
                code="prompt-length",
                asked=f"1 to {facts.positions - 1} tokens" if facts.positions else "at least one token",
                found=f"{len(ids)} tokens",
                fix="leave it out, or make it shorter",
            )
    if stop_ids is None:
        stop_ids = [*facts.stop_ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    draws = None
    if temperature > 0:
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        generator = torch.Generator().manual_seed(seed % 2**63)
        draws = torch.rand((max_new_tokens, len(prompts), count), generator=generator, dtype=torch.float64)
    own = count if temperature > 0 else 1
    with evaluating(model), computing(model), _own_attention(model):
        writer = _Writer(
            model=model,
            prompts=prompts,
            limit=max_new_tokens,
            positions=facts.positions,
            stops=frozenset(map(int, stop_ids)),
            count=own,
            chooser=_Chooser(temperature, top_p, top_k),
            draws=draws,
            cancel=cancel,
        )
        written = writer.write()
    made: list[list[Sampled]] = []
    for number, ids in enumerate(prompts):
        texts = [Sampled(tuple(tokens), ended, _text(tokenizer, ids, tokens)) for tokens, ended in written[number]]
        made.append(texts if own == count else texts * count)
    return made


def _check(max_new_tokens: int, temperature: float, top_p: float, top_k: int, count: int) -> None:
    wrong = [
        (name, value, asked)
        for name, value, asked, right in (
            ("max_new_tokens", max_new_tokens, "at least 1", max_new_tokens >= 1),
            ("temperature", temperature, "0 or more", 0 <= temperature < float("inf")),
            ("top_p", top_p, "above 0, at most 1", 0 < top_p <= 1),
            ("top_k", top_k, "0 or more", top_k >= 0),
            ("count", count, "at least 1", count >= 1),
        )
        if not right
    ]
    for name, value, asked in wrong:
        raise OptionsError(f"{name} is {value}.", code="sampling", asked=f"{name}: {asked}", found=str(value))


def _text(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    # Decoders of SentencePiece's kind drop the blank at the beginning of what they are given.
    tail = list(prompt[-4:])
    before = str(tokenizer.decode(tail, **options))
    whole = str(tokenizer.decode([*tail, *tokens], **options))
    if before and whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(list(tokens), **options))


@contextlib.contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    """The model attends over a batch and its cache, also within a training that has exchanged its attention."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation_internal", None) == SEGMENTS:
            found[id(config)] = config
    for config in found.values():
        config._attn_implementation_internal = "sdpa"
    try:
        yield
    finally:
        for config in found.values():
            config._attn_implementation_internal = SEGMENTS


@dataclass(frozen=True)
class _Chooser:
    """Draws tokens."""

    temperature: float
    top_p: float
    top_k: int

    def __call__(self, logits: Any, uniform: Any) -> list[int]:
        """A token for each row of ``logits`` (rows, vocabulary); ``uniform`` (rows,) in [0, 1), float64."""
        import torch

        if not bool(torch.isfinite(logits.max(-1).values).all()):
            raise StepError(
                "The model's logits are not finite, so it cannot generate.",
                code="nan-logits",
                fix="load the model in float32, or look at the training step before",
            )
        if self.temperature == 0:
            chosen: list[int] = logits.argmax(-1).tolist()
            return chosen
        precise = torch.float32 if logits.device.type == "mps" else torch.float64
        probabilities = (logits.float() / self.temperature).softmax(-1).to(precise)
        order = None
        if self.top_k or self.top_p < 1:
            probabilities, order = probabilities.sort(descending=True, stable=True)
            if self.top_k:
                probabilities, order = probabilities[:, : self.top_k], order[:, : self.top_k]
            reached = probabilities.cumsum(-1)
            before = reached - probabilities
            kept = before < self.top_p * reached[:, -1:]
            kept[:, 0] = True
            probabilities = probabilities * kept
        reached = probabilities.cumsum(-1)
        asked = uniform.to(logits.device, precise)[:, None] * reached[:, -1:]
        # The first token whose probability carries the sum above what is asked: never one of probability 0.
        places = torch.searchsorted(reached.contiguous(), asked, right=True).clamp(max=reached.shape[1] - 1)
        found: list[int] = (places if order is None else order.gather(1, places))[:, 0].tolist()
        return found


class _Row:
    """A completion that is being written."""

    __slots__ = ("ended", "number", "prompt", "tokens")

    def __init__(self, prompt: int, number: int) -> None:
        self.prompt, self.number = prompt, number
        self.tokens: list[int] = []
        self.ended = False


@dataclass
class _Writer:
    model: Any
    prompts: Sequence[Sequence[int]]
    limit: int
    positions: int | None
    stops: frozenset[int]
    count: int
    chooser: _Chooser
    draws: Any
    cancel: CancelToken | None

    def __post_init__(self) -> None:
        plain = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        taken = inspect.signature(plain.forward).parameters
        self._config = plain.config.get_text_config()
        self._device = plain.get_input_embeddings().weight.device
        self._more: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        if "output_router_logits" in taken:
            # The loss of the balance of experts is not asked for, and cannot be had of a mask longer than its tokens.
            self._more["output_router_logits"] = False
        peft = getattr(self.model, "active_peft_config", None)
        # Virtual tokens in front of each pass: a cache would hold them more than once.
        self._caches = "past_key_values" in taken and not getattr(peft, "is_prompt_learning", False)
        self._places = "position_ids" in taken
        self._stateful = bool(getattr(plain, "_is_stateful", False))

    # Which rows are run together.

    def write(self) -> list[list[tuple[list[int], bool]]]:
        """For each prompt, tokens and end of its completions."""
        made: list[list[tuple[list[int], bool]]] = [[] for _ in self.prompts]
        waiting = list(self._batches())[::-1]
        while waiting:
            numbers = waiting.pop()
            try:
                rows = self._run(numbers)
            except RuntimeError as error:
                if not _out_of_memory(error) or len(numbers) == 1:
                    raise
                middle = len(numbers) // 2
                waiting += [numbers[middle:], numbers[:middle]]
                continue
            for row in rows:
                made[row.prompt].append((row.tokens, row.ended))
        return made

    def _batches(self) -> Iterator[list[int]]:
        order = sorted(range(len(self.prompts)), key=lambda number: len(self.prompts[number]))
        pads = len(self.prompts[order[0]]) < len(self.prompts[order[-1]]) and self._may_pad(order)
        batch: list[int] = []
        for number in order:
            if batch and not self._fits(batch, number, pads):
                yield batch
                batch = []
            batch.append(number)
        yield batch

    def _fits(self, batch: Sequence[int], number: int, pads: bool) -> bool:
        shortest, length = len(self.prompts[batch[0]]), len(self.prompts[number])
        if length != shortest and (not pads or length > 2 * shortest + 16):
            return False
        rows = (len(batch) + 1) * self.count
        return rows * (length + self.limit) * self._token_bytes() <= CACHE_BYTES and rows * self._vocabulary() <= LOGITS

    def _vocabulary(self) -> int:
        return int(getattr(self._config, "vocab_size", 0) or 1)

    def _token_bytes(self) -> int:
        config = self._config
        heads = getattr(config, "num_attention_heads", None) or 1
        hidden = getattr(config, "hidden_size", None) or 1
        width = getattr(config, "head_dim", None) or hidden // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        layers = getattr(config, "num_hidden_layers", None) or 1
        size = next(self.model.parameters()).element_size()
        return int(2 * layers * groups * width * max(2, size))

    def _may_pad(self, order: Sequence[int]) -> bool:
        """Whether padding on the left is invisible to the model; looked at once per model, on its shortest and longest
        prompt."""
        known = _pads.get(self.model)
        if known is None:
            known = _pads[self.model] = self._padding_proven([order[0], order[-1]])
        return known

    def _padding_proven(self, numbers: Sequence[int]) -> bool:
        kinds = set(getattr(self._config, "layer_types", None) or ())
        windowed = bool(getattr(self._config, "sliding_window", None)) and getattr(
            self._config, "use_sliding_window", True
        )
        moving = str(getattr(self._config, "rope_parameters", None) or getattr(self._config, "rope_scaling", None))
        if not self._places or not self._caches or self._stateful or any(name in moving for name in _POSITIONS_MOVE):
            return False
        if kinds - {"full_attention"} if kinds else windowed:
            return False
        short, long = (self.prompts[number][:size] for number, size in zip(numbers, (24, 48), strict=True))
        if len(short) == len(long):
            return False
        try:
            alone = self._begin([short])[0].float()
            padded = self._begin([short, long])[0][:1].float()
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
            return False
        scale = max(1.0, float(alone.abs().max()))
        limit = tolerance(next(self.model.parameters()).dtype) * scale
        return float((padded - alone).abs().max()) <= limit

    # One batch.

    def _begin(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, Any, Any, Any]:
        """Logits after the prompts (rows, vocabulary), the cache, the mask (None: nothing is padded), and the position
        of the last token of each, (rows, 1)."""
        import torch

        width = max(map(len, prompts))
        pads = [width - len(ids) for ids in prompts]
        ids = torch.tensor([[0] * pad + list(row) for pad, row in zip(pads, prompts, strict=True)], device=self._device)
        mask = None
        positions = torch.arange(width, device=self._device).expand(len(prompts), -1)
        if any(pads):
            before = torch.tensor(pads, device=self._device)[:, None]
            mask = (positions >= before).long()
            positions = (positions - before).clamp(min=0)
        logits, cache = self._pass(ids, mask, positions, None)
        return logits, cache, mask, positions[:, -1:]

    def _pass(self, ids: Any, mask: Any, positions: Any, cache: Any) -> tuple[Any, Any]:
        arguments: dict[str, Any] = {"input_ids": ids, **self._more}
        if mask is not None:
            arguments["attention_mask"] = mask
        if self._places and (mask is not None or cache is not None):
            arguments["position_ids"] = positions
        if self._caches:
            arguments |= {"use_cache": True, "past_key_values": cache}
        out = self.model(**arguments)
        return out.logits[:, -1], getattr(out, "past_key_values", None) if self._caches else None

    def _run(self, numbers: Sequence[int]) -> list[_Row]:
        import torch

        logits, cache, mask, last = self._begin([self.prompts[number] for number in numbers])
        every = [_Row(number, copy) for number in numbers for copy in range(self.count)]
        rows = list(every)
        places = torch.arange(len(numbers), device=self._device).repeat_interleave(self.count)
        if self.count > 1:
            logits, last = logits[places], last[places]
            mask = None if mask is None else mask[places]
            if cache is not None:
                cache.reorder_cache(places)
        while True:
            if self.cancel is not None:
                self.cancel.raise_if_cancelled()
            staying = self._take(rows, logits)
            if not staying:
                return every
            if len(staying) < len(rows):
                rows = [rows[place] for place in staying]
                chosen = torch.tensor(staying, device=self._device)
                last, mask = last[chosen], None if mask is None else mask[chosen]
                if cache is not None:
                    cache.reorder_cache(chosen)
            last = last + 1
            if cache is None:
                whole = [[*self.prompts[row.prompt], *row.tokens] for row in rows]
                logits = self._begin(whole)[0]
                continue
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones((len(rows), 1))], 1)
            newest = torch.tensor([[row.tokens[-1]] for row in rows], device=self._device)
            logits, cache = self._pass(newest, mask, last, cache)

    def _take(self, rows: Sequence[_Row], logits: Any) -> list[int]:
        """Give each row its next token; the places of those that go on."""
        import torch

        uniform = None
        if self.draws is not None:
            at = [(len(row.tokens), row.prompt, row.number) for row in rows]
            uniform = self.draws[tuple(torch.tensor(part) for part in zip(*at, strict=True))]
        staying = []
        for place, (row, token) in enumerate(zip(rows, self.chooser(logits, uniform), strict=True)):
            row.tokens.append(token)
            row.ended = token in self.stops
            full = self.positions is not None and len(self.prompts[row.prompt]) + len(row.tokens) >= self.positions
            if not row.ended and not full and len(row.tokens) < self.limit:
                staying.append(place)
        return staying


def _out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "alloc_cpu" in str(error)
