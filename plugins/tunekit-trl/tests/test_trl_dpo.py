"""Preference optimisation: the paper's formula, TRL's losses, and the right reference."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from tunekit.cancel import CancelToken
from tunekit.errors import DataError, RunCancelled, StepError
from tunekit.plugins import LoadedModel
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions
from tunekit_trl import dpo
from tunekit_trl.encoding import Encoder
from tunekit_trl.options import DpoOptions, SftOptions
from tunekit_trl.rows import pair_rows
from tunekit_trl.sft import SftTrainer

_spec = importlib.util.spec_from_file_location("trl_driver", Path(__file__).with_name("trl_driver.py"))
assert _spec is not None and _spec.loader is not None
driver: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(driver)

LORA = LoraOptions(r=4)
LN2 = math.log(2)


def run(
    folder: Path,
    rows: Any = None,
    *,
    lora: LoraOptions | None = None,
    model: Any = None,
    cancel: CancelToken | None = None,
    events: Any = None,
    **options: Any,
) -> tuple[Any, Any, Any]:
    """Artifact, events and context of one dpo step on a tiny model."""
    loaded = LoadedModel(model=model or driver.tiny_model(), tokenizer=driver.byte_tokenizer())
    events = driver.Events() if events is None else events
    settings = {"batch_size": 4, "epochs": 2.0, "learning_rate": 2e-3, **options}
    ctx = driver.context(
        "align",
        folder,
        loaded,
        driver.PREFERENCES if rows is None else rows,
        DpoOptions(**settings),
        lora=lora,
        events=events,
        cancel=cancel,
    )
    return dpo.DpoTrainer().run(ctx), events, ctx


def values(events: Any, key: str) -> list[float]:
    return [event["values"][key] for event in events.named("metrics")]


def answer_logps(model: Any, row: dict[str, list[int]], side: str) -> torch.Tensor:
    """Log-probability of each answer token, from the full logits in the model's own type."""
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[len(row["prompt_ids"]) - 1 :]


