"""Packing documents into blocks: nothing lost, nothing seen across documents."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tunekit.cancel import CancelToken  # noqa: E402
from tunekit.errors import DataError, RunCancelled, StepError  # noqa: E402
from tunekit.plugins import hf  # noqa: E402
from tunekit_transformers import packing  # noqa: E402
from tunekit_transformers.packing import IGNORE, BlockDataset, TokenFile, tokens_for  # noqa: E402

TEXTS = ["One day a cat sat.", "A dog ran.", "x", "The sun was very big and it was warm all day long. " * 4, "Bye."]


class Words:
    """A tokenizer of words: ids by first sight, with a beginning-of-text token."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __init__(self, bos: bool = True) -> None:
        self.known: dict[str, int] = {}
        self.bos = bos
        self.texts = 0

    def get_vocab(self) -> dict[str, int]:
        return {"bos": self.bos}

    def convert_ids_to_tokens(self, token: int) -> str:
        return next(word for word, known in self.known.items() if known == token)

    def __call__(self, texts: list[str], **kwargs: Any) -> dict[str, list[list[int]]]:
        self.texts += len(texts)
        assert kwargs["add_special_tokens"] and not kwargs["truncation"]
        special = {"<s>": 1, "</s>": 2}
        return {
            "input_ids": [
                [1] * self.bos + [special.get(w) or self.known.setdefault(w, len(self.known) + 3) for w in text.split()]
                for text in texts
            ]
        }


def token_file(
    folder: Path, texts: Iterable[str], tokenizer: Any, cancel: CancelToken | None = None, **more: Any
) -> TokenFile:
    ctx: Any = SimpleNamespace(dir=folder, cache=None, cancel=cancel or CancelToken(), progress=lambda *a: None)
    return TokenFile.build(ctx, texts, tokenizer, "data", **more)


def documents(file: TokenFile) -> list[list[int]]:
    ends = [*file.starts[1:].tolist(), len(file.tokens)]
    return [file.tokens[a:b].tolist() for a, b in zip(file.starts.tolist(), ends, strict=True)]


def test_one_bos_and_one_eos_per_document(tmp_path: Path) -> None:
    file = token_file(tmp_path, ["a b", "<s> a", "a </s>", "<s> <s> b"], Words())
    found = documents(file)
    assert found == [[1, 3, 4, 2], [1, 3, 2], [1, 3, 2], [1, 4, 2]]
    assert file.facts.documents == 4 and file.facts.tokens == 13


def test_no_bos_is_made_up(tmp_path: Path) -> None:
    assert documents(token_file(tmp_path, ["a b"], Words(bos=False))) == [[3, 4, 2]]


@pytest.mark.parametrize("length", [2, 3, 5, 8, 64, 1000])
def test_every_token_is_a_target_once(tmp_path: Path, length: int) -> None:
    file = token_file(tmp_path, TEXTS, Words())
    blocks = BlockDataset(file, length)
    pairs = []
    for index in range(len(blocks)):
        row = blocks[index]
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) <= length
        shifted = list(zip(row["input_ids"], row["labels"][1:], row["position_ids"][1:], strict=False))
        assert any(label != IGNORE for _, label, _ in shifted), "a row without targets"
        for previous, label, position in shifted:
            if label != IGNORE:
                assert position > 0
                pairs.append((previous, label))
    expected = [pair for ids in documents(file) for pair in pairwise(ids)]
    assert pairs == expected
    assert blocks.targets == len(expected)


def test_positions_start_with_each_document(tmp_path: Path) -> None:
    file = token_file(tmp_path, ["a b c", "d e"], Words())
    row = BlockDataset(file, 100)[0]
    assert row["position_ids"] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert row["labels"] == [IGNORE, 3, 4, 5, 2, IGNORE, 6, 7, 2]


def test_cut_documents_are_counted(tmp_path: Path) -> None:
    file = token_file(tmp_path, ["a b c", "d e f", "g"], Words())  # 5, 5 and 3 tokens
    assert BlockDataset(file, 100).cut == 0
    assert BlockDataset(file, 7).cut == 1
    assert BlockDataset(file, 5).cut == 1
    for length in range(2, 14):
        rows = BlockDataset(file, length)
        whole = 0
        for ids in documents(file):
            whole += any(
                ids == rows[i]["input_ids"][j : j + len(ids)]
                for i in range(len(rows))
                for j, position in enumerate(rows[i]["position_ids"])
                if position == 0
            )
        assert rows.cut == 3 - whole, length


