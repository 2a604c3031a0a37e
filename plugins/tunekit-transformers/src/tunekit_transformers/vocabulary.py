"""Teach a trained tokenizer the words of a new corpus, without changing what it knows."""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tunekit.errors import StepError
from tunekit.plugins import hf

__all__ = ["Extension", "extend_embeddings", "extend_tokenizer"]

_MOST_WORDS = 2_000_000
"""Different words that are counted at most; rare ones are let go beyond that."""

_NEVER = -1e4

_SPACE = "▁"
_WORDS = re.compile(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+")
"""Words of a text in SentencePiece's writing. Some tokenizers of that kind do not split a text before they merge, but
their merges were learned within words."""


@dataclass(frozen=True, kw_only=True)
class Extension:
    """New tokens, and how the tokenizer wrote them before."""

    tokenizer: Any
    tokens: tuple[str, ...]
    """As they stand in the vocabulary, in the order of their ids."""
    first_id: int
    """Id of the first; the others follow without a gap."""
    parts: tuple[tuple[int, ...], ...]
    """For each, the ids it was written with before."""


def extend_tokenizer(
    tokenizer: Any,
    texts: Iterable[str],
    *,
    size: int,
    folder: Path,
    tokens: Sequence[str] = (),
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
) -> Extension:
    """The tokenizer with up to ``size`` tokens learned from ``texts``, and with those named.

    A BPE tokenizer is trained on from where it stands: its merges come first and in their order, new ones after them,
    so a text is written as before, only with neighbours joined further. In Unigram and WordPiece vocabularies the
    pieces that save the most tokens on ``texts`` are added.

    Args:
        tokenizer: of ``transformers``, on the ``tokenizers`` backend. It is not changed.
        texts: read once.
        size: most tokens to learn.
        folder: scratch folder; what is left in it is the extended tokenizer.
        tokens: tokens to add as they are, found wherever their text stands.
        special_tokens: as ``tokens``, but left out of decoded text when special tokens are.
        min_frequency: how often a piece must appear to be learned.

    Raises:
        StepError: if the tokenizer is not on the ``tokenizers`` backend or of a kind that cannot be extended.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise StepError(
            f"{type(tokenizer).__name__} is not built on the tokenizers library, so it cannot be extended.",
            code="tokenizer-kind",
            fix="load the model with a tokenizer.json (a fast tokenizer)",
        )
    folder.mkdir(parents=True, exist_ok=True)
    known = tokenizer.get_vocab()
    first = max(known.values()) + 1  # not their number: some vocabularies have gaps
    with hf.quiet():
        tokenizer.save_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    kind = whole["model"]["type"]
    learners = {"BPE": _learn_bpe, "Unigram": _learn_pieces, "WordPiece": _learn_pieces}
    if kind not in learners:
        raise StepError(
            f"A {kind} vocabulary cannot be extended.", code="tokenizer-kind", fix="use BPE, Unigram or WordPiece"
        )
    _names_in_model(whole, kind, first)
    learned = learners[kind](backend, whole, _word_counts(backend, texts), size, min_frequency, first) if size else []
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    from transformers import AutoTokenizer

    with hf.quiet():
        extended = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        named = [token for token in dict.fromkeys(tokens) if token not in extended.get_vocab()]
        extended.add_tokens(named)
        special = [token for token in dict.fromkeys(special_tokens) if token not in extended.get_vocab()]
        extended.add_tokens(special, special_tokens=True)
        extended.save_pretrained(folder)
    parts = [tuple(_ids(backend, word)) for word in learned]
    for token in (*named, *special):
        parts.append(tuple(tokenizer(token, add_special_tokens=False)["input_ids"]))
    made = (*learned, *named, *special)
    ids = [extended.convert_tokens_to_ids(token) for token in made]
    kept = extended.get_vocab()
    same = all(kept.get(token) == number for token, number in known.items())
    if ids != list(range(first, first + len(made))) or not same:
        raise StepError(
            "The extended tokenizer does not number its tokens as before, with the new ones behind.",
            code="tokenizer-kind",
            found=f"{made[:3]} became {ids[:3]}, expected from {first}",
            fix="report the model, and add tokens by name (tokens=[...]) instead",
        )
    return Extension(tokenizer=extended, tokens=made, first_id=first, parts=tuple(parts))


def extend_embeddings(model: Any, extension: Extension, init: str, seed: int) -> None:
    """Give ``model`` an input and an output row for each new token, in place. Tied weights stay tied.

    Args:
        model: a ``transformers`` model.
        extension: new tokens; their ids follow on those the tokenizer had.
        init: ``subtokens``: the mean of the rows of the tokens the new one was written with before (Gee et al. 2022,
            arXiv:2402.09977). ``mean``: the mean of all rows (Hewitt 2021). ``random``: normal, with the deviation of
            the model's other rows.
        seed: for ``random``.
    """
    import torch

    rows = extension.first_id + len(extension.tokens)
    before = int(model.get_input_embeddings().weight.shape[0])
    if rows > before:
        model.resize_token_embeddings(rows, mean_resizing=False)
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is table
    targets = [table] if head is None or tied else [table, head.weight]
    bias = getattr(head, "bias", None) if head is not None else None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for target in targets:
            known = target[: extension.first_id].float()
            mean, deviation = known.mean(dim=0), float(known.std())
            for number, parts in enumerate(extension.parts):
                if init == "random":
                    row = torch.randn(mean.shape, generator=generator).to(mean) * deviation
                elif init == "mean" or not parts:
                    row = mean
                else:
                    row = known[list(parts)].mean(dim=0)
                target[extension.first_id + number] = row.to(target.dtype)
        if bias is not None:
            bias[extension.first_id : rows] = bias[: extension.first_id].mean()
    model.tie_weights()


def _names_in_model(whole: dict[str, Any], kind: str, first: int) -> None:
    """Put added tokens that stand only beside the model's vocabulary into it: they keep their ids when it grows."""
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    vocabulary = whole["model"]["vocab"]
    if kind == "Unigram":
        by_id = {number: name for name, number in added.items()}
        while len(vocabulary) < first:
            name = by_id.get(len(vocabulary))
            if name is None:
                raise StepError(
                    f"The tokenizer has no token with the id {len(vocabulary)}, so it cannot be extended.",
                    code="tokenizer-kind",
                    fix="add tokens by name only: size=0, tokens=[...]",
                )
            vocabulary.append([name, _NEVER])
        return
    for name, number in added.items():
        vocabulary.setdefault(name, number)


def _word_counts(backend: Any, texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token appears."""
    counts: Counter[str] = Counter()
    for text in texts:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer is not None else [(text, None)]
        for piece, _ in pieces:
            counts.update(_WORDS.findall(piece) if _SPACE in piece[1:] else (piece,))
        if len(counts) > _MOST_WORDS:
            for word in [word for word, times in counts.items() if times == 1]:
                del counts[word]
    return counts


def _ids(backend: Any, word: str) -> list[int]:
    return [token.id for token in backend.model.tokenize(word)]


def _learn_bpe(
    backend: Any, whole: dict[str, Any], words: Counter[str], size: int, least: int, first: int
) -> list[str]:
    """Go on with byte-pair merging on ``words``; new tokens and merges go into ``whole``."""
    vocabulary = whole["model"]["vocab"]
    prefix = whole["model"].get("continuing_subword_prefix") or ""
    learned = _new_letters(vocabulary, words, size, least)
    vocabulary.update((letter, first + number) for number, letter in enumerate(learned))
    rows: list[list[str]] = []
    times: list[int] = []
    for word, count in words.items():
        for pieces in _runs(backend, vocabulary, frozenset(learned), word):
            if len(pieces) > 1:
                rows.append(pieces)
                times.append(count)
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, pieces in enumerate(rows):
        for pair in pairwise(pieces):
            pairs[pair] += times[number]
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in pairs.items() if count >= least]
    heapq.heapify(heap)
    merges: list[list[str]] = []
    while heap and len(learned) < size:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair] or pairs[pair] < least:
            continue  # an old count; the new one is in the heap as well
        joined = pair[0] + pair[1].removeprefix(prefix)
        if joined in vocabulary:
            pairs[pair] = 0  # a token of that name is there, made of other parts
            continue
        vocabulary[joined] = first + len(learned)
        learned.append(joined)
        merges.append(list(pair))
        changed: set[tuple[str, str]] = set()
        for number in where.pop(pair):
            old = rows[number]
            for neighbours in pairwise(old):
                pairs[neighbours] -= times[number]
                changed.add(neighbours)
            new = _join(old, pair, joined)
            rows[number] = new
            for neighbours in pairwise(new):
                pairs[neighbours] += times[number]
                where[neighbours].add(number)
                changed.add(neighbours)
        pairs[pair] = 0
        for neighbours in sorted(changed):
            if pairs[neighbours] >= least:
                heapq.heappush(heap, (-pairs[neighbours], neighbours))
    old_merges = whole["model"]["merges"]
    as_text = bool(old_merges) and isinstance(old_merges[0], str)
    whole["model"]["merges"] = [*old_merges, *((" ".join(merge) if as_text else merge) for merge in merges)]
    return learned


def _new_letters(vocabulary: dict[str, int], words: Counter[str], size: int, least: int) -> list[str]:
    """Frequent characters that the vocabulary does not have, at most ``size``; a byte-level one has all."""
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for letter in word:
            if letter not in vocabulary:
                counts[letter] += times
    return [letter for letter, times in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if times >= least][
        :size
    ]


def _runs(backend: Any, vocabulary: dict[str, int], fresh: frozenset[str], word: str) -> list[list[str]]:
    """The pieces of a word that may be merged, cut where a character is unknown."""
    runs: list[list[str]] = [[]]
    held = ""
    for letter in [*word, ""]:
        if letter in vocabulary and letter not in fresh:
            held += letter
            continue
        if held:
            runs[-1] += [token.value for token in backend.model.tokenize(held)]
            held = ""
        if letter in fresh:
            runs[-1].append(letter)
        elif letter:
            runs.append([])
    return runs


def _join(pieces: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    made: list[str] = []
    at = 0
    while at < len(pieces):
        if at + 1 < len(pieces) and (pieces[at], pieces[at + 1]) == pair:
            made.append(joined)
            at += 2
        else:
            made.append(pieces[at])
            at += 1
    return made


def _learn_pieces(
    backend: Any, whole: dict[str, Any], words: Counter[str], size: int, least: int, first: int
) -> list[str]:
    """Pieces of a vocabulary trained on ``words`` alone that save the most tokens; they go into ``whole``."""
    from tokenizers import Tokenizer, models, trainers

    unigram = whole["model"]["type"] == "Unigram"
    known = {name for name, _ in whole["model"]["vocab"]} if unigram else set(whole["model"]["vocab"])
    unknown = backend.model.unk_token if not unigram else "<unk>"
    fresh = Tokenizer(models.Unigram() if unigram else models.WordPiece(unk_token=unknown))
    settings: dict[str, Any] = {"show_progress": False, "special_tokens": [unknown]}
    if unigram:
        settings |= {"unk_token": unknown}
    trainer = (trainers.UnigramTrainer if unigram else trainers.WordPieceTrainer)(
        vocab_size=4 * size + 1000, **settings
    )
    # Words are pre-tokenized already; each stands as often as it appears, within reason.
    most = max(words.values(), default=1)
    scale = max(1, most // 1000)
    fresh.train_from_iterator((word for word, times in words.items() for _ in range(-(-times // scale))), trainer)
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for token in fresh.model.tokenize(word):
            counts[token.value] += times
    gains: list[tuple[int, str]] = []
    for piece, times in counts.items():
        if piece in known or times < least or piece == unknown:
            continue
        plain = piece.removeprefix("##") if not unigram else piece
        before = [token.value for token in backend.model.tokenize(plain)]
        saved = times * (len(plain) if unknown in before else len(before) - 1)
        if saved > 0:
            gains.append((-saved, piece))
    learned = [piece for _, piece in sorted(gains)[:size]]
    total = sum(counts.values())
    for number, piece in enumerate(learned):
        if unigram:
            whole["model"]["vocab"].append([piece, math.log(counts[piece] / total)])
        else:
            whole["model"]["vocab"][piece] = first + number
    return learned
