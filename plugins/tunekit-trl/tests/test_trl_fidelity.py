"""Supervised fine-tuning against TRL's own trainer, run here, and against itself in other batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import MistralConfig, MistralForCausalLM
from transformers.trainer_pt_utils import LabelSmoother
from trl import SFTConfig, SFTTrainer

from tunekit.plugins import LoadedModel, hf
from tunekit.plugins.hf import pieces, token_trainer
from tunekit.plugins.hf.batches import Collator
from tunekit.plugins.hf.segments import Layout
from tunekit.testing.beside import beside
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions
from tunekit_trl.encoding import Encoder
from tunekit_trl.options import SftOptions
from tunekit_trl.rows import sft_rows
from tunekit_trl.sft import SftTrainer

driver = beside(__file__, "trl_driver")

LORA = LoraOptions(r=4)
STEPS = 12
PADDED = Layout("padded", "asked for by the test")


def ours(
    folder: Path, *, model: Any = None, lora: LoraOptions | None = None, rows: Any = None, **options: Any
) -> tuple[list[float], Any, Any]:
    """Losses, events and the trained model of one sft step."""
    loaded = LoadedModel(model=model or driver.tiny_model(), tokenizer=driver.byte_tokenizer())
    events = driver.Events()
    settings = {"batch_size": 4, "learning_rate": 2e-3, "max_steps": STEPS, **options}
    ctx = driver.context("sft", folder, loaded, rows or driver.PAIRS, SftOptions(**settings), lora=lora, events=events)
    SftTrainer().run(ctx)
    return events.losses, events, loaded.model


def of_trl(folder: Path, lora: LoraOptions | None, **arguments: Any) -> list[float]:
    """Losses of TRL's trainer on the same rows in its own conversational format."""
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in driver.PAIRS
    ]
    model = driver.tiny_model() if lora is None else LoraAdapter(lora).attach(driver.tiny_model(), seed=7)
    settings = {
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 7,
        "data_seed": 7,
        "max_steps": STEPS,
        "learning_rate": 2e-3,
        "disable_tqdm": True,
    }
    trainer = SFTTrainer(
        model,
        args=SFTConfig(output_dir=str(folder), **{**settings, **arguments}),
        train_dataset=Dataset.from_list(rows),
        processing_class=driver.byte_tokenizer(),
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("lora", "ours_only", "theirs_only"),
    [
        (None, {}, {}),
        (LORA, {}, {}),
        (None, {"train_on": "all"}, {"completion_only_loss": False}),
        (
            LORA,
            {"batch_size": 2, "gradient_accumulation": 2, "schedule": "cosine", "warmup": 3.0},
            {
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 3,
            },
        ),
    ],
    ids=["full", "lora", "whole-text", "lora-accumulated"],
)
def test_losses_equal_those_of_trl(
    lora: LoraOptions | None, ours_only: dict[str, Any], theirs_only: dict[str, Any], tmp_path: Path
) -> None:
    losses, events, _ = ours(tmp_path / "ours", lora=lora, **ours_only)
    reference = of_trl(tmp_path / "trl", lora, **theirs_only)
    assert len(losses) == len(reference) == STEPS
    assert losses == pytest.approx(reference, abs=1e-5)
    assert max(losses) - min(losses) > 0.01
    for values in events.named("metrics"):
        assert {"tokens", "input_tokens", "mean_token_accuracy", "grad_norm", "learning_rate"} <= set(values["values"])


def windowed() -> Any:
    torch.manual_seed(0)
    config = driver.tiny_model().config
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=16, max_position_embeddings=256)).eval()