def test_complete_token_file_is_used_again(tmp_path: Path) -> None:
    first = token_file(tmp_path, TEXTS, Words())
    assert first.encoded == len(TEXTS)
    other = Words()
    again = token_file(tmp_path, TEXTS, other)
    assert again.facts == first.facts and again.encoded == other.texts == 0
    (path,) = again.folder.glob("*.tokens")
    path.write_bytes(b"1234")
    assert token_file(tmp_path, TEXTS, other).facts == first.facts and other.texts == len(TEXTS)
    again.discard()
    assert not list(tmp_path.iterdir())


def test_only_the_documents_that_training_reads_are_tokenized(tmp_path: Path) -> None:
    """50 blocks of 9 tokens read 401 tokens: with 7 a document, 58 documents, in whole calls of the tokenizer."""
    words = Words()
    texts = (f"a b c d {number}" for number in range(10**9))
    wanted = tokens_for(steps=25, rows=2, length=9)
    file = token_file(tmp_path, texts, words, limit_tokens=wanted)
    assert wanted == 401 and file.facts.tokens == 58 * 7 and not file.facts.complete and words.texts == 256
    assert len(BlockDataset(file, 9)) >= 50


def test_a_token_without_an_embedding_is_an_error(tmp_path: Path) -> None:
    """T19: the tokenizer has grown, the model has not."""
    assert token_file(tmp_path, ["a b c"], Words(), vocabulary=6).facts.tokens == 5
    with pytest.raises(DataError) as caught:
        token_file(tmp_path, ["a b c"], Words(), vocabulary=5)
    assert caught.value.code == "vocabulary" and "'c'" in caught.value.message and "id 5" in caught.value.found


def test_documents_without_targets_fill_no_block(tmp_path: Path) -> None:
    """Blocks in which every token begins a document teach nothing; the others keep their order."""
    file = token_file(tmp_path, ["a b", "", "", "", "", "", "", "c d e", "", "", "", ""], Words(bos=False))
    assert file.facts.documents == 12
    for length in (2, 3, 4):
        blocks = BlockDataset(file, length)
        rows = [blocks[index] for index in range(len(blocks))]
        assert all(any(label != IGNORE for label in row["labels"][1:]) for row in rows)
        assert sum(label != IGNORE for row in rows for label in row["labels"][1:]) == blocks.targets == 5
        assert [len(row["input_ids"]) for row in rows] == blocks.lengths.tolist()
        with pytest.raises(IndexError):
            blocks[len(blocks)]


def test_blocks_over_many_documents_take_no_python_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in pieces or at once, the blocks are the same; memory is a few bytes a document."""
    texts = ["a " * (number % 5) for number in range(3000)]
    file = token_file(tmp_path, texts, Words(bos=False))
    whole = BlockDataset(file, 4)
    monkeypatch.setattr(packing, "_AT_ONCE", 512)
    tracemalloc.start()
    assert len(BlockDataset(file, 2)) == 6000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 130_000, "a list of the blocks would take 200,000 bytes and more"
    monkeypatch.setattr(packing, "_AT_ONCE", 7)
    pieces = BlockDataset(file, 4)
    assert (len(pieces), pieces.cut, pieces.targets) == (len(whole), whole.cut, whole.targets)
    assert all(pieces[index] == whole[index] for index in range(len(whole)))


def test_tokenizer_without_end_of_text(tmp_path: Path) -> None:
    tokenizer = Words()
    tokenizer.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(StepError) as caught:
        token_file(tmp_path, TEXTS, tokenizer)
    assert caught.value.code == "no-eos"


def test_cancel_while_tokenizing(tmp_path: Path) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelled):
        token_file(tmp_path, TEXTS, Words(), token)


def test_packed_documents_compute_what_they_compute_alone(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    file = token_file(tmp_path, TEXTS, loaded.tokenizer)
    blocks = BlockDataset(file, 512)
    ids, positions = (torch.tensor([blocks[0][name]]) for name in ("input_ids", "position_ids"))
    with torch.no_grad():
        packed = loaded.model(ids, position_ids=positions, use_cache=False).logits[0]
        for begin, document in zip(file.starts.tolist(), documents(file), strict=True):
            alone = loaded.model(torch.tensor([document]), use_cache=False).logits[0]
            assert torch.allclose(packed[begin : begin + len(document)], alone, atol=1e-4)
