"""The whole line: a model is tuned, a reward model is trained from it, and the policy learns from its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tunekit import Pipeline
from tunekit.testing.beside import beside

driver = beside(__file__, "online_driver")

ANSWERS = [{"prompt": row["prompt"], "completion": row["answer"]} for row in driver.SUMS]
PAIRS = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "no"} for row in driver.SUMS[:12]]


def test_grpo_learns_from_the_reward_step_before_it(tmp_path: Path) -> None:
    """T13, T16: the reward binds itself, the policy goes on from the tuned model and not from the reward model, its
    reference is that one with the adapter off, and the result of the line is the policy."""
    loaded = driver.tiny_pair()
    short = {"max_steps": 3, "batch_size": 4, "max_length": 32}
    result = (
        Pipeline(model=(loaded.model, loaded.tokenizer))
        .lora(r=4)
        .sft(ANSWERS, **short)
        .reward(PAIRS, learning_rate=1e-2, **(short | {"max_steps": 6}))
        .align(method="grpo", prompts=driver.SUMS, num_generations=4, max_new_tokens=4, beta=0.1, samples=2, **short)
        .run(workdir=tmp_path, seed=0)
    )
    tuned, judge, policy = (result.step(name) for name in ("sft", "reward", "align"))
    assert policy.artifact is not None and tuned.model is not None and judge.model is not None
    details = policy.artifact.details
    assert [(one["name"], one["weight"]) for one in details["rewards"]] == [("reward", 1.0)]
    assert details["reference"] == "the step's input model, adapter off"
    steps = [row for row in policy.history if "rewards/reward" in row]
    assert len(steps) == 3 and steps[0]["kl"] < 1e-6
    assert all(row["reward"] == row["rewards/reward"] for row in steps)
    assert len({row["reward"] for row in steps}) > 1
    assert result.model is policy.model and result.model is not None
    made, start, judging = (_weights(one.path) for one in (result.model, tuned.model, judge.model))
    assert any("score" in name for name in judging) and made.keys() == start.keys()
    first = driver.tiny_pair().model.state_dict()
    near = sum(float((made[name] - start[name]).norm()) for name in made)
    far = sum(float((made[name] - first[name]).norm()) for name in made)
    assert 0 < near < far / 10


def test_margins_that_the_objective_does_not_use_are_told(tmp_path: Path) -> None:
    loaded = driver.tiny_pair()
    line = Pipeline(model=(loaded.model, loaded.tokenizer)).reward(
        [{**row, "margin": 1.0} for row in PAIRS], objective="plackett-luce", max_steps=1, max_length=32
    )
    seen: list[Any] = []
    line.run(workdir=tmp_path, seed=0, on_event=seen.append)
    told = [event.message for event in seen if getattr(event, "code", "") == "margins-unused"]
    assert len(told) == 1 and told[0].startswith("12 pairs have a margin, which objective='plackett-luce' does not use")


def _weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")