def encoded(rows: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    encoder = Encoder(driver.byte_tokenizer(), 256)
    return [{k: getattr(encoder.pair(row), k) for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in rows]


@pytest.mark.parametrize("lora", [None, LORA, LoraOptions(r=2, dora=True)], ids=["full", "lora", "dora"])
def test_first_step_is_ln_2_with_zero_rewards(lora: LoraOptions | None, tmp_path: Path) -> None:
    model = driver.tiny_model(dropout=0.1)
    _, events, ctx = run(tmp_path, model=model, lora=lora, max_steps=2)
    assert events.losses[0] == pytest.approx(LN2, abs=1e-6)
    assert "0.1" in events.named("notice")[0]["message"]
    assert {layer.self_attn.attention_dropout for layer in ctx.kept[0].model.model.layers} == {0.1}
    for name in ("chosen", "rejected", "margins"):
        assert values(events, f"rewards/{name}")[0] == pytest.approx(0, abs=1e-5)
    assert events.losses[1] != events.losses[0]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_losses_equal_those_of_trl(lora: LoraOptions | None, tmp_path: Path) -> None:
    artifact, events, _ = run(tmp_path / "ours", lora=lora)
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in driver.PREFERENCES
    ]
    model = driver.tiny_model()
    reference = None
    if lora is None:
        reference = copy.deepcopy(model)
    else:
        model = LoraAdapter(lora).attach(model, seed=7)
    trainer = DPOTrainer(
        model,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            seed=7,
            data_seed=7,
            num_train_epochs=2,
            learning_rate=2e-3,
            per_device_train_batch_size=4,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=driver.byte_tokenizer(),
    )
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert len(history) == len(events.losses) == 8
    assert events.losses == pytest.approx([row["loss"] for row in history], abs=1e-5)
    for key in ("rewards/margins", "rewards/chosen", "logps/rejected", "grad_norm"):
        assert values(events, key) == pytest.approx([row[key] for row in history], abs=2e-4)
    assert artifact.metrics["rewards/accuracies"] == history[-1]["rewards/accuracies"]


def formula(
    loss_type: str, chosen: torch.Tensor, rejected: torch.Tensor, lengths: tuple[int, int], beta: float, smooth: float
) -> torch.Tensor:
    """Loss of one pair from its log-ratios against the reference, as the papers give it; float64."""
    margin = beta * (chosen - rejected)
    if loss_type == "sigmoid":  # Rafailov et al. 2023, eq. 7
        return -torch.log(torch.sigmoid(margin))
    if loss_type == "hinge":  # Zhao et al. 2023, on log-ratios
        return torch.clamp(1 - margin, min=0)
    if loss_type == "ipo":  # Azar et al. 2023, eq. 17, averaged over tokens
        return (chosen / lengths[0] - rejected / lengths[1] - 1 / (2 * beta)) ** 2
    if loss_type == "robust":  # Chowdhury et al. 2024, eq. 12
        return (-(1 - smooth) * torch.log(torch.sigmoid(margin)) + smooth * torch.log(torch.sigmoid(-margin))) / (
            1 - 2 * smooth
        )
    if loss_type == "exo_pair":  # Ji et al. 2024, eq. 16
        p = torch.sigmoid(margin)
        return p * (torch.log(p) - math.log(1 - smooth)) + (1 - p) * (torch.log(1 - p) - math.log(smooth))
    if loss_type == "apo_zero":  # D'Oosterlinck et al. 2024, eq. 7
        return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
    assert loss_type == "apo_down"  # ibid., eq. 8
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(margin)


@pytest.mark.parametrize(
    ("loss_type", "smooth"),
    [
        ("sigmoid", 0.0),
        ("hinge", 0.0),
        ("ipo", 0.0),
        ("robust", 0.1),
        ("exo_pair", 1e-3),
        ("apo_zero", 0.0),
        ("apo_down", 0.0),
    ],
)
def test_loss_and_gradient_equal_the_formula_in_float64(loss_type: str, smooth: float, tmp_path: Path) -> None:
    """One batch of pairs of different lengths, with a policy that has moved away from the reference."""
    model, other = driver.tiny_model(), driver.tiny_model(seed=1)
    options = DpoOptions(loss_type=loss_type, label_smoothing=smooth, beta=0.3, batch_size=6)
    tokenizer = driver.byte_tokenizer()
    ctx = driver.context(
        "align", tmp_path, LoadedModel(model=model, tokenizer=tokenizer), driver.PREFERENCES[:6], options
    )
    rows, _ = pair_rows(ctx, Encoder(tokenizer, 256))
    trainer = dpo._trainer(ctx, model, tokenizer, rows)
    with torch.no_grad():
        for parameter, away in zip(model.parameters(), other.parameters(), strict=True):
            parameter.lerp_(away, 0.3)
    trainer.state.global_step = 1
    model.train()
    loss = trainer.compute_loss(model, trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()

    exact, start = copy.deepcopy(model).double(), driver.tiny_model().double()
    exact.zero_grad()
    vars(exact).pop("forward", None)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ratios, lengths = [], []
        for side in ("chosen", "rejected"):
            policy = answer_logps(exact, row, side)
            with torch.no_grad():
                reference = answer_logps(start, row, side).sum()
            ratios.append(policy.sum() - reference)
            lengths.append(len(policy))
        total = total + formula(loss_type, ratios[0], ratios[1], (lengths[0], lengths[1]), 0.3, smooth)
    expected = total / len(rows)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert abs(expected.item() - LN2) > 1e-3
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)


def test_learns_the_preference_and_says_what_it_did(tmp_path: Path) -> None:
    artifact, events, ctx = run(tmp_path, epochs=6.0)
    assert events.losses[-1] < 0.5 * LN2
    metrics = artifact.metrics
    assert metrics["rewards/accuracies"] > 0.9 and metrics["rewards/margins"] > 0.5
    assert metrics["loss_last_quarter"] < metrics["loss_first_quarter"]
    assert metrics["tokens_per_second"] > 0
    details = artifact.details
    assert details["reference"] == "the step's input model"
    assert details["beta"] == 0.1 and details["loss_type"] == "sigmoid"
    rows = encoded(driver.PREFERENCES)
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    assert details["data"]["rows"] == 16 and details["data"]["trained_tokens"] == answers
    assert details["data"]["tokens"] == answers + 2 * sum(len(row["prompt_ids"]) for row in rows)
    (kept,) = ctx.kept
    assert "forward" not in vars(kept.model)


def test_adapter_run_writes_one_adapter_and_no_reference_copy(tmp_path: Path) -> None:
    lora = LoraOptions(r=4, dropout=0.1)
    model = driver.tiny_model(dropout=0.0)
    artifact, events, ctx = run(tmp_path, model=model, lora=lora, epochs=4.0, learning_rate=1e-2)
    assert artifact.trained == "lora r=4" and artifact.details["reference"].endswith("adapter off")
    assert not [path for path in tmp_path.rglob("*") if path.name == "ref"]
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert artifact.trained_parameters == sum(
        p.numel() for p in LoraAdapter(lora).attach(driver.tiny_model(), seed=0).parameters() if p.requires_grad
    )
    assert artifact.details["merge_proof"]["max_abs_diff"] <= 1e-5 < artifact.details["merge_proof"]["base_diff"]
    assert events.codes() == ["dropout-off"]
    assert "0.1" in events.named("notice")[0]["message"]
    (kept,) = ctx.kept
    assert kept.model is model


def test_reference_after_sft_through_an_adapter_is_the_merged_model(tmp_path: Path) -> None:
    base = copy.deepcopy(driver.tiny_model())
    loaded = LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer())
    sft = driver.context(
        "sft",
        tmp_path / "sft",
        loaded,
        driver.PAIRS,
        SftOptions(epochs=6.0, learning_rate=2e-2, batch_size=4),
        lora=LORA,
    )
    SftTrainer().run(sft)
    (kept,) = sft.kept
    _, events, _ = run(tmp_path / "dpo", model=kept.model, lora=LORA)
    assert events.losses[0] == pytest.approx(LN2, abs=1e-6)

    written = json.loads((tmp_path / "dpo" / dpo.REFERENCE_FILE).read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "model").double()
    rows = encoded(driver.PREFERENCES)
    with torch.no_grad():
        for side in ("chosen", "rejected"):
            expected = [answer_logps(merged, row, side).sum().item() for row in rows]
            assert written[side] == pytest.approx(expected, rel=1e-5)
            before = [answer_logps(base.double(), row, side).sum().item() for row in rows]
            assert max(abs(a - b) for a, b in zip(expected, before, strict=True)) > 0.5


