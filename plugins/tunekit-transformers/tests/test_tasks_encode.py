"""Rows as token ids: words and tags, windows, pairs; and which rows form a batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.testing import tiny_tokenizer
from tunekit_transformers.tasks.encode import IGNORED, Encoded, TaskEncoder
from tunekit_transformers.tasks.heads import Scale
from tunekit_transformers.tasks.trainer import TaskBatches, TaskData, collate, count_targets, loss_sum, predict


def wordpiece() -> Any:
    """``un ##want ##ed``-like pieces with [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "new", "york", "##er", "##s", "is", "big", ".", "a"]
    backend = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


LABELS = ("O", "B-LOC", "I-LOC")


def test_the_first_piece_of_a_word_has_its_tag() -> None:
    encoder = TaskEncoder("ner", wordpiece(), 32, labels=LABELS)
    row = {"tokens": ["New", "Yorkers", "is", "big."], "tags": ["B-LOC", "I-LOC", "O", "O"]}
    (made,) = encoder.encode_rows([(1, row)]).rows
    #                                      CLS new york er  s  is big  . SEP
    assert made["input_ids"].tolist() == [2, 4, 5, 6, 7, 8, 9, 10, 3]
    assert made["labels"].tolist() == [-100, 1, 2, -100, -100, 0, 0, -100, -100]
    assert made["positions"].tolist() == [1, 2, 5, 6] and made["words"].tolist() == [0, 1, 2, 3]


def test_words_of_a_tokenizer_that_keeps_spaces_are_those_of_the_sentence() -> None:
    """Given one by one, words would become tokens that no text has: without the spaces between them."""
    tokenizer = tiny_tokenizer(bos=True)
    encoder = TaskEncoder("ner", tokenizer, 64, labels=LABELS)
    row = {"tokens": ["In", "Zürich", "now"], "tags": ["O", "B-LOC", "O"]}
    (made,) = encoder.encode_rows([(1, row)]).rows
    assert made["input_ids"].tolist() == tokenizer("In Zürich now")["input_ids"]
    assert made["positions"].tolist() == [1, 4, 12], "behind the beginning of the text and the spaces"


def test_words_without_tokens_are_counted() -> None:
    encoder = TaskEncoder("ner", wordpiece(), 32, labels=LABELS)
    made = encoder.encode_rows([(1, {"tokens": ["a", "\u200d", "is"], "tags": ["O", "B-LOC", "O"]})])
    assert made.words_without_tokens == 1 and made.rows[0]["words"].tolist() == [0, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "new", "yorkers", "big."]), min_size=1, max_size=40),
    st.integers(8, 20),
    st.integers(0, 12),
)
def test_windows_learn_every_word_once(words: list[str], limit: int, overlap: int) -> None:
    encoder = TaskEncoder("ner", wordpiece(), limit, labels=LABELS, overlap=overlap)
    tags = [LABELS[number % 3] for number in range(len(words))]
    made = encoder.encode_rows([(1, {"tokens": words, "tags": tags})])
    assert all(len(row["input_ids"]) <= limit for row in made.rows) and made.cut_tokens == 0
    seen = [word for row in made.rows for word in row["words"].tolist()]
    assert seen == list(range(len(words)))
    for row in made.rows:
        learned = np.flatnonzero(row["labels"] != IGNORED)
        assert learned.tolist() == row["positions"].tolist()
        assert [LABELS[number] for number in row["labels"][learned]] == [tags[word] for word in row["words"]]


def test_what_is_cut_is_counted() -> None:
    encoder = TaskEncoder("ner", wordpiece(), 8, labels=LABELS, long="cut")
    made = encoder.encode_rows([(1, {"tokens": ["a"] * 10, "tags": ["O"] * 10})])
    assert (len(made.rows), made.cut_rows, made.cut_tokens) == (1, 1, 4)
    texts = TaskEncoder("classification", wordpiece(), 8, labels=("x", "y"))
    made = texts.encode_rows([(1, {"text": "a " * 10, "label": "x"}), (2, {"text": "a", "label": "y"})])
    assert (made.cut_rows, made.cut_tokens) == (1, 4)
    assert [row["labels"] for row in made.rows] == [0, 1] and made.rows[0]["input_ids"].tolist() == [2, *[11] * 6, 3]


def test_pairs_have_a_border_that_the_model_knows() -> None:
    """Two texts one behind the other, or with a second beginning of text between them, are not a pair (T5)."""
    row = {"text": "a", "text_pair": "big", "label": "x"}
    encoder = TaskEncoder("classification", wordpiece(), 32, labels=("x", "y"), segments=True)
    (made,) = encoder.encode_rows([(1, row)]).rows
    assert made["input_ids"].tolist() == [2, 11, 3, 9, 3] and made["token_type_ids"].tolist() == [0, 0, 0, 1, 1]
    tokenizer = tiny_tokenizer(bos=True)
    (made,) = TaskEncoder("classification", tokenizer, 32, labels=("x", "y")).encode_rows([(1, row)]).rows
    assert made["input_ids"].tolist() == tokenizer("a\nbig")["input_ids"]
    assert made["input_ids"].tolist().count(tokenizer.bos_token_id) == 1


