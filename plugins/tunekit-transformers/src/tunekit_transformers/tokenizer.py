"""Train a tokenizer on a corpus: BPE, Unigram or WordPiece, through the ``tokenizers`` library."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError, DataError, OptionsError, nearest
from tunekit.plugins import hf

__all__ = [
    "CHAT_TEMPLATE",
    "END_OF_TEXT",
    "KINDS",
    "MASK",
    "PAD",
    "SPECIAL_TOKENS",
    "TURN_END",
    "TURN_START",
    "given_tokenizer",
    "train_tokenizer",
]

KINDS = ("bpe", "unigram", "wordpiece")

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
PAD = "<|pad|>"
MASK = "<|mask|>"
UNKNOWN = "<unk>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, PAD)
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# ChatML: https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SPACE = "▁"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_ALPHABET = 1000
"""Letters of a WordPiece vocabulary: the most frequent ones."""
_BYTE_SCORE = -1e4
"""Log-probability of a byte token in a Unigram model: a text that spells ``<0x41>`` out is never read as that byte."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    max_length: int,
    *,
    kind: str = "bpe",
    byte_level: bool | None = None,
    byte_fallback: bool = True,
    special_tokens: Sequence[str] = (),
    masked: bool = False,
    lowercase: bool = False,
) -> Any:
    """A ``PreTrainedTokenizerFast`` with at most ``vocab_size`` tokens.

    Documents end with ``<|endoftext|>``, turns of a conversation with ``<|im_end|>``; padding has a token of its own.
    No special token is added by itself, except by ``wordpiece`` (``[CLS]`` ... ``[SEP]``). Digits stand alone.

    Args:
        texts: documents.
        vocab_size: most tokens; special ones, and bytes where they are tokens, included.
        max_length: recorded as the model's context.
        kind: ``bpe`` (Sennrich et al. 2016, arXiv:1508.07909), ``unigram`` (Kudo 2018, arXiv:1804.10959), or
            ``wordpiece`` as BERT uses it.
        byte_level: text is read as bytes, each of which is a token (GPT-2, Llama 3). Default: for ``bpe`` only.
        byte_fallback: where text is read as characters, a character that is not in the vocabulary is written in byte
            tokens (SentencePiece, Llama 2). Without it such a character becomes ``<unk>`` and is lost. ``wordpiece``
            has none: it knows only ``[UNK]``.
        special_tokens: further tokens that stand for themselves wherever they appear.
        masked: add a mask token, for masked-word training.
        lowercase: ``wordpiece`` only: lower the case and strip accents, as BERT's uncased models do.

    Raises:
        DataError: if there is no text.
        OptionsError: if the vocabulary is too small, or options contradict each other.
    """
    if kind not in KINDS:
        raise OptionsError(
            f"There is no tokenizer kind {kind!r}.", code="tokenizer", fix='use "bpe", "unigram" or "wordpiece"'
        )
    if kind == "wordpiece" and byte_level:
        raise OptionsError("A wordpiece tokenizer reads characters, not bytes.", code="tokenizer", fix='use "bpe"')
    if lowercase and kind != "wordpiece":
        raise OptionsError(
            f"lowercase has no effect on a {kind} tokenizer.", code="tokenizer", fix='use kind="wordpiece"'
        )
    documents = _Counted(texts)
    if kind == "wordpiece":
        backend, names = _wordpiece(documents, vocab_size, special_tokens, lowercase)
    else:
        level = kind == "bpe" if byte_level is None else byte_level
        further = [*special_tokens, *([MASK] if masked else [])]
        backend, names = _subwords(documents, vocab_size, kind, level, byte_fallback and not level, further)
    if not documents.count:
        raise DataError("There is no text to train a tokenizer on.", code="empty-dataset")
    return _dressed(backend, names, special_tokens, max_length, masked=masked, kind=kind)


def given_tokenizer(ref: str) -> Any:
    """The tokenizer in a folder, or of a hub id, for a model from random weights.

    Raises:
        ArtifactError: if it cannot be had.
        DataError: if it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    path = Path(ref).expanduser()
    try:
        with hf.quiet():
            tokenizer = AutoTokenizer.from_pretrained(path if path.is_dir() else ref)
    except Exception as error:
        raise ArtifactError(
            f"There is no tokenizer kind, folder or hub id {ref!r}.",
            code="tokenizer",
            asked=f"tokenizer={ref!r}",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
            suggestions=nearest(ref, KINDS),
            fix=f"use one of {', '.join(KINDS)}, or a folder with a tokenizer.json",
        ) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"The tokenizer {ref!r} has no end-of-text token, so the model could not learn where a text ends.",
            code="no-eos",
            fix="set tokenizer.eos_token and save it again",
        )
    return tokenizer


class _Counted:
    """Texts on their way to the library, which does not say how many it was given."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.count = 0

    def __iter__(self) -> Any:
        for text in self._texts:
            self.count += 1
            yield text


