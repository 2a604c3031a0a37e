"""Classes, tags, scores and several tasks at once, trained for real on tiny encoders and decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
import transformers  # noqa: E402

from tunekit import Pipeline, lora  # noqa: E402
from tunekit.errors import CheckFailed, DataError, StepError  # noqa: E402
from tunekit.plugins import hf  # noqa: E402
from tunekit.testing import tiny_pair  # noqa: E402
from tunekit_transformers.tasks import load_tasks  # noqa: E402

COLOURS = ("red", "green", "blue")
NOUNS = ("car", "door", "hat", "cup of tea", "old house by the sea")

CLASSES = [{"text": f"the {noun} is {colour}", "label": colour} for noun in NOUNS for colour in COLOURS]
TAGS = [
    {"tokens": ["see", *name.split(), "in", place], "tags": ["O", "B-PER", *["I-PER"] * name.count(" "), "O", "B-LOC"]}
    for name in ("Ada", "Ada Bell", "Bob", "Bob C Dee")
    for place in ("Rome", "Oslo", "Wien")
]
SCORES = [{"text": f"{'very ' * count}good", "score": float(2 + 3 * count)} for count in range(6)]


def bert(seed: int = 0, pooler: bool = True, **values: Any) -> tuple[Any, Any]:
    """A tiny BERT without a head, and a WordPiece tokenizer of letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    backend = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = transformers.BertConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        **values,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.BertModel(config, add_pooling_layer=pooler)
    return model.eval(), tokenizer


FAST = {"learning_rate": 3e-3, "batch_size": 8, "warmup": 0.0, "max_length": 64}


def run(model: Any, folder: Path, *, adapter: Any = None, **options: Any) -> Any:
    pipeline = Pipeline(model=model).post_pretrain(**{**FAST, **options}, adapter=adapter)
    return pipeline.run(workdir=folder, seed=0)


@pytest.mark.parametrize("model", [bert, tiny_pair], ids=["encoder", "decoder"])
def test_classes_are_learned_and_read_back(tmp_path: Path, model: Any) -> None:
    result = run(model(), tmp_path, task="classification", data=CLASSES, max_steps=60, learning_rate=1e-2)
    step = result.steps[-1]
    texts = [row["text"] for row in CLASSES]
    task = load_tasks(step.model.path)["classification"]
    assert task(texts) == [row["label"] for row in CLASSES]
    assert task.evaluate(CLASSES)["accuracy"] == 1.0
    # Any tool of the field reads it, and hf.load_folder reads the weights that were handed on, bit for bit.
    pipe = transformers.pipeline("text-classification", model=str(step.model.path), device="cpu")
    assert [found["label"] for found in pipe(texts)] == [row["label"] for row in CLASSES]
    loaded = hf.load_folder(step.model.path)
    assert loaded.model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert loaded.model.config.label2id == {"blue": 0, "green": 1, "red": 2}
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id


@pytest.mark.parametrize("model", [bert, tiny_pair], ids=["encoder", "decoder"])
def test_tags_are_learned_and_read_back(tmp_path: Path, model: Any) -> None:
    result = run(model(), tmp_path, task="ner", data=TAGS, max_steps=80, learning_rate=1e-2)
    task = load_tasks(result.steps[-1].model.path)["ner"]
    report = task.evaluate(TAGS)
    if model is bert:
        assert report["f1"] == report["accuracy"] == 1.0
        assert report["per_class"]["PER"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 12}
        pipe = transformers.pipeline("token-classification", model=str(result.steps[-1].model.path), device="cpu")
        found = [item for item in pipe("see ada bell in rome") if item["word"][:2] != "##"]
        assert [item["entity"] for item in found if item["entity"] != "O"] == ["B-PER", "I-PER", "B-LOC"]
    else:
        # A decoder sees a word's first letter and what stands before it: enough here but for places and names.
        assert report["f1"] > 0.9
    assert result.steps[-1].artifact.details["data"]["train"]["windows"] == len(TAGS)


@pytest.mark.parametrize("model", [bert, tiny_pair], ids=["encoder", "decoder"])
def test_scores_are_learned_in_their_own_units(tmp_path: Path, model: Any) -> None:
    result = run(model(), tmp_path, task="regression", data=SCORES, test=SCORES, max_steps=120, learning_rate=1e-2)
    artifact = result.steps[-1].artifact
    assert artifact.metrics["test_pearson"] > 0.99 and artifact.metrics["test_rmse"] < 1.0
    assert artifact.metrics["test_loss"] == pytest.approx(artifact.metrics["test_mse"], rel=1e-4)
    task = load_tasks(result.steps[-1].model.path)["regression"]
    assert task.evaluate(SCORES)["mse"] == pytest.approx(artifact.metrics["test_mse"], rel=1e-4)
    pipe = transformers.pipeline("text-classification", model=str(result.steps[-1].model.path), device="cpu")
    raw = pipe(SCORES[3]["text"], function_to_apply="none")[0]["score"]
    assert raw == pytest.approx(task(SCORES[3]["text"]), abs=1e-4)