def test_batches_are_padded_on_the_right_by_length() -> None:
    """The mask comes from the length: a row may end with the padding token (T6)."""
    rows = [{"input_ids": np.asarray([5, 0]), "labels": 1}, {"input_ids": np.asarray([7, 8, 9]), "labels": 0}]
    batch = collate(rows, "classification", 0)
    assert batch["input_ids"].tolist() == [[5, 0, 0], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert "attention_mask" not in collate(rows[:1], "classification", 0)


def steps(batches: TaskBatches, accumulation: int) -> list[list[int]]:
    flat = [[row for _, row, _ in batch] for batch in batches]
    parts = (flat[at : at + accumulation] for at in range(0, len(flat), accumulation))
    return [sorted(row for batch in part for row in batch) for part in parts]


def test_a_step_learns_from_the_same_rows_however_it_is_cut() -> None:
    """Eight rows at once and eight times one row are the same optimizer step (T1)."""
    lengths = [np.random.default_rng(0).integers(3, 60, 50)]
    whole = TaskBatches(lengths, batch_size=8, seed=3)
    split = TaskBatches(lengths, batch_size=1, accumulation=8, seed=3)
    assert steps(whole, 1) == steps(split, 8)
    first = list(whole)
    whole.set_epoch(1)
    second = list(whole)
    assert first != second and len(first) == len(second) == len(whole) == 7
    assert sorted(row for batch in second for _, row, _ in batch) == list(range(50))


def test_batches_by_tokens_count_padding() -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 300)
    batches = TaskBatches([lengths], batch_size=64, max_tokens=128)
    sizes = set()
    for epoch in range(3):
        batches.set_epoch(epoch)
        made = [[row for _, row, _ in batch] for batch in batches]
        assert sorted(row for batch in made for row in batch) == list(range(300))
        assert all(max(lengths[batch]) * len(batch) <= 128 for batch in made)
        padded = sum(int(max(lengths[batch])) * len(batch) for batch in made)
        assert lengths.sum() / padded > 0.95
        sizes.add(len(made))
    assert sizes == {len(batches)}


def test_tasks_are_mixed_by_size_or_temperature() -> None:
    lengths = [np.full(800, 5), np.full(80, 5), np.full(8, 5)]
    by_size = TaskBatches(lengths, batch_size=8)
    assert by_size.counts == [100, 10, 1]
    assert sorted((task, row) for batch in by_size for task, row, _ in batch) == [
        (task, row) for task in range(3) for row in range(len(lengths[task]))
    ]
    assert all(len({task for task, _, _ in batch}) == 1 for batch in by_size)
    order = [batch[0][0] for batch in by_size]
    assert order != sorted(order)
    even = TaskBatches(lengths, batch_size=8, temperature=1e9)
    assert even.counts == [37, 37, 37]
    # Over the epochs a large task is read to its end, no row twice before that.
    seen = []
    for epoch in range(2):
        even.set_epoch(epoch)
        seen += [row for batch in even for task, row, _ in batch if task == 0]
    assert len(set(seen)) == len(seen) == 2 * 37 * 8


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches(world: int) -> None:
    parts = [TaskBatches([np.full(50, 4)], batch_size=7, rank=rank, world=world) for rank in range(world)]
    rows = [row for part in parts for batch in part for _, row, counts in batch if counts]
    assert sorted(rows) == list(range(50)) and len({len(list(part)) for part in parts}) == 1


def test_class_weights_and_smoothing_are_those_of_torch() -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, -100, 1])
    weights = (0.5, 1.0, 4.0)
    task = TaskData(name="x", kind="classification", train=None, class_weights=weights, label_smoothing=0.1)  # type: ignore[arg-type]
    loss = loss_sum(task, logits, labels)
    expected = torch.nn.functional.cross_entropy(
        logits, labels, weight=torch.tensor(weights), label_smoothing=0.1, reduction="sum"
    )
    assert count_targets(labels) == 5 and float(loss) == pytest.approx(float(expected))
    assert task.weights_on(logits.device) is task.weights_on(logits.device)
    plain = loss_sum(task, logits, labels, plain=True)
    assert float(plain) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")))
    scores = TaskData(name="x", kind="regression", train=None, scale=Scale(2.0, 4.0))  # type: ignore[arg-type]
    aims = torch.tensor([2.0, 2.0])
    loss = loss_sum(scores, torch.tensor([[0.0], [1.0]]), aims)
    assert (float(loss), count_targets(aims)) == (1.0, 2)


@pytest.mark.parametrize("max_tokens", [None, 40, 4])
def test_held_out_rows_are_predicted_in_batches_by_tokens(max_tokens: int | None) -> None:
    """``batch_size`` is as large as ``max_tokens_per_batch`` where batches are filled by tokens alone."""
    shapes = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(64, 2)

        def forward(self, input_ids: Any, **_: Any) -> Any:
            shapes.append(tuple(input_ids.shape))
            return SimpleNamespace(logits=self.embedding(input_ids[:, 0]))

    lengths = [3, 20, 9, 5, 10, 2]
    rows = [{"input_ids": np.full(size, 7 * size % 64), "labels": size % 2} for size in lengths]
    task = TaskData(name="x", kind="classification", train=Encoded("classification", rows=rows))
    model = Model()
    outputs, _, targets = predict(model, task, task.train, 0, 40, max_tokens=max_tokens)
    assert targets == 6 and sum(count for count, _ in shapes) == 6
    expected = {None: [(6, 20)], 40: [(2, 20), (4, 9)], 4: [(1, size) for size in (20, 10, 9, 5, 3, 2)]}
    assert shapes == expected[max_tokens]
    for size, own in zip(lengths, outputs, strict=True):
        assert own == pytest.approx(model.embedding.weight[7 * size % 64].tolist())


def test_encoding_says_how_far_it_is() -> None:
    told: list[int] = []
    rows = ((number, {"text": "a", "label": "x"}) for number in range(2500))
    TaskEncoder("classification", wordpiece(), 8, labels=("x", "y")).encode_rows(rows, told.append)
    assert told == [0, 1000, 2000, 2500]