def _subwords(
    texts: Iterable[str], vocab_size: int, kind: str, level: bool, fallback: bool, special_tokens: Sequence[str]
) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    taken = len(SPECIAL_TOKENS) + len(special_tokens) + (0 if level else 1) + (len(_BYTES) if fallback else 0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if level else list(string.printable[:-6])
    room = vocab_size - taken
    if room < len(alphabet):
        raise OptionsError(
            f"A vocabulary of {vocab_size} tokens leaves no room for words: {taken + len(alphabet)} are special "
            "tokens, bytes and letters.",
            code="vocab-size",
            asked=f"vocab_size={vocab_size}",
            fix=f"vocab_size={max(512, 2 * (taken + len(alphabet)))} or more",
        )
    digits = pre_tokenizers.Digits(individual_digits=True)
    if level:
        split: Any = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        split = pre_tokenizers.Sequence([digits, pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never")])
    raw = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    raw.pre_tokenizer = split
    if kind == "bpe":
        trainer: Any = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    else:
        trainer = trainers.UnigramTrainer(
            vocab_size=room + 1,
            initial_alphabet=alphabet,
            show_progress=False,
            special_tokens=[UNKNOWN],
            unk_token=UNKNOWN,
        )
    raw.train_from_iterator(texts, trainer)
    learned = json.loads(raw.to_str())["model"]
    unknown = [] if level else [UNKNOWN]
    front = [*SPECIAL_TOKENS, *special_tokens, *unknown, *(_BYTES if fallback else ())]
    if kind == "bpe":
        words = [word for word, _ in sorted(learned["vocab"].items(), key=lambda item: item[1]) if word not in front]
        vocabulary = {word: number for number, word in enumerate([*front, *words])}
        merges = [tuple(merge) for merge in learned["merges"]]
        model: Any = models.BPE(
            vocabulary, merges, byte_fallback=fallback, unk_token=None if level else UNKNOWN, fuse_unk=False
        )
    else:
        pieces = [(word, score) for word, score in learned["vocab"] if word not in front]
        known = {word for word, _ in pieces}
        least = min((score for _, score in pieces), default=0.0) - 1
        pieces += [(letter, least) for letter in alphabet if letter not in known]
        low = [(word, _BYTE_SCORE) for word in front]
        model = models.Unigram([*low, *pieces], unk_id=None if level else front.index(UNKNOWN), byte_fallback=fallback)
    backend = Tokenizer(model)
    backend.pre_tokenizer = split
    if level:
        backend.decoder = decoders.ByteLevel()
    else:
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), *([decoders.ByteFallback()] if fallback else []), decoders.Fuse()]
        )
    names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
    return backend, names | ({} if level else {"unk_token": UNKNOWN})


def _wordpiece(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], lowercase: bool
) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    front = [*BERT_TOKENS, *SPECIAL_TOKENS[:-1], *special_tokens]
    if vocab_size < len(front) + 100:
        raise OptionsError(
            f"A vocabulary of {vocab_size} tokens leaves no room for words: {len(front)} are special tokens.",
            code="vocab-size",
            asked=f"vocab_size={vocab_size}",
            fix="vocab_size=1000 or more",
        )
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.BertPreTokenizer()]
    )
    backend.decoder = decoders.WordPiece()
    documents = list(texts)
    counts = Counter(letter for text in documents for letter in backend.normalizer.normalize_str(text))
    common = sorted(counts, key=lambda letter: (-counts[letter], letter))
    alphabet = sorted([letter for letter in common if not letter.isspace()][:_ALPHABET])

    def learn(size: int, first: list[str]) -> dict[str, int]:
        backend.train_from_iterator(
            documents,
            trainers.WordPieceTrainer(
                vocab_size=size,
                special_tokens=first,
                initial_alphabet=alphabet,
                limit_alphabet=len(alphabet),
                show_progress=False,
            ),
        )
        learned: dict[str, int] = json.loads(backend.to_str())["model"]["vocab"]
        return learned

    # The library numbers letters inside words in an order that differs from run to run, and pairs that occur equally
    # often are merged by number. Letters that are known beforehand keep their numbers.
    inner = sorted(token for token in learn(len(front), front) if token.startswith("##"))
    learned = learn(vocab_size, [*front, *inner])
    trained = Tokenizer(models.WordPiece(learned, unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trained.decoder = backend.decoder
    backend = trained
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return backend, {
        "bos_token": "[CLS]",
        "cls_token": "[CLS]",
        "eos_token": "[SEP]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }


def _dressed(
    backend: Any, names: dict[str, str], special_tokens: Sequence[str], max_length: int, *, masked: bool, kind: str
) -> Any:
    from transformers import PreTrainedTokenizerFast

    further = [TURN_START, TURN_END, *special_tokens] + ([END_OF_TEXT] if kind == "wordpiece" else [])
    if masked and "mask_token" not in names:
        names |= {"mask_token": MASK, "cls_token": END_OF_TEXT, "sep_token": END_OF_TEXT}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens=further,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **names,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
