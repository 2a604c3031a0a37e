"""Documents that share a sequence: on every attention as if each were alone, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import transformers

from tunekit.plugins.hf import pieces, segments
from tunekit.plugins.hf.batches import Collator
from tunekit.plugins.hf.isolation import isolation_problem, proven_layout
from tunekit.plugins.hf.pieces import PieceLoss
from tunekit.plugins.hf.segments import NAME, Layout

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 99, "num_hidden_layers": 2, "intermediate_size": 48}
TINY = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}

torch.manual_seed(0)
ROWS = [{"input_ids": ids, "labels": ids} for n in (21, 5, 33, 12) for ids in [torch.randint(5, 99, (n,)).tolist()]]


def causal(config: Any, attention: str = "sdpa") -> Any:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    return model.eval()


def llama(attention: str = "sdpa", **more: Any) -> Any:
    return causal(transformers.LlamaConfig(**TINY, **more), attention)


def bert() -> Any:
    torch.manual_seed(1)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, max_position_embeddings=128)).eval()


SHARING: dict[str, Callable[[], Any]] = {
    "llama-sdpa": llama,
    "llama-eager": lambda: llama("eager"),
    "llama-flex": lambda: llama("flex_attention"),
    "gpt2-learned-positions": lambda: causal(transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=99)),
    "mistral-window-8": lambda: causal(transformers.MistralConfig(**TINY, sliding_window=8)),
    "gemma3-window-8": lambda: causal(
        transformers.Gemma3TextConfig(
            **TINY, sliding_window=8, head_dim=8, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "bert-both-ways": bert,
}

NOT_SHARING: dict[str, tuple[Callable[[], Any], str]] = {
    "mamba": (
        lambda: causal(
            transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=99, state_size=4), "eager"
        ),
        "position_ids|state",
    ),
    "linear-attention": (
        lambda: causal(
            transformers.Qwen3NextConfig(
                **TINY,
                head_dim=8,
                layer_types=["linear_attention", "full_attention"],
                linear_num_key_heads=2,
                linear_num_value_heads=2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                num_experts=2,
                num_experts_per_tok=1,
                moe_intermediate_size=8,
                shared_expert_intermediate_size=8,
            )
        ),
        "linear_attention",
    ),
    "softcap": (
        lambda: causal(transformers.Gemma2Config(**TINY, head_dim=8, attn_logit_softcapping=5.0), "eager"),
        "softcap",
    ),
    "alibi": (
        lambda: causal(transformers.BloomConfig(hidden_size=32, n_head=4, n_layer=1, vocab_size=99), "eager"),
        "position_ids",
    ),
}


def alone(model: Any, ids: list[int]) -> Any:
    return model(input_ids=torch.tensor([ids])).logits[0].detach()


def together(model: Any, rows: list[Any], layout: Layout) -> list[Any]:
    batch = Collator()(rows)
    loss = PieceLoss(model, layout, whole=True)
    (piece,) = loss.cut(batch)
    with loss.attending():
        logits = loss.logits(model, piece, torch.ones_like(piece.targets, dtype=torch.bool)).detach()
    return list(logits.split(piece.lengths))


@pytest.mark.parametrize("name", SHARING)
def test_documents_in_one_sequence_are_as_if_alone(name: str) -> None:
    """T12. Whole documents longer than the window too; changing one document changes nothing at all in the others."""
    model = SHARING[name]()
    own = model.config._attn_implementation
    reference = [alone(model, row["input_ids"]) for row in ROWS] if own != "flex_attention" else None
    layout = proven_layout(model, ROWS) if reference else Layout("segments")
    assert layout == Layout("segments")
    made = together(model, ROWS, layout)
    for mine, theirs in zip(made, reference or [alone(llama(), row["input_ids"]) for row in ROWS], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)
    changed = [{"input_ids": [7] * 21, "labels": [7] * 21}, *ROWS[1:]]
    for before, after in zip(made[1:], together(model, changed, layout)[1:], strict=True):
        assert torch.equal(before, after)
    assert model.config._attn_implementation == own, "the model's own attention is back"
    assert NAME not in str(model.config.to_dict())


@pytest.mark.parametrize("name", NOT_SHARING)
def test_models_that_cannot_keep_documents_apart_are_found(name: str) -> None:
    """T12: linear attention and recurrent layers carry a state from one document to the next."""
    make, why = NOT_SHARING[name]
    layout = proven_layout(make(), ROWS)
    assert layout.kind == "padded"
    assert any(part in layout.why for part in why.split("|")), layout.why


def test_the_probe_finds_attention_across_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """T12: one segment in place of several is what a mask of ones is."""
    model, documents = llama(), [row["input_ids"] for row in ROWS]
    assert isolation_problem(model, documents) == ""

    class Joined(segments._Segments):
        def __init__(self, parts: tuple[Any, ...], causal: bool, masks: Any) -> None:
            super().__init__((segments._Part(0, sum(part.length for part in parts)),), causal, (None,))

    monkeypatch.setattr(segments, "_Segments", Joined)
    assert "logits differ" in isolation_problem(model, documents)


def test_the_probe_finds_positions_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = PieceLoss.inputs

    def running_on(self: Any, piece: Any) -> Any:
        made, targets = proper(self, piece)
        made["position_ids"] = torch.arange(targets.shape[1])[None]
        return made, targets

    gpt2 = SHARING["gpt2-learned-positions"]()
    monkeypatch.setattr(PieceLoss, "inputs", running_on)
    assert "logits differ" in isolation_problem(gpt2, [row["input_ids"] for row in ROWS])


def gradients(model: Any, layout: Layout, **options: Any) -> tuple[float, list[Any]]:
    loss = PieceLoss(model, layout, **options)
    model.zero_grad()
    total = 0.0
    with loss.attending():
        for piece in loss.cut(Collator()(ROWS)):
            made = loss(model, piece).loss
            made.backward()
            total += float(made.detach())
    return total, [parameter.grad.clone() for parameter in model.parameters()]


def test_pieces_padding_and_recomputation_leave_the_gradient_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    total, expected = gradients(model, Layout("segments"), whole=True)
    plain = sum(
        float(torch.nn.functional.cross_entropy(alone(model, row["input_ids"])[:-1], ids[1:], reduction="sum"))
        for row in ROWS
        for ids in [torch.tensor(row["input_ids"])]
    )
    assert total == pytest.approx(plain, rel=1e-6)
    monkeypatch.setattr(pieces, "FULL_CPU_TOKENS", 30)
    assert [piece.lengths for piece in PieceLoss(model, Layout("segments")).cut(Collator()(ROWS))] == [
        (21, 5),
        (33,),
        (12,),
    ]
    model.gradient_checkpointing_enable()
    model.train()
    runs = [gradients(model, Layout("segments")), gradients(model, Layout("padded"), whole=True)]
    for again, found in runs:
        assert again == pytest.approx(total, rel=1e-6)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_logits_of_a_piece_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LOGITS", 99 * 40)
    loss = PieceLoss(llama(), Layout("segments"))
    made = loss.cut(Collator()(ROWS))
    assert [piece.target_count for piece in made] == [24, 32, 11]


def test_padded_pieces_are_bounded_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their width, and by the logits at all positions at which any of their rows has a target."""
    rows = [{"input_ids": [1] * 20, "labels": [-100] * at + [1] + [-100] * (19 - at)} for at in range(1, 13)]
    loss = PieceLoss(llama(), Layout("padded"))
    loss._on_cpu = False
    assert len(loss.cut(Collator()(rows))) == 1
    monkeypatch.setattr(pieces, "LOGITS", 99 * 16)
    made = loss.cut(Collator()(rows))
    assert [len(piece.lengths) for piece in made] == [4, 4, 4], "four rows have targets at four positions"
    monkeypatch.setattr(pieces, "PADDED_TOKENS", 60)
    assert [len(piece.lengths) for piece in loss.cut(Collator()(rows))] == [3, 3, 3, 3]
