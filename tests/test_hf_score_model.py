"""Scores of sequences without padding and with shared prompts are those of the ordinary model on each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from tunekit.plugins import hf

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1}
DECODER = {
    **SIZES,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**DECODER),
    "qwen2": Qwen2Config(**DECODER),
    "window": MistralConfig(**DECODER, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=128, num_labels=1, pad_token_id=2),
    "bert": BertConfig(**SIZES, intermediate_size=48, pad_token_id=2),
}
GROUPS = [
    hf.PromptGroup([1, 5, 6, 7, 8, 9], [[10, 11, 3], [12, 13, 14, 15, 16, 17, 3], [18]]),
    hf.PromptGroup([], [[20, 21, 22, 23, 24, 25, 26]]),
    # Padding tokens at the end, and one in the middle: the score is read before the former.
    hf.PromptGroup([1, 30, 2, 31], [[32, 33, 2, 34, 2, 2], [2, 2], [35]]),
]


def made(kind: str) -> Any:
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[kind]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name or "classifier" in name:
                parameter.normal_()
    return model


def alone(model: Any, groups: list[hf.PromptGroup]) -> torch.Tensor:
    rows = [[*prompt, *completion] for prompt, completions in groups for completion in completions]
    return torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_are_those_of_each_row_alone(kind: str) -> None:
    model = made(kind)
    scorer = hf.ScoreModel(model, GROUPS)
    packs = {"llama": True, "qwen2": True, "window": True, "gpt2": True, "bert": False}[kind]
    assert scorer.layout.packs == scorer.shares == packs
    with torch.no_grad():
        expected = alone(model, GROUPS)
    torch.testing.assert_close(scorer.scores(GROUPS), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.05


def test_gradients_are_those_of_each_row_alone() -> None:
    one, other = made("llama"), made("llama")
    weights = torch.arange(1.0, 8.0)
    scorer = hf.ScoreModel(one, GROUPS)
    with scorer.attending():
        (scorer(one, GROUPS)[:, 0] * weights).sum().backward()
    (alone(other, GROUPS)[:, 0] * weights).sum().backward()
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-4, rtol=1e-4, msg=name)


def test_a_prompt_is_computed_once_and_pieces_hold_every_group() -> None:
    scorer = hf.ScoreModel(made("llama"), GROUPS)
    assert scorer.width(GROUPS) == sum(group.tokens for group in GROUPS) == 17 + 7 + 13
    many = GROUPS * 400
    pieces = scorer.pieces(many)
    assert sorted(number for piece in pieces for number in piece) == list(range(len(many)))
    assert len(pieces) > 1 and max(scorer.width([many[n] for n in piece]) for piece in pieces) <= 2048


def test_a_model_that_mixes_rows_is_given_padded_ones() -> None:
    """T12: what is promised by the architecture is looked at before it is used."""
    model = made("llama")
    own = model.model.norm.forward
    # Tokens leak into all that come later, in any row.
    model.model.norm.forward = lambda hidden: own(hidden + 0.1 * hidden.cumsum(1))
    scorer = hf.ScoreModel(model, GROUPS)
    assert scorer.layout.kind == "padded" and "hidden states differ" in scorer.layout.why
    with torch.no_grad():
        expected = alone(model, GROUPS)
    torch.testing.assert_close(scorer.scores(GROUPS), expected, atol=1e-5, rtol=1e-5)
