"""Shapes by parameter count, token budgets, samples: arithmetic, without torch where it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tunekit_transformers.corpus import bounded_sample
from tunekit_transformers.options import MaskedPretrainOptions, PostPretrainOptions, PretrainOptions
from tunekit_transformers.presets import learning_rate_for, parse_count, shape_for, vocabulary_for

SIZES = ["500k", "1M", "3M", "10M", "25M", "60M", "135M", "360M", "1B", "1.7B", "3B", "7B", "13B", "70B"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["llama", "modernbert"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_size_is_met_within_five_per_cent(size: str, family: Any, tie: bool) -> None:
    wanted = parse_count(size)
    shape = shape_for(wanted, vocabulary_for(wanted), family=family, tie_embeddings=tie or family == "modernbert")
    assert shape.parameters == pytest.approx(wanted, rel=0.05)
    assert shape.hidden_size % shape.heads == 0 and shape.heads % shape.kv_heads == 0
    assert 10 < shape.hidden_size / shape.layers < 400
    assert 1.5 <= shape.intermediate_size / shape.hidden_size <= 4.5


@pytest.mark.parametrize("size", ["1M", "10M", "135M", "1B"])
def test_the_arithmetic_is_what_transformers_builds(size: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    wanted = parse_count(size)
    for tie in (True, False):
        shape = shape_for(wanted, vocabulary_for(wanted), tie_embeddings=tie)
        config = transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=tie,
        )
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
        model.tie_weights()
        assert sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()) == shape.parameters
    shape = shape_for(wanted, vocabulary_for(wanted), family="modernbert")
    config = transformers.ModernBertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )
    with torch.device("meta"):
        model = transformers.ModernBertForMaskedLM(config)
    model.tie_weights()
    assert sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()) == shape.parameters


@pytest.mark.parametrize(
    ("value", "count"),
    [("10B", 10**10), ("1.5M", 1_500_000), (1e9, 10**9), (5_000_000, 5_000_000), ("2_000k", 2 * 10**6)],
)
def test_counts(value: Any, count: int) -> None:
    assert parse_count(value) == count


def test_resolved_options_say_what_is_built_and_are_read_again() -> None:
    for options in (PretrainOptions(data="x.txt", size="10M"), MaskedPretrainOptions(data="x.txt", size=10_000_000)):
        resolved = options.resolve(adapter=None)
        assert resolved.parameters == pytest.approx(1e7, rel=0.05)
        assert resolved.vocab_size == 8192 and resolved.hidden_size and resolved.layers
        assert resolved.learning_rate == learning_rate_for(10**7) == 1.9e-3
        assert type(options).model_validate_json(resolved.model_dump_json()) == resolved
    bare = PretrainOptions().resolve(adapter=None)
    assert (bare.hidden_size, bare.layers, bare.heads, bare.kv_heads, bare.vocab_size) == (128, 2, 4, 2, 2048)
    assert bare.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"size": "10M", "hidden_size": 100}, "leave one of them out"),
        ({"size": "10M", "architecture": {"model_type": "gpt2"}}, "both say"),
        ({"layers": 3, "architecture": {"model_type": "gpt2"}}, "both say"),
        ({"architecture": {"n_layer": 2}}, "model_type"),
        ({"architecture": "nowhere/config.json"}, "no config to read"),
        ({"size": "1M", "vocab_size": 49152}, "smaller vocab_size"),
        ({"size": "big"}, "is no number"),
        ({"parameters": 5}, "computed"),
        ({"tokens": "1M", "max_steps": 5}, "give one"),
        ({"tokens": "-3"}, "is no number"),
        ({"packing": True}, "always on"),
        ({"schedule": "linear", "min_lr_ratio": 0.1}, "belongs to 'cosine'"),
    ],
)
def test_contradictions_are_errors(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        PretrainOptions(**values)


def test_an_encoder_shares_no_keys_and_ties_its_table() -> None:
    for values in ({"heads": 4, "kv_heads": 2}, {"tie_embeddings": False}):
        with pytest.raises(ValidationError):
            MaskedPretrainOptions(**values)


def test_the_content_of_an_architecture_file_is_part_of_the_step(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2}))
    options = PretrainOptions(architecture=str(tmp_path)).resolve(adapter=None)
    assert options.architecture == {"model_type": "gpt2", "n_layer": 2}
    assert options.hidden_size is None and options.parameters is None


def test_a_budget_makes_steps() -> None:
    options = PostPretrainOptions(tokens="1M", batch_size=8, gradient_accumulation=4)
    assert options.steps(512) == -(-1_000_000 // (8 * 4 * 512))
    assert options.steps(512, world=2) == -(-1_000_000 // (8 * 4 * 512 * 2))
    by_tokens = PostPretrainOptions(tokens=100_000, max_tokens_per_batch=2048)
    assert by_tokens.steps(512) == -(-100_000 // 2048)
    assert PostPretrainOptions(tokens=1).steps(512) == 1
    assert PostPretrainOptions(max_steps=3).steps(512) is None


def test_the_sample_of_a_tokenizer_is_bounded_drawn_evenly_and_seeded() -> None:
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield f"{asked:010d}"

    sample = bounded_sample(endless(), 10_000, seed=1)
    assert asked == 4_000, "four times the sample is read, and no more"
    assert 4_000 < sum(map(len, sample)) <= 10_000
    late = sum(int(text) > 2000 for text in sample) / len(sample)
    assert 0.42 < late < 0.58
    assert sample == sorted(sample)
    asked = 0
    assert bounded_sample(endless(), 10_000, seed=1) == sample
    asked = 0
    assert bounded_sample(endless(), 10_000, seed=2) != sample
    assert bounded_sample(["a", "b"] * 10, 100, seed=1) == ["a", "b"] * 10


def test_of_several_processes_the_first_tokenizer_serves_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is done while another still trains its own: both go on with the same."""
    from language_step import TEXTS, Step

    from tunekit_transformers import scratch
    from tunekit_transformers.options import PretrainOptions

    options = PretrainOptions(data=[], vocab_size=300, hidden_size=32, layers=1, heads=2, max_steps=1)
    ctx = Step(tmp_path, options, texts=TEXTS).ctx
    proper = scratch.corpus_tokenizer

    def overtaken(sample: Any, *more: Any, **named: Any) -> Any:
        monkeypatch.setattr(scratch, "corpus_tokenizer", proper)
        first.append(scratch.own_tokenizer(ctx, options, masked=False))
        return proper(sample[:1], *more, **named)

    first: list[Any] = []
    monkeypatch.setattr(scratch, "corpus_tokenizer", overtaken)
    second = scratch.own_tokenizer(ctx, options, masked=False)
    assert second.get_vocab() == first[0].get_vocab()
    assert sorted(path.name for path in ctx.dir.iterdir() if "tokenizer" in path.name) == ["tokenizer"]
