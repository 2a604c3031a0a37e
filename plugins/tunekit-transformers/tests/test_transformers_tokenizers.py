"""Tokenizers: training of each kind, extension of a vocabulary, embeddings to start from, fertility."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tunekit import Pipeline  # noqa: E402
from tunekit.errors import DataError, OptionsError  # noqa: E402
from tunekit.testing import tiny_model, tiny_pair  # noqa: E402
from tunekit_transformers.fertility import fertility, fertility_by_language  # noqa: E402
from tunekit_transformers.tokenizer import train_tokenizer  # noqa: E402
from tunekit_transformers.vocabulary import extend_embeddings, extend_tokenizer  # noqa: E402

GENERAL = ["Lily went to the park. She saw 12 dogs!\n" * 3, "the cat sat on the mat and went home"] * 20
MEDICAL = [
    "The patient received pembrolizumab and metformin for hyperglycemia.",
    "Pembrolizumab-induced hyperglycemia responded to metformin.",
    "患者接受了二甲双胍治疗。",
] * 10
KINDS: list[dict[str, Any]] = [
    {"kind": "bpe"},
    {"kind": "bpe", "byte_level": False},
    {"kind": "unigram"},
    {"kind": "unigram", "byte_level": True},
    {"kind": "wordpiece"},
]
ODD = ["the  cat\n\tsat 你好 😀", "<0x41> is no byte", " lead", "é\x00é", "Ǆ ﬁ 12345"]


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_every_text_can_be_written_and_read_back(kind: dict[str, Any]) -> None:
    """Bytes, or byte fallback: nothing is unknown, and decoding gives the text back, spaces and all."""
    tokenizer = train_tokenizer(GENERAL, 600, 64, special_tokens=["<tool>"], **kind)
    assert len(tokenizer) <= 600
    for text in ODD:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    assert tokenizer("12345", add_special_tokens=False)["input_ids"] == tokenizer.convert_tokens_to_ids(list("12345"))
    assert len(tokenizer("<tool>")["input_ids"]) == len(tokenizer("<|im_end|>")["input_ids"]) == 1
    words = tokenizer("the cat sat on the mat")["input_ids"]
    assert len(words) < len("the cat sat on the mat"), "words were learned"


def test_without_fallback_unknown_characters_are_lost() -> None:
    tokenizer = train_tokenizer(GENERAL, 600, 64, kind="bpe", byte_level=False, byte_fallback=False)
    ids = tokenizer("cat 你")["input_ids"]
    assert ids[-1] == tokenizer.unk_token_id
    assert tokenizer.decode(ids) == "cat <unk>"


def test_wordpiece_has_the_tokens_of_bert() -> None:
    tokenizer = train_tokenizer(GENERAL, 600, 64, kind="wordpiece", lowercase=True)
    ids = tokenizer("The CAT", "sat")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]"]
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer.convert_ids_to_tokens(tokenizer("你")["input_ids"])[1] == "[UNK]"


def test_masked_training_gets_a_mask_token_within_the_size() -> None:
    plain = train_tokenizer(GENERAL, 320, 64)
    masked = train_tokenizer(GENERAL, 320, 64, masked=True)
    assert len(masked) <= 320
    assert plain.mask_token is None
    assert masked.mask_token == "<|mask|>"
    assert masked("a<|mask|>b")["input_ids"][1] == masked.mask_token_id


def test_bad_requests_say_what_to_type() -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], 600, 64)
    with pytest.raises(OptionsError) as caught:
        train_tokenizer(GENERAL, 200, 64)
    assert "260" in caught.value.message
    assert caught.value.fix.startswith("vocab_size=")
    with pytest.raises(OptionsError, match="lowercase"):
        train_tokenizer(GENERAL, 600, 64, lowercase=True)
    with pytest.raises(OptionsError, match="characters, not bytes"):
        train_tokenizer(GENERAL, 600, 64, kind="wordpiece", byte_level=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_extension_keeps_old_ids_and_shortens_the_new_text(kind: dict[str, Any], tmp_path: Path) -> None:
    old = train_tokenizer(GENERAL, 700, 64, **kind)
    made = extend_tokenizer(old, MEDICAL, size=60, folder=tmp_path, tokens=["<sql>"], special_tokens=["<|think|>"])
    new = made.tokenizer
    assert made.first_id == len(old)
    assert len(new) == len(old) + len(made.tokens)
    assert {name: new.get_vocab()[name] for name in old.get_vocab()} == old.get_vocab()
    marked = new("a<sql><|think|>", add_special_tokens=False)["input_ids"]
    assert "<|think|>" not in new.decode(marked, skip_special_tokens=True)
    assert "<sql>" in new.decode(marked, skip_special_tokens=True)
    before, after = fertility(old, MEDICAL), fertility(new, MEDICAL)
    assert (before.words, before.bytes) == (after.words, after.bytes)
    assert after.tokens < before.tokens or after.unknown < before.unknown
    for text in [*MEDICAL[:3], "a <sql> b<|think|>", "<|im_end|>"]:
        assert len(new(text)["input_ids"]) <= len(old(text)["input_ids"])
        if kind["kind"] != "wordpiece":
            assert new.decode(new(text)["input_ids"]) == text
    if kind["kind"] == "bpe":
        # Merges of before come first: text that holds none of the new pieces is written as before.
        assert [new(text)["input_ids"] for text in GENERAL[:2]] == [old(text)["input_ids"] for text in GENERAL[:2]]


def test_extended_bpe_equals_training_on_by_hand(tmp_path: Path) -> None:
    """The first new merge is the most frequent neighbouring pair of tokens, counted by hand over the new text."""
    old = train_tokenizer(GENERAL, 700, 64)
    made = extend_tokenizer(old, MEDICAL, size=1, folder=tmp_path)
    counts: dict[tuple[str, str], int] = {}
    for text in MEDICAL:
        for word, _ in old.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text):
            pieces = [token.value for token in old.backend_tokenizer.model.tokenize(word)]
            for pair in pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
    best = max(counts.values())
    ids = made.parts[0]
    assert counts[tuple(old.convert_ids_to_tokens(ids))] == best
    assert made.tokens == ("".join(old.convert_ids_to_tokens(ids)),)


@pytest.mark.parametrize("tied", [True, False])
def test_new_embeddings_are_the_mean_of_their_parts(tied: bool, tmp_path: Path) -> None:
    """T18: after the resize a tied head is still the embedding matrix, in memory and after reload."""
    old = train_tokenizer(GENERAL, 700, 64)
    made = extend_tokenizer(old, MEDICAL, size=40, folder=tmp_path / "tokenizer", tokens=["<sql>"])
    model = tiny_model(vocabulary=len(old), tied=tied)
    table, head = model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()
    ids = torch.tensor([old(GENERAL[1])["input_ids"]])
    with torch.no_grad():
        before = model(ids).logits
    extend_embeddings(model, made, "subtokens", seed=0)
    new_table, new_head = model.get_input_embeddings().weight, model.lm_head.weight
    assert (new_head is new_table) is tied
    assert new_table.shape[0] == model.config.vocab_size == len(made.tokenizer)
    assert torch.equal(new_table[: len(old)], table)
    assert torch.equal(new_head[: len(old)], head)
    for number, parts in enumerate(made.parts):
        torch.testing.assert_close(new_table[len(old) + number], table[list(parts)].mean(dim=0))
        torch.testing.assert_close(new_head[len(old) + number], head[list(parts)].mean(dim=0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[..., : len(old)], before)
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_spare_rows_of_a_padded_embedding_are_used_first(tmp_path: Path) -> None:
    old = train_tokenizer(GENERAL, 700, 64)
    made = extend_tokenizer(old, MEDICAL, size=10, folder=tmp_path)
    model = tiny_model(vocabulary=len(old) + 64)
    extend_embeddings(model, made, "mean", seed=0)
    assert model.get_input_embeddings().weight.shape[0] == len(old) + 64
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(table[len(old)], table[: len(old)].mean(dim=0))


def test_fertility_counts() -> None:
    tokenizer = train_tokenizer(GENERAL, 600, 64)
    one = fertility(tokenizer, ["the cat, 你好"])
    assert (one.texts, one.words, one.characters, one.bytes) == (1, 4, 11, 15)
    assert one.tokens == len(tokenizer("the cat, 你好")["input_ids"])
    assert one.tokens_per_word == one.tokens / 4
    assert math.isclose(one.to_dict()["bytes_per_token"], 15 / one.tokens, abs_tol=1e-4)
    assert set(fertility_by_language(tokenizer, MEDICAL)) == {"latin", "cjk"}
    assert fertility_by_language(tokenizer, {"en": MEDICAL[:2], "zh": MEDICAL[2:3]})["zh"].words == 12


def test_the_step_makes_a_model_with_the_new_tokens(tmp_path: Path) -> None:
    model, tokenizer = tiny_pair()
    size = len(tokenizer)
    result = (
        Pipeline(model=(model, tokenizer))
        .extend_vocabulary(data=[{"text": text} for text in MEDICAL], size=30, special_tokens=["<|think|>"])
        .run(workdir=tmp_path)
    )
    details = result.step("extend_vocabulary").artifact.details
    assert details["vocabulary"] == {"before": size, "after": size + 31}
    assert details["fertility"]["after"]["latin"]["tokens"] < details["fertility"]["before"]["latin"]["tokens"]
    again, reread = result.model.load()
    assert len(reread) == size + 31 == again.get_input_embeddings().weight.shape[0]
    assert again.config.tunekit_new_tokens == [size, 31]
    ids = reread(MEDICAL[0])["input_ids"]
    assert max(ids) >= size
    assert reread.decode(ids) == MEDICAL[0]


def test_words_are_learned_where_the_tokenizer_does_not_split_texts(tmp_path: Path) -> None:
    """As Llama 2 and Gemma: the text is one piece, yet no new token may span a space."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    old = train_tokenizer(GENERAL, 700, 64, byte_level=False)
    backend = old.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>")
    made = extend_tokenizer(whole, ["the rest of the west of the rest"] * 20, size=12, folder=tmp_path)
    assert any("rest" in token for token in made.tokens)
    assert not [token for token in made.tokens if "▁" in token[1:]]


