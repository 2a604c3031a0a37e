"""Schedules, token budgets, perplexity and forgetting: numbers against formulas and loops written by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from language_step import TEXTS, Step  # noqa: E402

from tunekit.plugins import hf  # noqa: E402
from tunekit_transformers.causal import CausalPostPretraining, CausalPretraining  # noqa: E402
from tunekit_transformers.options import PostPretrainOptions, PretrainOptions  # noqa: E402

OTHER = [
    "The quick brown fox jumps over the lazy dog, and the dog does not care.",
    "Rain fell on the hills all day.",
] * 4


def small(**values: Any) -> PretrainOptions:
    shape = {"vocab_size": 300, "hidden_size": 16, "heads": 2, "kv_heads": 1, "layers": 1, "intermediate_size": 32}
    return PretrainOptions(**{"data": [], "max_length": 32, "batch_size": 2, **shape, **values})


def expected(schedule: str, step: int, steps: int, warmup: int, decay: int, ratio: float) -> float:
    """Learning rate, as a share of the peak, with which optimizer step ``step`` (from 0) is done."""
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        return min(1.0, (steps - step) / decay)
    share = (step - warmup) / (steps - warmup)
    if schedule == "linear":
        return 1 - share
    return ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("schedule", "more"),
    [("linear", {}), ("cosine", {}), ("cosine", {"min_lr_ratio": 0.1}), ("constant", {}), ("wsd", {"decay": 0.25})],
)
def test_the_learning_rate_of_every_step_is_that_of_the_formula(
    tmp_path: Path, schedule: str, more: dict[str, Any]
) -> None:
    options = small(schedule=schedule, warmup=4, max_steps=20, learning_rate=1e-3, **more)
    step = Step(tmp_path, options)
    step.run(CausalPretraining())
    rates = step.logged("learning_rate")
    decay = math.ceil(0.25 * 20)
    wanted = [expected(schedule, n, 20, 4, decay, more.get("min_lr_ratio", 0.0)) for n in range(20)]
    # What is logged after step n is the rate that the next step will use, or the rate it used: one of the two, always.
    logged = [rates[n] / 1e-3 for n in range(1, 21)]
    used = wanted if logged[0] == pytest.approx(wanted[0], abs=1e-9) else [*wanted[1:], logged[-1]]
    assert logged == pytest.approx(used, abs=1e-6)
    assert min(wanted[4:]) < 0.3 or schedule == "constant"


def test_a_budget_of_tokens_is_spent_and_no_more(tmp_path: Path) -> None:
    step = Step(tmp_path, small(tokens="2k", batch_size=4, max_length=32))
    artifact = step.run(CausalPretraining())
    assert artifact.metrics["steps"] == math.ceil(2000 / (4 * 32)) == 16
    # The last block of the text may be shorter than the others.
    assert 16 * 4 * 32 - 32 < sum(step.logged("input_tokens").values()) <= 16 * 4 * 32


def test_a_causal_model_learns_more_than_how_often_tokens_occur(tmp_path: Path) -> None:
    step = Step(tmp_path, small(hidden_size=32, layers=2, vocab_size=400, max_steps=120, max_length=64, batch_size=8))
    artifact = step.run(CausalPretraining())
    tokenizer = hf.load_folder(tmp_path / "model").tokenizer
    counts = Counter(token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][1:])
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    # A text is determined by three choices out of 48; all other tokens can be known from those before them.
    assert artifact.metrics["loss"] < 0.35 * entropy
    for name in ("tokens_per_second", "input_tokens_per_second", "mfu"):
        assert artifact.metrics[name] > 0


@pytest.mark.parametrize("name", ["tinystories_sample.txt", "tinyshakespeare.txt", "wikitext-2/valid.txt"])
def test_perplexity_is_that_of_the_reference(name: str, stories260k: Path, shared_data: Path) -> None:
    """Single-window perplexities, measured with another program."""
    reference = json.loads((shared_data / "reference" / "stories260k.json").read_text())["perplexity"]["texts"][name]
    loaded = hf.load_folder(stories260k)
    text = (shared_data / "corpora" / name).read_text(encoding="utf-8")[:20_000]
    ids = loaded.tokenizer(text)["input_ids"][: reference["ids"]]
    assert ids[:8] == reference["first_ids"]
    made = hf.measure_perplexity(loaded.model, [{"input_ids": ids, "labels": ids}])
    assert made.tokens == reference["predicted_tokens"]
    assert made.value == pytest.approx(reference["perplexity"], rel=1e-3)
    assert made.loss == pytest.approx(reference["mean_nll"], rel=1e-4)


def test_forgetting_is_measured_token_by_token(tmp_path: Path, stories260k: Path) -> None:
    """Before and after, on held-out and on other text, against a loop: windows inside a document, no token twice."""
    loaded = hf.load_folder(stories260k)
    length = 48
    before = {"": by_hand(loaded, TEXTS[:5], length), "general_": by_hand(loaded, OTHER, length)}
    options = PostPretrainOptions(data=[], max_steps=10, learning_rate=3e-3, max_length=length, batch_size=4)
    step = Step(tmp_path, options, loaded, texts=TEXTS[5:], validation=TEXTS[:5], general=OTHER)
    metrics = step.run(CausalPostPretraining()).metrics
    trained = hf.load_folder(tmp_path / "model")
    after = {"": by_hand(trained, TEXTS[:5], length), "general_": by_hand(trained, OTHER, length)}
    for key in ("", "general_"):
        assert metrics[f"{key}perplexity_before"] == pytest.approx(before[key][0], rel=1e-4)
        assert metrics[f"{key}perplexity"] == pytest.approx(after[key][0], rel=1e-4)
        assert metrics[f"{key}perplexity_tokens"] == after[key][1]
        change = 100 * (after[key][0] / before[key][0] - 1)
        assert metrics[f"{key}perplexity_change_percent"] == pytest.approx(change, abs=0.02)
    assert metrics["perplexity_change_percent"] < -20 < metrics["general_perplexity_change_percent"]
    said = step.notices()["perplexity"]
    assert f"{metrics['general_perplexity_change_percent']:+.1f} %" in said and "over" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model"]


def by_hand(loaded: Any, texts: list[str], length: int) -> tuple[float, int]:
    """Perplexity over the texts one after the other, in windows of ``length`` tokens that share one token."""
    ids, document = [], []
    for number, text in enumerate(texts):
        made = [*loaded.tokenizer(text)["input_ids"], loaded.tokenizer.eos_token_id]
        ids += made
        document += [number] * len(made)
    total, count = 0.0, 0
    for begin in range(0, len(ids) - 1, length - 1):
        window = np.arange(begin, min(begin + length, len(ids)))
        for number in sorted({document[at] for at in window}):
            part = [ids[at] for at in window if document[at] == number]
            if len(part) < 2:
                continue
            with torch.no_grad():
                logits = loaded.model(torch.tensor([part])).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(part[1:]), reduction="sum"))
            count += len(part) - 1
    return math.exp(total / count), count


def test_only_so_many_tokens_are_measured_as_asked(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    options = PostPretrainOptions(data=[], max_steps=1, max_length=32, batch_size=1, measure_tokens=96)
    metrics = Step(tmp_path, options, loaded, validation=TEXTS).run(CausalPostPretraining()).metrics
    assert 80 < metrics["perplexity_tokens"] <= 96


@pytest.mark.parametrize("architecture", [{"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}])
def test_any_architecture_can_be_named(tmp_path: Path, architecture: dict[str, Any]) -> None:
    options = PretrainOptions(data=[], architecture=architecture, max_steps=12, max_length=32, learning_rate=1e-2)
    step = Step(tmp_path, options)
    artifact = step.run(CausalPretraining())
    loaded = hf.load_folder(tmp_path / "model")
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert loaded.model.config.n_embd == 32 and loaded.model.config.vocab_size == len(loaded.tokenizer)
    assert loaded.model.config.eos_token_id == loaded.tokenizer.eos_token_id
    losses = step.losses()
    assert losses[12] < losses[1] - 0.5
    assert artifact.details["model_type"] == "gpt2"
