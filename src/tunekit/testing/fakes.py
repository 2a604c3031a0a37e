"""Tiny models, tokenizers and toy corpora, made in memory. torch and transformers are imported inside the functions."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["CHATML", "SPECIALS", "save_tiny", "tiny_model", "tiny_pair", "tiny_tokenizer", "toy_rows"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template; every message ends with ``<|im_end|>``, the tokenizer's end of sequence."""

SPECIALS = ("<pad>", "<|im_start|>", "<|im_end|>", "<eos>", "<bos>")
"""Special tokens of :func:`tiny_tokenizer`, in the order of their ids from 0."""

VOCABULARY = 288


def tiny_tokenizer(
    template: str | None = CHATML, *, bos: bool = False, pad_is_eos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token per byte of UTF-8, 261 tokens in all, special ones first.

    Args:
        template: chat template; None: a base model's tokenizer without one.
        bos: put ``<bos>`` in front of every text.
        pad_is_eos: pad with the end-of-sequence token, as many published models do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIALS, *alphabet))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    pad, eos = "<|im_end|>" if pad_is_eos else "<pad>", "<|im_end|>"
    used = {pad, eos, "<bos>" if bos else ""}
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        eos_token=eos,
        bos_token="<bos>" if bos else None,
        additional_special_tokens=[token for token in SPECIALS if token not in used],
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    *,
    vocabulary: int = VOCABULARY,
    seed: int = 0,
    dropout: float = 0.0,
    positions: int = 256,
    tied: bool = True,
    hidden: int = 32,
    layers: int = 2,
) -> LlamaForCausalLM:
    """A Llama in float32 and evaluation mode, with random weights that only the arguments decide.

    The global random state is left as it was.

    Args:
        vocabulary: rows of the embedding; at least the 261 tokens of :func:`tiny_tokenizer`.
        seed: seed of the weights.
        dropout: attention dropout.
        positions: longest sequence in tokens.
        tied: output layer shares the weights of the embedding.
        hidden: channels; a multiple of 8.
        layers: decoder layers.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        bos_token_id=None,
        eos_token_id=SPECIALS.index("<|im_end|>"),
        pad_token_id=SPECIALS.index("<pad>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()


def tiny_pair(
    *,
    template: str | None = CHATML,
    bos: bool = False,
    pad_is_eos: bool = False,
    **model: Any,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model and tokenizer, as ``Pipeline(model=...)`` takes them. ``model``: arguments of :func:`tiny_model`."""
    return tiny_model(**model), tiny_tokenizer(template, bos=bos, pad_is_eos=pad_is_eos)


def save_tiny(folder: str | Path, **arguments: Any) -> Path:
    """Write model and tokenizer as a model folder and return it. Arguments as for :func:`tiny_pair`."""
    path = Path(folder)
    for part in tiny_pair(**arguments):
        part.save_pretrained(path)
    return path


WORDS = ("red", "green", "blue", "grey", "teal", "pink")
COUNTS = (1, 2, 3, 4, 5)


def toy_rows(shape: str, n: int = 16, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one task that a tiny model learns in some dozens of steps: repeat a word as often as asked.

    Rows are of unequal lengths, and the same arguments give the same rows.

    Args:
        shape: ``text``, ``prompt_completion``, ``conversation``, ``preference``, ``feedback``, ``ranked``,
            ``prompt`` (the right answer is the column ``answer``), ``rated`` (right answers 1, wrong ones 0),
            ``classification`` (the label is the word), ``token_classification`` or ``regression`` (the score is the
            count).
        n: how many; past 30 the task's questions repeat.
        seed: decides their order.

    Raises:
        ValueError: for another shape.
    """
    make = _SHAPES.get(shape)
    if make is None:
        raise ValueError(f"{shape!r} is no row shape; known: {', '.join(_SHAPES)}")
    pairs = [(word, count) for count in COUNTS for word in WORDS]
    random.Random(seed).shuffle(pairs)
    return [make(number, *pairs[number % len(pairs)]) for number in range(n)]


def _ask(word: str, count: int) -> str:
    return f"Say {word} {count} times." if count > 1 else f"Say {word}."


def _answer(word: str, count: int) -> str:
    return " ".join([word] * count)


def _wrong(word: str, count: int) -> str:
    return "no" * (6 - count)


def _text(number: int, word: str, count: int) -> dict[str, Any]:
    return {"text": f"{_ask(word, count)} {_answer(word, count)}"}


def _prompt_completion(number: int, word: str, count: int) -> dict[str, Any]:
    return {"prompt": _ask(word, count), "completion": _answer(word, count)}


def _conversation(number: int, word: str, count: int) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": _ask(word, count)},
        {"role": "assistant", "content": _answer(word, count)},
    ]
    if number % 3 == 1:
        turns = [{"role": "system", "content": "Do it."}, *turns]
    if number % 3 == 2:
        turns += [{"role": "user", "content": "Once."}, {"role": "assistant", "content": word}]
    return {"messages": turns}


def _preference(number: int, word: str, count: int) -> dict[str, Any]:
    return {"prompt": _ask(word, count), "chosen": _answer(word, count), "rejected": _wrong(word, count)}


def _feedback(number: int, word: str, count: int) -> dict[str, Any]:
    good = number % 2 == 0
    answer = _answer(word, count) if good else _wrong(word, count)
    return {"prompt": _ask(word, count), "completion": answer, "label": good}


def _ranked(number: int, word: str, count: int) -> dict[str, Any]:
    answers = [_answer(word, count), _answer(word, count + 1), _wrong(word, count)]
    turn = number % 3
    order = [0, 1, 2][turn:] + [0, 1, 2][:turn]
    return {"prompt": _ask(word, count), "completions": [answers[place] for place in order], "ranks": order}


def _prompt(number: int, word: str, count: int) -> dict[str, Any]:
    return {"prompt": _ask(word, count), "columns": {"answer": _answer(word, count)}}


def _rated(number: int, word: str, count: int) -> dict[str, Any]:
    good = number % 2 == 0
    answer = _answer(word, count) if good else _wrong(word, count)
    return {"prompt": _ask(word, count), "completion": answer, "score": float(good)}


def _classification(number: int, word: str, count: int) -> dict[str, Any]:
    return {**_text(number, word, count), "label": word}


def _token_classification(number: int, word: str, count: int) -> dict[str, Any]:
    tokens = ["Say", *[word] * count, "now"]
    return {"tokens": tokens, "tags": ["O", "B-WORD", *["I-WORD"] * (count - 1), "O"]}


def _regression(number: int, word: str, count: int) -> dict[str, Any]:
    return {**_text(number, word, count), "score": float(count)}


_SHAPES: dict[str, Callable[[int, str, int], dict[str, Any]]] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "conversation": _conversation,
    "preference": _preference,
    "feedback": _feedback,
    "ranked": _ranked,
    "prompt": _prompt,
    "rated": _rated,
    "classification": _classification,
    "token_classification": _token_classification,
    "regression": _regression,
}
