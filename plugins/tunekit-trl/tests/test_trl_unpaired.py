"""kto and bco as steps: where they start, what they learn, what they refuse, and that batches do not matter."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tunekit.data import load_dataset
from tunekit.errors import DataError, StepError
from tunekit.plugins import LoadedModel
from tunekit.testing.beside import beside
from tunekit_peft.options import LoraOptions
from tunekit_trl.unpaired import BcoTrainer, KtoTrainer
from tunekit_trl.unpaired_losses import KtoObjective, Pair, PairGroups, mismatched, pairwise_accuracy
from tunekit_trl.unpaired_options import BcoOptions, KtoOptions

driver = beside(__file__, "trl_driver")

METHODS = {"kto": (KtoTrainer, KtoOptions), "bco": (BcoTrainer, BcoOptions)}
FIRST_LOSS = {"kto": 0.5, "bco": math.log(2)}
ROWS = [
    {"prompt": row["prompt"], "completion": row["chosen"] if good else row["rejected"], "label": good}
    for at, row in enumerate(driver.PREFERENCES)
    for good in ((True, False) if at % 2 else (False, True))
]


def run(
    method: str, folder: Path, rows: Any = None, *, held_out: Any = None, model: Any = None, **options: Any
) -> tuple[Any, Any, Any]:
    """Artifact, events and context of one step on a tiny model."""
    trainer, cls = METHODS[method]
    events = driver.Events()
    lora = options.pop("lora", None)
    loaded = LoadedModel(model=model or driver.tiny_model(), tokenizer=driver.byte_tokenizer())
    settings = {"batch_size": 8, "epochs": 2.0, "learning_rate": 2e-3, "samples": 0, **options}
    settings |= {} if held_out is None else {"validation": 0.5}
    ctx = driver.context("align", folder, loaded, driver.PREFERENCES, cls(**settings), lora=lora, events=events)
    ctx.data = load_dataset(ROWS if rows is None else rows, accepts=("feedback",))
    if held_out is not None:
        ctx.validation = load_dataset(held_out, accepts=("feedback",))
    return trainer().run(ctx), events, ctx


def values(events: Any, key: str) -> list[float]:
    return [event["values"][key] for event in events.named("metrics") if key in event["values"]]


@pytest.mark.parametrize("method", METHODS)
def test_starts_at_the_reference_and_learns(method: str, tmp_path: Path) -> None:
    """T13. Before the first update all rewards are zero, with the dropout of model and adapter off; then held-out
    answers are told apart."""
    model = driver.tiny_model(dropout=0.1)
    lora = LoraOptions(r=4, dropout=0.2)
    options = {"epochs": 8.0, "learning_rate": 2e-2, "lora": lora, "beta": 0.5}
    artifact, events, _ = run(method, tmp_path, ROWS[:24], held_out=ROWS[24:], model=model, **options)
    assert values(events, "loss")[0] == pytest.approx(FIRST_LOSS[method], abs=1e-6)
    for name in ("chosen", "rejected", "margins"):
        assert values(events, f"rewards/{name}")[0] == pytest.approx(0, abs=1e-5)
    assert "dropout-off" in events.codes()
    metrics, details = artifact.metrics, artifact.details
    assert metrics["rewards/margins"] > 0.5 and metrics["loss_last_quarter"] < metrics["loss_first_quarter"]
    assert metrics["eval_rewards/pairwise_accuracy"] > 0.9 and metrics["eval_rewards/margins"] > 0
    assert details["feedback"] == {"good": 12, "bad": 12} and details["beta"] == 0.5
    assert details["reference"].endswith("adapter off") and details["merge_proof"]["base_diff"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_steps_do_not_depend_on_micro_batches(method: str, tmp_path: Path) -> None:
    """T1 and T14: the divergence of kto and the shift of bco are of the optimizer step. 30 rows: the last step of an
    epoch is a smaller one."""
    found = []
    for size, accumulation in ((8, 1), (1, 8), (3, 1)):
        _, events, _ = run(
            method,
            tmp_path / f"{size}",
            ROWS[:30],
            batch_size=size,
            gradient_accumulation=accumulation,
            learning_rate=5e-3,
        )
        point = values(events, "kl" if method == "kto" else "rewards/shift")
        found.append([*events.losses, *values(events, "grad_norm"), *point, *values(events, "rewards/margins")])
    assert len(found[0]) >= 8 * 3 and max(map(abs, found[0][16:24])) > 1e-2
    assert found[0] == pytest.approx(found[1], rel=2e-3, abs=2e-4)
    assert len(found[2]) > len(found[0])


@pytest.mark.parametrize("method", METHODS)
def test_another_model_as_reference_is_caught(method: str, tmp_path: Path) -> None:
    """T13: log-probabilities of another model, put where those of the input model are looked for."""
    run(method, tmp_path / "base", max_steps=1, learning_rate=1e-9)
    (tmp_path / "sabotage").mkdir()
    shutil.copytree(tmp_path / "base" / "reference", tmp_path / "sabotage" / "reference")
    with pytest.raises(StepError) as caught:
        run(method, tmp_path / "sabotage", max_steps=1, model=driver.tiny_model(seed=5))
    assert caught.value.code == "reference-mismatch"


def test_labels_that_teach_nothing_are_refused_or_told(tmp_path: Path) -> None:
    good = [row for row in ROWS if row["label"]]
    for method in METHODS:
        with pytest.raises(DataError) as caught:
            run(method, tmp_path / method, good)
        assert caught.value.code == "one-sided-feedback" and "sft" in caught.value.fix
    one = [{**row, "prompt": "Say it.", "completion": f"{row['completion']}{at}"} for at, row in enumerate(ROWS[:6])]
    with pytest.raises(DataError) as caught:
        run("kto", tmp_path / "one", one)
    assert caught.value.code == "one-prompt"
    _, events, _ = run("kto", tmp_path / "anchored", one, loss_type="apo_zero_unpaired", batch_size=1, max_steps=2)
    assert events.losses[0] == pytest.approx(0.5, abs=1e-6) and not values(events, "kl")
    torn = [*good, *[row for row in ROWS if not row["label"]][:4], {**good[0], "label": False}]
    _, events, _ = run("kto", tmp_path / "torn", torn, max_steps=1)
    assert {"unbalanced-feedback", "conflicting-feedback"} <= set(events.codes())
    told = next(event["message"] for event in events.named("notice") if event["code"] == "unbalanced-feedback")
    assert "16 answers are good and 5 bad" in told and "between 0.312 and 0.417" in told
    _, events, _ = run("kto", tmp_path / "weighted", torn, max_steps=1, desirable_weight=0.36)
    assert "unbalanced-feedback" not in events.codes()


def test_mismatched_pairs() -> None:
    """T14: a prompt is never put together with its own answer, or with another answer to itself."""
    rows = [{"prompt_ids": [prompt]} for prompt in (1, 2, 3, 3, 4)]
    assert mismatched([0, 1, 2], rows) == [(0, 2), (1, 0), (2, 1)]
    assert mismatched([1, 2, 3], rows) == [(1, 3), (2, 1), (3, 1)]
    assert mismatched([3], rows) == [(3, 1)] and mismatched([0], rows) == [(0, 4)]
    assert mismatched([2, 3], rows) == [(2, 1), (3, 1)]
    assert mismatched([0], rows[:1]) == []


def test_mismatched_pairs_are_made_one_at_a_time() -> None:
    """There are as many as rows times epochs: their tokens are not held all at once."""
    looked: list[int] = []

    class Rows(list[Any]):
        def __getitem__(self, number: Any) -> Any:
            looked.append(number)
            return super().__getitem__(number)

    objective = KtoObjective(0.1, "kto", 1.0, 1.0)
    objective.sets = {False: Rows({"prompt_ids": [row], "completion_ids": [10 + row]} for row in range(3))}
    groups = PairGroups(objective, [Pair(False, 0, 2), Pair(False, 1, 0), Pair(False, 2, 1)])
    assert len(groups) == 3 and looked == []
    second = groups[1]
    assert (second.prompt, second.completions) == ([1], ([10],)) and looked == [1, 0]
    assert [group.completions[0] for group in groups] == [[12], [10], [11]]


def test_pairwise_accuracy_counts_pairs() -> None:
    rewards, labels = [0.1, 0.5, 0.5, -1.0, 0.7, 0.1], [True, False, True, False, False, True]
    good = [reward for reward, label in zip(rewards, labels, strict=True) if label]
    bad = [reward for reward, label in zip(rewards, labels, strict=True) if not label]
    wins = sum((one > other) + 0.5 * (one == other) for one in good for other in bad)
    assert pairwise_accuracy(rewards, labels) == pytest.approx(wins / 9)
    assert pairwise_accuracy([1.0], [True]) is None


def test_options() -> None:
    assert KtoOptions().resolve(adapter=None).learning_rate == 1e-6
    assert BcoOptions().resolve(adapter="lora").learning_rate == 5e-6
    for cls, wrong in (
        (KtoOptions, {"batch_size": 1}),
        (KtoOptions, {"loss_type": "bco"}),
        (KtoOptions, {"undesirable_weight": 0.0}),
        (BcoOptions, {"desirable_weight": 2.0}),
        (BcoOptions, {"beta": 0.0}),
        (BcoOptions, {"keep_best": True}),
    ):
        with pytest.raises(ValidationError):
            cls.model_validate(wrong)
    KtoOptions(batch_size=1, gradient_accumulation=2)
    KtoOptions(batch_size=1, loss_type="apo_zero_unpaired")
