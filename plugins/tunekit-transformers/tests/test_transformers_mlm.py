"""Masked words: what is hidden, the loss against one by hand, and training on it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from language_step import TEXTS, Step  # noqa: E402

from tunekit.errors import RunCancelled, StepError  # noqa: E402
from tunekit.plugins import LoadedModel, hf  # noqa: E402
from tunekit_transformers.mlm import MaskedPostPretraining, MaskedPretraining, MaskedRows, Masking  # noqa: E402
from tunekit_transformers.options import MaskedPostPretrainOptions, MaskedPretrainOptions  # noqa: E402
from tunekit_transformers.packing import BlockDataset, TokenFile  # noqa: E402
from tunekit_transformers.scratch import new_model  # noqa: E402
from tunekit_transformers.tokenizer import train_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 400, 128, kind="wordpiece")


class Rows:
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.lengths = np.array([len(row) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.rows[index]
        return {"input_ids": ids, "labels": ids, "position_ids": list(range(len(ids)))}


def options(**values: Any) -> MaskedPretrainOptions:
    return MaskedPretrainOptions(
        **{
            "data": [],
            "vocab_size": 400,
            "hidden_size": 32,
            "layers": 2,
            "heads": 2,
            "max_length": 64,
            "max_steps": 6,
            "batch_size": 4,
            "learning_rate": 3e-3,
            **values,
        }
    )


def test_of_the_chosen_80_per_cent_are_hidden_10_replaced_10_kept(tokenizer: Any) -> None:
    ids = np.array(tokenizer(TEXTS[0])["input_ids"] * 400)
    special = np.isin(ids, tokenizer.all_special_ids)
    seen, labels = Masking(tokenizer)(ids, np.arange(len(ids)), np.random.default_rng(1))
    chosen = labels != -100
    assert not chosen[special].any() and np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(seen[~chosen], ids[~chosen])
    assert chosen[~special].mean() == pytest.approx(0.15, abs=0.01)
    hidden = seen[chosen] == tokenizer.mask_token_id
    assert hidden.mean() == pytest.approx(0.8, abs=0.02)
    kept = seen[chosen] == ids[chosen]
    assert kept.mean() == pytest.approx(0.1, abs=0.02)
    others = seen[chosen][~hidden & ~kept]
    assert not np.isin(others, tokenizer.all_special_ids).any()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_whole_words_are_chosen_with_all_their_tokens(kind: str) -> None:
    made = train_tokenizer(TEXTS, 400, 128, kind=kind, masked=True)
    encoded = made("Lilypark showhome and, what nicetogether! Then Tomboat went homewards there.")
    ids, words = np.array(encoded["input_ids"]), encoded.word_ids()
    assert max(words.count(word) for word in set(words) - {None}) > 2, "words of several tokens"
    masking = Masking(made, probability=0.3, whole_words=True)
    for seed in range(20):
        _, labels = masking(ids, np.arange(len(ids)), np.random.default_rng(seed))
        for word in set(words) - {None}:
            parts = {bool(labels[at] != -100) for at, other in enumerate(words) if other == word}
            assert len(parts) == 1, made.convert_ids_to_tokens(ids[[w == word for w in words]].tolist())


def test_a_wordpiece_tokenizer_comes_out_the_same_each_time(tokenizer: Any) -> None:
    """The library by itself numbers letters, and so merges pairs, in another order each time."""
    made = {train_tokenizer(TEXTS, 400, 128, kind="wordpiece").backend_tokenizer.to_str() for _ in range(3)}
    assert made == {tokenizer.backend_tokenizer.to_str()}


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone(tokenizer: Any) -> None:
    rows = MaskedRows(Rows([tokenizer(text)["input_ids"] for text in TEXTS]), Masking(tokenizer), 3)
    first = rows[4]["input_ids"].tolist()
    assert rows[5] is not None and rows[4]["input_ids"].tolist() == first
    rows.set_epoch(1)
    assert rows[4]["input_ids"].tolist() != first
    rows.set_epoch(0)
    assert rows[4]["input_ids"].tolist() == first


def test_the_loss_is_the_cross_entropy_at_the_hidden_tokens(tmp_path: Path) -> None:
    """Against a forward pass per document with transformers alone; documents of one block do not see each other."""
    step = Step(tmp_path, options(max_steps=1, warmup=0.0, batch_size=100), texts=TEXTS[:12])
    step.run(MaskedPretraining())
    tokenizer = hf.load_folder(tmp_path / "model").tokenizer
    reference = new_model(step.ctx.options, tokenizer, step.ctx.seed, masked=True).eval()
    file = TokenFile.build(Step(tmp_path / "again", step.ctx.options).ctx, TEXTS[:12], tokenizer, "x")
    rows = MaskedRows(BlockDataset(file, 64), Masking(tokenizer), step.ctx.seed)
    total, count = 0.0, 0
    for index in range(len(rows)):
        row = rows[index]
        borders = [*np.flatnonzero(row["position_ids"] == 0), len(row["position_ids"])]
        for begin, end in pairwise(borders):
            ids, labels = (torch.tensor(row[name][begin:end]) for name in ("input_ids", "labels"))
            with torch.no_grad():
                logits = reference(input_ids=ids[None]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())
    assert step.logged("tokens")[1] == count > 20
    assert step.losses()[1] == pytest.approx(total / count, rel=1e-5)


def test_an_encoder_learns_is_saved_and_learns_on(tmp_path: Path) -> None:
    step = Step(tmp_path / "a", options(max_steps=80), validation=TEXTS[::6])
    artifact = step.run(MaskedPretraining())
    losses = list(step.losses().values())
    assert losses[0] > 4.5 and np.mean(losses[-10:]) < losses[0] - 1.5
    assert artifact.metrics["perplexity"] < math.exp(losses[0] - 1.5)
    assert artifact.details["objective"] == "masked" and "perplexity_before" not in artifact.metrics
    loaded = hf.load_folder(tmp_path / "a" / "model")
    assert type(loaded.model).__name__ == "ModernBertForMaskedLM"

    more = MaskedPostPretrainOptions(data=[], max_steps=3, max_length=64, batch_size=4, learning_rate=1e-3)
    further = Step(tmp_path / "b", more, loaded, validation=TEXTS[::6])
    done = further.run(MaskedPostPretraining())
    assert further.losses()[1] < losses[0] - 1
    # The same text with the same words hidden: what one step ends with is what the next begins with.
    assert done.metrics["perplexity_before"] == pytest.approx(artifact.metrics["perplexity"], rel=1e-4)


def test_the_same_words_are_hidden_after_an_interruption(tmp_path: Path) -> None:
    made = options(max_steps=8, batch_size=16)
    straight = Step(tmp_path / "a", made)
    artifact = straight.run(MaskedPretraining())
    assert artifact.metrics["epochs"] > 2, "words are hidden anew in each epoch"
    broken = Step(tmp_path / "b", made, cancel_after=5)
    with pytest.raises(RunCancelled):
        broken.run(MaskedPretraining())
    rest = Step(tmp_path / "b", made)
    assert rest.run(MaskedPretraining()).details["resumed_from_step"] == 5
    assert {**broken.losses(), **rest.losses()} == straight.losses()


def test_an_encoder_of_bert_kind_learns_on_to_the_end_of_its_context(tmp_path: Path) -> None:
    """CLS, SEP, PAD, UNK and MASK are all it has, and its positions begin behind the number of the padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    assert tokenizer.eos_token_id is None
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=33,
        pad_token_id=0,
    )
    text = " ".join(TEXTS)
    # A budget is kept to within one batch, though the last batch of each epoch holds less.
    settings = MaskedPostPretrainOptions(data=[], tokens=5000, max_length=64, batch_size=7)
    step = Step(
        tmp_path, settings, LoadedModel(model=RobertaForMaskedLM(config), tokenizer=tokenizer), texts=[text] * 2
    )
    artifact = step.run(MaskedPostPretraining())
    assert artifact.details["block_length"] == 32
    assert 5000 <= sum(step.logged("input_tokens").values()) < 5000 + 2 * settings.batch_size * 32
    assert artifact.details["tokens_per_epoch"] == 2 * (len(text.split()) + 2)


def test_a_causal_model_finds_no_hidden_words(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    step = Step(tmp_path, MaskedPostPretrainOptions(data=[], max_steps=1), loaded)
    with pytest.raises(StepError, match="does not predict hidden words") as caught:
        step.run(MaskedPostPretraining())
    assert caught.value.code == "objective" and "causal" in caught.value.fix
    with pytest.raises(StepError) as caught:
        Masking(loaded.tokenizer)
    assert caught.value.code == "no-mask"
