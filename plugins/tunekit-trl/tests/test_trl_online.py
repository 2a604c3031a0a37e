"""GRPO, RLOO and online DPO as steps: they learn, they continue, and the reference is the model they start from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tunekit
from tunekit.cancel import CancelToken
from tunekit.context import BoundReward
from tunekit.errors import DataError, RunCancelled, StepError
from tunekit.plugins import LoadedModel, hf
from tunekit.plugins.hf.checkpoints import seal
from tunekit.testing.beside import beside
from tunekit_peft.options import LoraOptions
from tunekit_trl.borrowed import borrowed
from tunekit_trl.online import GrpoTrainer, OnlineDpoTrainer, OnlineTrainer, RlooTrainer
from tunekit_trl.online_losses import GrpoObjective, RlooObjective
from tunekit_trl.online_options import GrpoOptions, OnlineDpoOptions, RlooOptions
from tunekit_trl.rewards.options import ExactMatchOptions
from tunekit_trl.rewards.rules import ExactMatch

driver = beside(__file__, "online_driver")

SHORT = {"max_new_tokens": 4, "max_length": 32, "samples": 0, "schedule": "constant", "learning_rate": 1e-3}


def _vowels(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """A reward that always differs: which tokens were drawn."""
    return [sum(ids) / 1000 for ids in columns["completion_ids"]]


VOWELS = BoundReward(name="tokens", reward=_vowels)
RIGHT = BoundReward(name="exact-match", reward=ExactMatch(ExactMatchOptions()))


@pytest.fixture(scope="module")
def guesser() -> LoadedModel:
    made: LoadedModel = driver.answering_model()
    return made


def _copy(loaded: LoadedModel) -> LoadedModel:
    import copy

    return LoadedModel(model=copy.deepcopy(loaded.model), tokenizer=loaded.tokenizer)


def _rewards(events: Any) -> list[float]:
    return [values["values"]["reward"] for values in events.named("metrics") if "reward" in values["values"]]


def test_grpo_learns_to_add(guesser: LoadedModel, tmp_path: Path) -> None:
    """Exact match from under 0.2 to over 0.8, through the pipeline and the reward's name."""
    result = (
        tunekit.Pipeline(model=(guesser.model, guesser.tokenizer))
        .align(
            method="grpo",
            prompts=driver.SUMS,
            reward="exact-match",
            max_steps=45,
            batch_size=25,
            num_generations=16,
            max_new_tokens=3,
            max_length=32,
            learning_rate=2e-3,
            schedule="constant",
            scale_rewards="none",
            samples=25,
        )
        .run(workdir=tmp_path)
    )
    artifact = result.step("align").artifact
    assert artifact is not None
    rewards = [line["reward"] for line in result.step("align").history if "reward" in line]
    assert rewards[0] < 0.2
    assert sum(rewards[-3:]) / 3 > 0.8
    assert artifact.details["win_rate"]["wins"] > artifact.details["win_rate"]["losses"]


@pytest.mark.parametrize(
    ("component", "options"),
    [
        (RlooTrainer, RlooOptions(num_generations=12, beta=0.01, max_steps=25, batch_size=25, **SHORT)),
        (OnlineDpoTrainer, OnlineDpoOptions(num_generations=8, max_steps=25, batch_size=25, **SHORT)),
    ],
    ids=["rloo", "online-dpo"],
)
def test_reward_rises(component: Any, options: Any, guesser: LoadedModel, tmp_path: Path) -> None:
    events = driver.Events()
    ctx = driver.online_context(tmp_path, _copy(guesser), driver.SUMS, options, [RIGHT], events=events)
    artifact = component().run(ctx)
    rewards = _rewards(events)
    assert rewards[0] < 0.3
    assert sum(rewards[-5:]) / 5 > rewards[0] + 0.2
    assert artifact.details["reference"] == "the step's input model"
    assert artifact.details["shared_prompts"] is True
    if component is OnlineDpoTrainer:
        assert events.losses[0] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4)], ids=["full", "lora"])