def test_ids_with_a_gap_are_not_given_twice(tmp_path: Path) -> None:
    import json

    from transformers import PreTrainedTokenizerFast

    old = train_tokenizer(GENERAL, 700, 64)
    old.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    last = max(data["model"]["vocab"], key=data["model"]["vocab"].get)
    data["model"]["vocab"][last] += 7
    file.write_text(json.dumps(data), encoding="utf-8")
    gapped = PreTrainedTokenizerFast.from_pretrained(tmp_path / "old")
    highest = max(gapped.get_vocab().values())
    assert highest >= len(gapped)
    made = extend_tokenizer(gapped, MEDICAL, size=15, folder=tmp_path / "new")
    ids = list(made.tokenizer.get_vocab().values())
    assert made.first_id == highest + 1
    assert len(set(ids)) == len(ids)


def test_a_second_extension_goes_on_with_the_first(tmp_path: Path) -> None:
    """T19: an adapter trains the tokens of both."""
    model, tokenizer = tiny_pair()
    size = len(tokenizer)
    rows = [{"text": text} for text in MEDICAL]
    result = (
        Pipeline(model=(model, tokenizer))
        .extend_vocabulary(data=rows, size=0, tokens=["<sql>", "<py>"])
        .extend_vocabulary(data=rows, size=0, tokens=["<c>"])
        .run(workdir=tmp_path)
    )
    assert result.model.load()[0].config.tunekit_new_tokens == [size, 3]


SMALL: dict[str, Any] = {
    "max_steps": 1, "hidden_size": 16, "heads": 2, "kv_heads": 1, "layers": 1, "max_length": 32, "vocab_size": 400,
}  # fmt: skip


def test_pretraining_uses_the_kind_that_was_asked_for(tmp_path: Path) -> None:
    rows = [{"text": text} for text in GENERAL]
    result = (
        Pipeline()
        .pretrain(data=rows, tokenizer="unigram", special_tokens=["<tool>"], **SMALL)
        .run(workdir=tmp_path / "own")
    )
    tokenizer = result.model.load()[1]
    assert type(tokenizer.backend_tokenizer.model).__name__ == "Unigram"
    assert len(tokenizer("<tool>")["input_ids"]) == 1
    given = result.model.path
    again = Pipeline().pretrain(data=rows, tokenizer=str(given), **SMALL).run(workdir=tmp_path / "given")
    assert again.model.load()[1].get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    from tunekit.errors import ArtifactError

    with pytest.raises(ArtifactError, match="unigran") as caught:
        Pipeline().pretrain(data=[{"text": "a b c"}], tokenizer="unigran", **SMALL).run(workdir=tmp_path)
    assert caught.value.suggestions == ("unigram",)