def test_another_model_as_reference_is_caught(tmp_path: Path) -> None:
    _, _, ctx = run(tmp_path / "base", max_steps=1, learning_rate=1e-9)
    (tmp_path / "sabotage").mkdir()
    (tmp_path / "sabotage" / dpo.REFERENCE_FILE).write_bytes((tmp_path / "base" / dpo.REFERENCE_FILE).read_bytes())
    del ctx
    with pytest.raises(StepError) as caught:
        run(tmp_path / "sabotage", model=driver.tiny_model(seed=5))
    assert caught.value.code == "reference-mismatch"
    assert not (tmp_path / "sabotage" / "model").exists()


def test_reference_of_other_rows_is_not_used(tmp_path: Path) -> None:
    run(tmp_path, driver.PREFERENCES[:4], max_steps=1)
    for path in (tmp_path / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    _, events, _ = run(tmp_path, driver.PREFERENCES[4:8], max_steps=1)
    assert events.losses[0] == pytest.approx(LN2, abs=1e-6)


def test_cancel_during_the_reference(tmp_path: Path) -> None:
    cancel = CancelToken()

    class Stop(driver.Events):  # type: ignore[misc]
        def __call__(self, kind: str, **values: Any) -> None:
            super().__call__(kind, **values)
            if kind == "progress" and values["label"] == "reference log-probabilities":
                cancel.cancel("in the reference")

    with pytest.raises(RunCancelled, match="in the reference"):
        run(tmp_path / "a", cancel=cancel, events=Stop())
    assert not (tmp_path / "a" / dpo.REFERENCE_FILE).exists()


def test_pairs_that_teach_nothing_are_errors(tmp_path: Path) -> None:
    good = driver.PREFERENCES[:2]
    long = {"prompt": "x" * 120, "chosen": "yes", "rejected": "no"}
    late = {"prompt": "p", "chosen": "y" * 120 + "a", "rejected": "y" * 120 + "b"}
    for name, row, code in (("long", long, "no-targets"), ("late", late, "equal-answers")):
        with pytest.raises(DataError) as caught:
            run(tmp_path / name, [*good, row], max_steps=1, max_length=100)
        assert caught.value.code == code and caught.value.details["row"] == 3
        artifact, events, _ = run(
            tmp_path / f"{name}-skip", [*good, row], max_steps=1, max_length=100, on_bad_row="skip"
        )
        assert artifact.details["data"]["skipped_rows"] == 1 and "rows-skipped" in events.codes()
    with pytest.raises(DataError):
        run(tmp_path / "empty", [], max_steps=1)


def test_options() -> None:
    assert DpoOptions().resolve(adapter=None).learning_rate == 1e-6
    assert DpoOptions().resolve(adapter="lora").learning_rate == 5e-6
    sizes = [
        (made.batch_size, made.gradient_accumulation)
        for made in (
            DpoOptions().resolve(adapter=None),
            DpoOptions().resolve(adapter=None).resolve(adapter=None),
            DpoOptions(batch_size=4).resolve(adapter=None),
            DpoOptions(gradient_accumulation=2).resolve(adapter=None),
        )
    ]
    assert sizes == [(2, 4), (2, 4), (4, 1), (2, 2)]
    for wrong in (
        {"beta": 0.0},
        {"label_smoothing": 0.1},
        {"loss_type": "exo_pair"},
        {"loss_type": "simpo"},
        {"loss_type": "robust", "label_smoothing": 0.5},
    ):
        with pytest.raises(ValidationError):
            DpoOptions.model_validate(wrong)