def test_a_continued_run_has_the_same_losses(lora: Any, tmp_path: Path) -> None:
    """T33: also where it was stopped between two updates from the same completions."""
    options = GrpoOptions(
        num_iterations=3, beta=0.05, num_generations=4, batch_size=2, gradient_accumulation=2, max_steps=7, **SHORT
    )
    rows = driver.SUMS[:6]

    def run(folder: Path, stop_at: int | None = None) -> Any:
        cancel = CancelToken()
        events = driver.Events()

        def watch(kind: str, **values: Any) -> None:
            events(kind, **values)
            if kind == "metrics" and values["global_step"] == stop_at:
                cancel.cancel("test")

        ctx = driver.online_context(
            folder, driver.tiny_pair(), rows, options, [VOWELS], lora=lora, events=watch, cancel=cancel
        )
        if stop_at is None:
            GrpoTrainer().run(ctx)
        else:
            with pytest.raises(RunCancelled):
                GrpoTrainer().run(ctx)
        return events

    whole = run(tmp_path / "whole").losses
    assert len(whole) == 7
    first = run(tmp_path / "parts", stop_at=4).losses
    second = run(tmp_path / "parts").losses
    assert first == whole[:4]
    assert second == pytest.approx(whole[4:], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("phase", ["writing", "validating"])
def test_a_cancel_is_seen_while_completions_are_written(phase: str, tmp_path: Path) -> None:
    """A checkpoint is left, and what was not measured yet is measured when the run goes on."""
    options = GrpoOptions(
        num_generations=4, batch_size=2, max_steps=5, validation=0.4, validate_every=2, checkpoint_every=50, **SHORT
    )

    def run(folder: Path, stop: bool = False) -> list[Any]:
        cancel, events = CancelToken(), driver.Events()

        def watch(kind: str, **values: Any) -> None:
            events(kind, **values)
            if stop and kind == "progress" and (values["done"], values["label"]) == (2, phase):
                cancel.cancel("test")

        ctx = driver.online_context(
            folder,
            driver.tiny_pair(),
            driver.SUMS[:4],
            options,
            [VOWELS],
            validation=driver.SUMS[4:6],
            events=watch,
            cancel=cancel,
        )
        if stop:
            with pytest.raises(RunCancelled) as caught:
                GrpoTrainer().run(ctx)
            assert caught.value.details["global_step"] == 2
            assert hf.good_checkpoint(folder / "checkpoints")[0] == Path(caught.value.details["checkpoint"])
        else:
            GrpoTrainer().run(ctx)
        seen = [values["values"] for values in events.named("metrics")]
        return [each.get("eval_reward", each.get("loss")) for each in seen]

    whole = run(tmp_path / "whole")
    assert len(whole) == 8
    parts = run(tmp_path / "parts", stop=True) + run(tmp_path / "parts")
    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_completions_of_another_process_are_not_taken_up(tmp_path: Path) -> None:
    """T33: between two updates from the same completions others would be another training."""
    options = GrpoOptions(num_iterations=3, num_generations=4, batch_size=2, max_steps=5, **SHORT)
    cancel = CancelToken()

    def watch(kind: str, **values: Any) -> None:
        if kind == "metrics" and values["global_step"] == 4:
            cancel.cancel("test")

    ctx = driver.online_context(
        tmp_path, driver.tiny_pair(), driver.SUMS[:4], options, [VOWELS], events=watch, cancel=cancel
    )
    with pytest.raises(RunCancelled) as stopped:
        GrpoTrainer().run(ctx)
    folder = Path(stopped.value.details["checkpoint"])
    path = folder / "completions-0.pt"
    kept = torch.load(path, weights_only=True)
    for change in ("other", "missing"):
        if change == "other":
            torch.save({**kept, "process": "process 0 of 2"}, path)
        else:
            path.unlink()
        seal(folder, 4)
        ctx = driver.online_context(tmp_path, driver.tiny_pair(), driver.SUMS[:4], options, [VOWELS])
        with pytest.raises(StepError) as caught:
            GrpoTrainer().run(ctx)
        assert caught.value.code == "completions-missing"


def test_a_reference_in_half_precision_is_the_policy(tmp_path: Path) -> None:
    """T13: both are computed in the arithmetic that is trained in."""
    loaded, events = driver.tiny_pair(), driver.Events()
    loaded.model.bfloat16()
    options = GrpoOptions(beta=0.1, num_generations=4, batch_size=4, max_steps=1, **SHORT)
    ctx = driver.online_context(tmp_path, loaded, driver.SUMS[:4], options, [VOWELS], events=events)
    GrpoTrainer().run(ctx)
    assert events.named("metrics")[0]["values"]["kl"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "objective", [GrpoObjective(GrpoOptions(beta=0.1)), RlooObjective(RlooOptions(beta=0.1))], ids=["grpo", "rloo"]
)
def test_the_only_update_has_a_ratio_of_one(objective: Any) -> None:
    """Whatever rounding another pass had: the loss is minus the mean advantage, beside the divergence."""
    values = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    row = {"advantages": [0.7, -0.3], "kept": [1.0, 1.0], "ref": values.detach(), "kl": None}
    logps = hf.CompletionLogps(values, (2, 1), torch.ones(3, dtype=torch.bool))
    totals = {"completions": 2.0, "tokens": 3.0}
    made = objective.loss(logps, [{**row, "old": values.detach() - 0.4}], totals)
    weights = [0.7, -0.3] if isinstance(objective, RlooObjective) else [0.7, 0.7, -0.3]
    assert made.loss.item() == pytest.approx(-sum(weights) / len(weights), abs=1e-7)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """T1: eight prompts at once and one prompt eight times are the same step."""
    losses = []
    for name, size in (("one", 8), ("many", 1)):
        options = GrpoOptions(
            batch_size=size,
            gradient_accumulation=8 // size,
            num_generations=4,
            max_steps=3,
            scale_rewards="batch",
            beta=0.1,
            **SHORT,
        )
        events = driver.Events()
        ctx = driver.online_context(
            tmp_path / name, driver.tiny_pair(), driver.SUMS[:8], options, [VOWELS], events=events
        )
        GrpoTrainer().run(ctx)
        values = [values["values"] for values in events.named("metrics")]
        losses.append([(each["loss"], each["grad_norm"], each["reward"], each["kl"]) for each in values])
    assert losses[0] == [pytest.approx(each, rel=1e-4, abs=1e-6) for each in losses[1]]


def test_before_the_first_update_nothing_has_moved(tmp_path: Path) -> None:
    """T13: with an adapter the reference is the model with the adapter off; the KL divergence begins at 0, and the loss
    of a group is 0, since its advantages cancel out."""
    events = driver.Events()
    options = GrpoOptions(beta=0.1, loss_type="grpo", num_generations=4, batch_size=4, max_steps=3, **SHORT)
    loaded = driver.tiny_pair()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    ctx = driver.online_context(
        tmp_path, loaded, driver.SUMS[:4], options, [VOWELS], lora=LoraOptions(r=4), events=events
    )
    artifact = GrpoTrainer().run(ctx)
    seen = [values["values"] for values in events.named("metrics")]
    assert seen[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert seen[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert seen[0]["grad_norm"] > 1e-4
    assert seen[-1]["kl"] > 0
    assert artifact.details["reference"].endswith("adapter off")
    assert artifact.adapter_path is not None
    kept = ctx.kept[0].model.state_dict()
    assert any(not torch.equal(before[name], kept[name]) for name in before)


def test_a_reward_that_fails_ends_the_step_before_anything_is_learned(tmp_path: Path) -> None:
    calls = []

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        calls.append(len(prompts))
        if len(calls) == 1:
            raise ConnectionError("the judge is asleep")
        return [0.0] * len(prompts)

    options = GrpoOptions(batch_size=4, num_generations=4, max_steps=1, **{**SHORT, "samples": 2})
    judge = BoundReward(name="judge", reward=reward)
    ctx = driver.online_context(tmp_path, driver.tiny_pair(), driver.SUMS[:4], options, [judge])
    with pytest.raises(StepError, match="the judge is asleep") as caught:
        GrpoTrainer().run(ctx)
    assert caught.value.code == "reward-failed" and calls == [2]


def test_another_model_as_reference_is_caught(tmp_path: Path) -> None:
    """T13, by sabotage."""
    loaded = driver.tiny_pair()
    options = GrpoOptions(beta=0.1, num_generations=4, batch_size=4, max_steps=2, **SHORT)
    ctx = driver.online_context(tmp_path, loaded, driver.SUMS[:4], options, [VOWELS])
    rows, _ = hf.prompt_rows(ctx, ctx.data, loaded.tokenizer, 28)
    with borrowed(loaded.model, loaded.tokenizer):
        trainer = OnlineTrainer(ctx, loaded.model, loaded.tokenizer, rows, GrpoObjective(ctx.options))
        with torch.no_grad():
            next(trainer._reference.parameters()).mul_(1.5)
        with pytest.raises(StepError) as caught:
            trainer.train()
    assert caught.value.code == "reference-mismatch"


def test_held_out_prompts_choose_the_best_weights(guesser: LoadedModel, tmp_path: Path) -> None:
    events = driver.Events()
    options = GrpoOptions(
        batch_size=20, num_generations=8, max_steps=6, validation=0.2, validate_every=2, keep_best=True, **SHORT
    )
    ctx = driver.online_context(
        tmp_path, _copy(guesser), driver.SUMS[5:], options, [RIGHT], validation=driver.SUMS[:5], events=events
    )
    GrpoTrainer().run(ctx)
    measured = [v["values"] for v in events.named("metrics") if "eval_reward" in v["values"]]
    assert len(measured) == 3
    assert all(each["eval_loss"] == -each["eval_reward"] for each in measured)
    assert all(each["eval_finished"] == 1.0 for each in measured)


def test_equal_rewards_are_said(tmp_path: Path) -> None:
    """T17."""
    events = driver.Events()
    same = BoundReward(name="same", reward=lambda prompts, completions, **columns: [1.0] * len(completions))
    options = GrpoOptions(num_generations=2, batch_size=2, max_steps=11, **SHORT)
    loaded = driver.tiny_pair()
    ctx = driver.online_context(tmp_path, loaded, driver.SUMS[:2], options, [same], events=events)
    GrpoTrainer().run(ctx)
    assert events.codes().count("no-difference") == 1


def test_a_prompt_is_never_cut(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1" * 40, "answer": "1"}]
    options = GrpoOptions(num_generations=2, batch_size=2, max_steps=1, **SHORT)
    ctx = driver.online_context(tmp_path, driver.tiny_pair(), rows, options, [RIGHT])
    with pytest.raises(DataError) as caught:
        GrpoTrainer().run(ctx)
    assert caught.value.code == "prompt-too-long" and caught.value.details["row"] == 2


def test_preview_shows_the_prompts() -> None:
    loaded = driver.tiny_pair()
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1" * 40, "answer": "1"}]
    line = tunekit.Pipeline(model=(loaded.model, loaded.tokenizer)).align(
        method="grpo", prompts=rows, reward="exact-match", max_new_tokens=4, max_length=32, on_bad_row="skip"
    )
    made = line.preview()
    assert ["".join(token.text for token in row.tokens) for row in made.rows] == ["1+1="]
    assert [(problem.row, problem.code, problem.skipped) for problem in made.problems] == [(2, "prompt-too-long", True)]
    assert made.totals["trained_tokens"] == 0


def test_a_missing_end_costs(tmp_path: Path) -> None:
    """Rewards less the penalty are what is compared; the log has both."""
    events = driver.Events()
    options = GrpoOptions(num_generations=8, batch_size=2, max_steps=1, missing_eos_penalty=2.0, **SHORT)
    zero = BoundReward(name="zero", reward=lambda prompts, completions, **columns: [0.0] * len(completions))
    ctx = driver.online_context(tmp_path, driver.tiny_pair(), driver.SUMS[:2], options, [zero], events=events)
    GrpoTrainer().run(ctx)
    values = events.named("metrics")[0]["values"]
    assert values["reward"] == pytest.approx(-2.0 * (1 - values["finished"]))
    assert values["rewards/zero"] == 0


def test_the_end_is_learned_where_it_is_the_padding_too(tmp_path: Path) -> None:
    """T6: the token that ends a completion belongs to it."""
    loaded = driver.tiny_pair(hidden=64)
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    ends = BoundReward(name="ends", reward=lambda prompts, completions, **columns: columns["finished"])
    settings = SHORT | {"learning_rate": 5e-3, "max_new_tokens": 12}
    options = GrpoOptions(num_generations=16, batch_size=4, max_steps=20, **settings)
    events = driver.Events()
    ctx = driver.online_context(tmp_path, loaded, driver.SUMS[:4], options, [ends], events=events)
    GrpoTrainer().run(ctx)
    shares = [values["values"]["finished"] for values in events.named("metrics")]
    assert shares[0] < 0.3 and shares[-1] > 0.9


@pytest.mark.parametrize(
    ("options", "wrong", "says"),
    [
        (GrpoOptions, {"epsilon": 0.1}, "num_iterations=1"),
        (GrpoOptions, {"delta": 2.0}, "num_iterations=1"),
        (GrpoOptions, {"loss_type": "cispo"}, "epsilon_high"),
        (GrpoOptions, {"sapo_temperature_pos": 2.0}, "no effect with loss_type='dapo'"),
        (GrpoOptions, {"use_bias_correction_kl": False}, "no effect with beta=0"),
        (GrpoOptions, {"importance_sampling_level": "sequence"}, "weigh completions by their length"),
        (GrpoOptions, {"loss_type": "luspo"}, "importance_sampling_level='sequence'"),
        (GrpoOptions, {"num_generations": 1}, "greater than or equal to 2"),
        (GrpoOptions, {"max_new_tokens": 64, "max_length": 64}, "no room for a prompt"),
        (RlooOptions, {"epsilon_high": 0.3}, "num_iterations=1"),
        (RlooOptions, {"reward_clip_range": (1.0, -1.0)}, "low below high"),
        (OnlineDpoOptions, {"epsilon": 0.1}, "Extra inputs"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options: Any, wrong: dict[str, Any], says: str) -> None:
    """T15, T17."""
    with pytest.raises(ValidationError, match=says):
        options(**wrong)
