"""Held-out rows during training: measured right, best weights kept, stopped early, also after a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunekit.cancel import CancelToken
from tunekit.data import load_dataset
from tunekit.errors import RunCancelled
from tunekit.plugins import LoadedModel
from tunekit.testing.beside import beside
from tunekit_trl.encoding import Encoder
from tunekit_trl.options import SftOptions
from tunekit_trl.sft import SftTrainer

driver = beside(__file__, "trl_driver")

HELD_OUT = driver.PAIRS[::5]


def train(
    folder: Path, *, cancel: CancelToken | None = None, on_eval: Any = None, on_loss: Any = None, **options: Any
) -> tuple[Any, Any]:
    """Artifact and events of one sft step with held-out rows."""
    loaded = LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer())
    events = driver.Events()

    def tell(kind: str, **values: Any) -> None:
        events(kind, **values)
        if kind == "metrics" and "eval_loss" in values["values"] and on_eval:
            on_eval(values["global_step"])
        if kind == "metrics" and "loss" in values["values"] and on_loss:
            on_loss(values["global_step"])

    settings = {"batch_size": 4, "learning_rate": 2e-3, "validation": 4, **options}
    ctx = driver.context(
        "sft", folder, loaded, driver.PAIRS, SftOptions(**settings), events=tell, cancel=cancel or CancelToken()
    )
    ctx.validation = load_dataset(HELD_OUT, accepts=("prompt_completion",))
    return SftTrainer().run(ctx), events


def measured(events: Any) -> list[tuple[int, float]]:
    return [
        (values["global_step"], values["values"]["eval_loss"])
        for values in events.named("metrics")
        if "eval_loss" in values["values"]
    ]


def loss_of(model: Any) -> float:
    """Mean loss over all targets of the held-out rows, one row at a time through the plain forward pass."""
    encoder = Encoder(driver.byte_tokenizer(), 1024)
    total = targets = 0.0
    for row in HELD_OUT:
        example = encoder.example(row, "prompt_completion", "completion")
        logits = model(torch.tensor([example.input_ids])).logits[0, :-1].detach()
        labels = torch.tensor(example.labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        targets += example.targets
    return total / targets


def test_the_loss_on_held_out_rows_is_measured_at_each_epoch(tmp_path: Path) -> None:
    artifact, events = train(tmp_path, epochs=2.0)
    found = measured(events)
    assert [step for step, _ in found] == [4, 8]
    from transformers import AutoModelForCausalLM

    assert found[-1][1] == pytest.approx(loss_of(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), abs=1e-5)
    values = next(v["values"] for v in events.named("metrics") if "eval_loss" in v["values"])
    assert values["eval_perplexity"] == pytest.approx(math.exp(values["eval_loss"]))
    assert 0 <= values["eval_mean_token_accuracy"] <= 1 and values["eval_tokens"] > 0
    assert artifact.metrics["eval_loss"] == found[-1][1] and artifact.metrics["eval_step_best"] == 8


def test_the_best_weights_are_handed_on_and_training_stops(tmp_path: Path) -> None:
    """Trained far too fast, the held-out loss rises soon: the weights of its lowest point are the result."""
    options = {"max_steps": 40, "validate_every": 2, "keep_best": True, "early_stopping": 3, "learning_rate": 3.0}
    artifact, events = train(tmp_path / "whole", **options)
    found = measured(events)
    losses = [loss for _, loss in found]
    best = losses.index(min(losses))
    assert len(found) == best + 1 + 3 and found[-1][0] < 40
    assert events.codes() == ["early-stop"]
    assert artifact.metrics["eval_loss_best"] == losses[best]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    assert loss_of(model) == pytest.approx(losses[best], abs=1e-4 * max(1.0, losses[best]))

    # Interrupted after the best step, and again after the stop: the same weights in the end.
    cancel = CancelToken()
    with pytest.raises(RunCancelled):
        train(
            tmp_path / "cut", cancel=cancel, on_eval=lambda step: step == found[-2][0] and cancel.cancel("x"), **options
        )
    for _ in range(2):
        again, _ = train(tmp_path / "cut", **options)
        assert again.metrics["steps"] == artifact.metrics["steps"]
        one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_cancel_at_the_end_of_an_epoch_loses_no_measurement(tmp_path: Path) -> None:
    """Cancelled with the last step of the first epoch, which was the best one, and gone on: the same end."""
    options = {"epochs": 3.0, "keep_best": True, "early_stopping": 1, "learning_rate": 3.0, "schedule": "constant"}
    whole, events = train(tmp_path / "whole", **options)
    cancel, seen = CancelToken(), []
    with pytest.raises(RunCancelled):
        train(
            tmp_path / "cut",
            cancel=cancel,
            on_loss=lambda step: step == 4 and cancel.cancel("x"),
            on_eval=seen.append,
            **options,
        )
    again, later = train(tmp_path / "cut", **options)
    assert seen == [4] and seen + [step for step, _ in measured(later)] == [step for step, _ in measured(events)]
    assert whole.metrics["eval_step_best"] == again.metrics["eval_step_best"]
    assert whole.metrics["steps"] == again.metrics["steps"]
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_warm_up_stable_decay(tmp_path: Path) -> None:
    _, events = train(tmp_path, max_steps=10, schedule="wsd", warmup=2.0, decay=0.4, learning_rate=1e-3)
    rates = [values["values"]["learning_rate"] for values in events.named("metrics") if "loss" in values["values"]]
    shares = [0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates == pytest.approx([1e-3 * share for share in shares])