@pytest.mark.parametrize("architecture", ["llama", "windowed"])
def test_the_loss_is_the_same_however_batches_are_run(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1 with sums over the whole step, T12 with blocks: all of these learn the same from the same rows."""
    make = driver.tiny_model if architecture == "llama" else windowed
    common = {"optimizer": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.05, "max_steps": 3}
    losses, _, whole = ours(tmp_path / "whole", model=make(), batch_size=16, **common)
    runs = {
        "one by one": {"batch_size": 1, "gradient_accumulation": 16},
        "packed": {"packing": True, "max_length": 192, "batch_size": 16},
        "by tokens": {"max_tokens_per_batch": 100_000, "batch_size": 100},
        "pieces": {"batch_size": 16},
        "padded": {"batch_size": 16},
        "eager": {"batch_size": 16},
    }
    for name, options in runs.items():
        model = make()
        with monkeypatch.context() as patch:
            if name == "pieces":
                patch.setattr(pieces, "FULL_CPU_TOKENS", 40)
            if name == "padded":
                patch.setattr(token_trainer, "proven_layout", lambda model, rows: PADDED)
            if name == "eager":
                model.set_attn_implementation("eager")
            found, events, _ = ours(tmp_path / name, model=model, **options, **common)
        assert found == pytest.approx(losses, abs=1e-5), name
        for (label, mine), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-4, msg=f"{name}: {label}")
        assert events.codes() == (["padded-rows"] if name == "padded" else [])
        assert ("padding_share" in events.named("metrics")[0]["values"]) == (name == "padded")


def test_a_packed_example_sees_nothing_of_the_others() -> None:
    """T12: the logits of the others do not move by a bit when one example becomes another."""
    model = driver.tiny_model()
    encoder = Encoder(driver.byte_tokenizer(), 192)
    rows = [vars(encoder.example(row, "prompt_completion", "completion")) for row in driver.PAIRS[:5]]
    loss = pieces.PieceLoss(model, Layout("segments"), whole=True)

    def logits(of: list[Any]) -> list[torch.Tensor]:
        (piece,) = loss.cut(Collator()(of))
        with loss.attending(), torch.no_grad():
            found = loss.logits(model, piece, torch.ones_like(piece.targets, dtype=torch.bool))
        return list(found.split(piece.lengths))

    before = logits(rows)
    other = {**rows[2], "input_ids": rows[2]["input_ids"][::-1]}
    after = logits([*rows[:2], other, *rows[3:]])
    assert not torch.equal(before[2], after[2])
    for number in (0, 1, 3, 4):
        assert torch.equal(before[number], after[number])


def test_the_end_is_learned_when_it_is_the_padding_token_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T6: padding is masked by length, not by id."""
    monkeypatch.setattr(token_trainer, "proven_layout", lambda model, rows: PADDED)
    counts = []
    for pad in ("<pad>", "<|im_end|>"):
        loaded = LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer(pad=pad))
        events = driver.Events()
        options = SftOptions(batch_size=16, max_steps=1)
        SftTrainer().run(driver.context("sft", tmp_path / pad, loaded, driver.PAIRS, options, events=events))
        counts.append((events.losses[0], events.named("metrics")[0]["values"]["tokens"]))
    assert counts[0] == counts[1]


def test_smoothing_and_noise(tmp_path: Path) -> None:
    model = driver.tiny_model()
    encoder = Encoder(driver.byte_tokenizer(), 1024)
    expected = torch.zeros(())
    targets = 0
    for row in driver.PAIRS:
        example = encoder.example(row, "prompt_completion", "completion")
        logits = model(torch.tensor([example.input_ids])).logits.detach()
        labels = torch.tensor([example.labels])
        expected = expected + LabelSmoother(0.1)({"logits": logits}, labels, shift_labels=True, num_items_in_batch=1)
        targets += example.targets
    losses, _, _ = ours(tmp_path / "smooth", batch_size=16, max_steps=1, label_smoothing=0.1)
    assert losses[0] == pytest.approx(float(expected) / targets, abs=1e-5)
    plain, _, _ = ours(tmp_path / "plain", batch_size=16, max_steps=1)
    noisy, _, trained = ours(tmp_path / "noisy", batch_size=16, max_steps=1, neftune_alpha=5.0)
    assert noisy[0] != plain[0] and noisy[0] == pytest.approx(plain[0], abs=0.5)
    assert not trained.get_input_embeddings()._forward_hooks


def test_noise_is_bounded_by_the_length_of_the_example(tmp_path: Path) -> None:
    """NEFTune: uniform within alpha / sqrt(tokens * hidden size) of each example, whatever else is in the batch."""
    model, tokenizer = driver.tiny_model(), driver.byte_tokenizer()
    loaded = LoadedModel(model=model, tokenizer=tokenizer)
    ctx = driver.context("sft", tmp_path, loaded, driver.PAIRS, SftOptions())
    rows, _ = sft_rows(ctx, Encoder(tokenizer, 1024), None)
    trainer = hf.TokenTrainer(ctx, model, tokenizer, rows, neftune_alpha=5.0)
    hook = trainer._noise_hook()
    trainer._loss.lengths = (10, 60)
    ids = torch.randint(9, 99, (1, 70))
    embedding = model.get_input_embeddings().train()
    noise = (embedding(ids) - embedding.weight[ids]).detach().abs()[0]
    for part, length in zip(noise.split((10, 60)), (10, 60), strict=True):
        bound = 5 / (length * model.config.hidden_size) ** 0.5
        assert 0.95 * bound < float(part.max()) <= bound * (1 + 1e-5)
    assert torch.equal(embedding.eval()(ids), embedding.weight[ids])
    hook.remove()
