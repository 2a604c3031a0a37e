"""Preference optimisation: the paper's formula, TRL's losses, and the right reference."""

from __future__ import annotations

import copy
import json
import math
import shutil
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
from tunekit.testing.beside import beside
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions
from tunekit_trl import dpo, reference
from tunekit_trl.encoding import Encoder
from tunekit_trl.options import DpoOptions, SftOptions
from tunekit_trl.sft import SftTrainer

driver = beside(__file__, "trl_driver")

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
    settings = {"batch_size": 4, "epochs": 2.0, "learning_rate": 2e-3, "samples": 0, **options}
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
    frozen = None
    if lora is None:
        frozen = copy.deepcopy(model)
    else:
        model = LoraAdapter(lora).attach(model, seed=7)
    trainer = DPOTrainer(
        model,
        ref_model=frozen,
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

    (file,) = (tmp_path / "dpo" / "reference").iterdir()
    both = json.loads(file.read_text())
    written = {"chosen": both[::2], "rejected": both[1::2]}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "model").double()
    rows = encoded(driver.PREFERENCES)
    with torch.no_grad():
        for side in ("chosen", "rejected"):
            expected = [answer_logps(merged, row, side).sum().item() for row in rows]
            assert written[side] == pytest.approx(expected, rel=1e-5)
            before = [answer_logps(base.double(), row, side).sum().item() for row in rows]
            assert max(abs(a - b) for a, b in zip(expected, before, strict=True)) > 0.5


def test_another_model_as_reference_is_caught(tmp_path: Path) -> None:
    run(tmp_path / "base", max_steps=1, learning_rate=1e-9)
    shutil.copytree(tmp_path / "base" / "reference", tmp_path / "sabotage" / "reference")
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


def test_cancel_during_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_AT_A_TIME", 4)
    cancel = CancelToken()

    class Stop(driver.Events):  # type: ignore[misc]
        def __call__(self, kind: str, **values: Any) -> None:
            super().__call__(kind, **values)
            if kind == "progress" and values["label"] == "reference log-probabilities":
                cancel.cancel("in the reference")

    with pytest.raises(RunCancelled, match="in the reference"):
        run(tmp_path / "a", cancel=cancel, events=Stop())
    assert not (tmp_path / "a" / "reference").exists()


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
    assert DpoOptions(loss_type=["sigmoid", "sft"], loss_weights=[0.8, 2.0]).losses() == {"sigmoid": 0.8, "sft": 2.0}
    assert DpoOptions(loss_type=["sigmoid", "sft"]).losses() == {"sigmoid": 1.0, "sft": 1.0}
    for said, wrong in (
        ("greater than 0", {"beta": 0.0}),
        ("belongs to robust and exo_pair", {"label_smoothing": 0.1}),
        ("needs label_smoothing above 0", {"loss_type": "exo_pair"}),
        ('align\\(method="simpo"\\)', {"loss_type": "simpo"}),
        ('align\\(method="kto"\\)', {"loss_type": "kto_pair"}),
        ("sorts the pairs of a batch", {"loss_type": ["aot"]}),
        ("less than 0.5", {"loss_type": "robust", "label_smoothing": 0.5}),
        ("takes a list", {"loss_weights": [1.0]}),
        ("1 numbers for 2 losses", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}),
        ("numbers above 0", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.0]}),
        ("names a loss twice", {"loss_type": ["sigmoid", "sigmoid"]}),
        ("that is sft", {"loss_type": "sft"}),
        ("names no loss", {"loss_type": []}),
        ("belongs to discopop", {"discopop_tau": 0.1}),
        ("no effect on apo_zero", {"loss_type": "apo_zero", "f_divergence": "forward_kl"}),
        ("f_alpha has no effect", {"f_alpha": 0.3}),
    ):
        with pytest.raises(ValidationError, match=said):
            DpoOptions.model_validate(wrong)
