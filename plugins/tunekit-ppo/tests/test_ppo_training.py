"""A step of PPO: the first update, the reference, accumulation, resume, early ends, and what is said about it."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunekit.cancel import CancelToken
from tunekit.context import BoundReward
from tunekit.errors import ArtifactError, DataError, RunCancelled, StepError
from tunekit.plugins import LoadedModel, hf
from tunekit.testing import tiny_model, tiny_tokenizer, warm
from tunekit.testing.beside import beside
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions
from tunekit_ppo.actor_critic import ActorCritic
from tunekit_ppo.ppo import PpoComponent
from tunekit_ppo.trainer import PpoTrainer

driver = beside(__file__, "ppo_driver")

SMALL = {
    "rollout_size": 8,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "ppo_epochs": 2,
    "max_new_tokens": 6,
    "max_length": 64,
    "learning_rate": 3e-3,
    "max_steps": 12,
    "value_coef": 0.5,
}


def score(prompts: Any, completions: Any, *, completion_ids: Any, **columns: Any) -> list[float]:
    """What every completion has something of."""
    return [sum(token % 8 for token in ids) / len(ids) for ids in completion_ids]


def lora() -> LoraAdapter:
    return LoraAdapter(LoraOptions(r=4))


def run(folder: Path, reward: Any = score, **arguments: Any) -> tuple[Any, Any, Any]:
    """Artifact, events and context of one step; four optimizer steps in a rollout."""
    events = arguments.pop("events", None)
    events = driver.Events() if events is None else events
    ctx = driver.context(folder, reward, events=events, **{**SMALL, **arguments})
    return PpoComponent().run(ctx), events, ctx


def rows(events: Any) -> dict[int, dict[str, float]]:
    return {said["global_step"]: said["values"] for said in events.named("metrics")}


def trainer(folder: Path, adapter: Any = None, reference: Any = None, **options: Any) -> PpoTrainer:
    ctx = driver.context(folder, score, adapter=adapter, **{**SMALL, **options})
    start = ctx.model()
    policy = start.model if adapter is None else adapter.attach(start.model, seed=0)
    if adapter is None and reference is None:
        reference = copy.deepcopy(policy)
    return PpoTrainer(
        ctx, ActorCritic(policy), start.tokenizer, hf.prompt_rows(ctx, ctx.data, start.tokenizer, 32)[0], reference
    )


def logps_of(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Any:
    """Log-probabilities of a completion's tokens from the full logits, and the last hidden states before them."""
    out = model(input_ids=torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
    every = (out.logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return (
        every.gather(1, torch.tensor(completion)[:, None])[:, 0],
        out.hidden_states[-1][0, len(prompt) - 1 : -1],
        every,
    )


@pytest.mark.parametrize("through", ["full", "lora"])
def test_at_the_first_update_the_ratio_is_1_and_the_divergence_0(through: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, lora() if through == "lora" else None, temperature=0.7)
    rollout = made._write(0)
    policy = made.model.policy
    ratios = [
        (logps_of(policy, made.prompts[p]["prompt_ids"], ids, 0.7)[0] - rollout.take("logps", [n], "cpu")).exp()
        for n, (p, ids) in enumerate(zip(rollout.prompts, rollout.completions, strict=True))
    ]
    torch.testing.assert_close(torch.cat(ratios), torch.ones(sum(rollout.lengths)), atol=1e-4, rtol=0)
    assert rollout.facts["kl"] == pytest.approx(0, abs=1e-5)
    assert rollout.advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert rollout.advantages.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    _, events, _ = run(tmp_path / "run", adapter=lora() if through == "lora" else None, max_steps=4)
    first, second = rows(events)[1], rows(events)[2]
    assert first["ratio"] == pytest.approx(1, abs=1e-5) and first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["update_kl"] == pytest.approx(0, abs=1e-8) and first["clip_fraction"] == 0
    assert second["update_kl"] > 1e-7


@pytest.mark.parametrize("through", ["full", "separate", "lora"])
def test_weights_in_bfloat16_under_autocast_start_at_the_reference(
    through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: how a CUDA device trains. The copy that is the reference rounds as the policy does, and completions are
    drawn in the precision in which they are learned."""
    from tunekit.plugins.hf import arguments

    defaults = arguments.device_defaults
    monkeypatch.setattr(arguments, "device_defaults", lambda: {**defaults(), "bf16": True})
    start = driver.loaded()
    start.model.to(torch.bfloat16)
    more = {"full": {}, "separate": {"critic": "separate"}, "lora": {"adapter": lora()}}[through]
    sample, drawn = hf.sample, []

    def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
        layer = next(module for name, module in model.named_modules() if name.endswith("up_proj"))
        handle = layer.register_forward_hook(lambda module, inputs, output: drawn.append(output.dtype))
        try:
            return sample(model, *args, **kwargs)
        finally:
            handle.remove()

    monkeypatch.setattr(hf, "sample", watched)
    artifact, events, _ = run(tmp_path, start=start, max_steps=5, samples=0, **more)
    said = rows(events)
    assert said[1]["kl"] == pytest.approx(0, abs=1e-6) and abs(said[5]["kl"]) > 1e-6
    # Pieces of one minibatch are others than those of the rollout, so they round otherwise.
    assert said[1]["ratio"] == pytest.approx(1, abs=2e-2)
    assert artifact.model.dtype == ("bfloat16" if through == "lora" else "float32")
    assert set(drawn) == {torch.bfloat16}


def test_the_reference_of_an_adapter_is_the_model_with_it_off(tmp_path: Path) -> None:
    """T13."""
    made = trainer(tmp_path, lora())
    base = driver.loaded().model
    with torch.no_grad():
        for name, weight in made.model.policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    of, ids = [0, 1, 1], [[7, 9, 11], [80, 81], [60]]
    reference = made._reference_logps(of, ids)
    now = made._measure(made.model.policy, made._policy, of, ids).logps
    expected = torch.cat([logps_of(base, made.prompts[p]["prompt_ids"], i)[0] for p, i in zip(of, ids, strict=True)])
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=1e-5)
    assert (now - expected).abs().max() > 1e-3


def test_another_model_as_reference_is_caught(tmp_path: Path) -> None:
    made = trainer(tmp_path, reference=tiny_model(seed=5))
    with pytest.raises(StepError) as caught:
        made._write(0)
    assert caught.value.code == "reference-mismatch"


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_loss_and_gradient_equal_the_formula_in_float64(critic: str, tmp_path: Path) -> None:
    """Clipped surrogate, clipped value loss and entropy bonus of a policy that has moved, prompts shared or not."""
    made = trainer(tmp_path, entropy_coef=0.3, num_generations=2, rollout_size=8, batch_size=8, temperature=0.8)
    if critic == "separate":
        made.model.critic = tiny_model(seed=3)
        made._critic = hf.CompletionModel(made.model.critic, [hf.PromptGroup([7, 8], [[9, 10]])])
    torch.manual_seed(0)
    torch.nn.init.normal_(made.model.value_head.weight, std=0.5)
    made.rollout = made._write(0)
    with torch.no_grad():
        for body, seed in zip(made.model.bodies(), (1, 2), strict=False):
            for weight, away in zip(body.parameters(), tiny_model(seed=seed).parameters(), strict=True):
                weight.lerp_(away, 0.5)
    (numbers,) = made.rollout.minibatches(0, 8, 8, 0)
    made._tokens = made.rollout.tokens(numbers)
    made.model.zero_grad()
    loss = made.training_step(made.model, numbers)

    exact = copy.deepcopy(made.model).double().eval()
    exact.zero_grad()
    total: Any = 0.0
    for number in numbers:
        ids, prompt = made.rollout.completions[number], made.prompts[made.rollout.prompts[number]]["prompt_ids"]
        old, seen, advantage, returns = (
            made.rollout.take(name, [number], "cpu").double() for name in ("logps", "values", "advantages", "returns")
        )
        logps, hidden, every = logps_of(exact.policy, prompt, ids, 0.8)
        if critic == "separate":
            hidden = logps_of(exact.critic, prompt, ids)[1]
        ratio = (logps - old).exp()
        total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
        value = exact.value_head(hidden)[:, 0]
        near = seen + (value - seen).clamp(-0.2, 0.2)
        total = total + 0.5 * 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2).sum()
        total = total + 0.3 * (every.exp() * every).sum()
    expected = total / made._tokens
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert float(made._sums["clip_fraction"][0]) > 0 and float(made._sums["value_clip_fraction"][0]) > 0
    for (name, ours), theirs in zip(made.model.named_parameters(), exact.parameters(), strict=True):
        if theirs.grad is not None and theirs.grad.abs().max() > 0:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=2e-5, msg=name)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """T1: eight completions at once are one at a time, and so are activations that are computed again."""
    runs = [
        run(tmp_path / str(size), batch_size=size, gradient_accumulation=8 // size, rollout_size=16, **more)[1]
        for size, more in ((8, {}), (1, {"gradient_checkpointing": True}))
    ]
    for name in ("loss", "grad_norm", "policy_loss", "value_loss", "reward"):
        assert runs[0].values(name) == pytest.approx(runs[1].values(name), rel=2e-3, abs=2e-5), name


KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("test_ppo_training", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
class Kill(tests.driver.Events):
    def __call__(self, kind, **values):
        if kind == "metrics" and values["global_step"] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
tests.run(Path(sys.argv[2]), events=Kill(), **tests.RESUMED)
"""
RESUMED: dict[str, Any] = {"checkpoint_every": 3, "kl_target": 3.0, "scale_scores": True, "num_generations": 2}


def test_killed_and_cancelled_runs_go_on_along_the_same_curve(tmp_path: Path) -> None:
    """T33: the rollout that is under way, the coefficient, the running scale and the values are in the checkpoint."""
    artifact, whole, _ = run(tmp_path / "whole", **RESUMED)
    expected = rows(whole)
    weights = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()

    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = warm.run(["-c", KILLED, __file__, tmp_path / "killed"], env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again, rest, _ = run(tmp_path / "killed", **RESUMED)
    assert sorted(rows(rest)) == list(range(7, 13)) and again.details["resumed_from_step"] == 6

    cancel = CancelToken()

    class Stop(driver.Events):  # type: ignore[misc]
        def __call__(self, kind: str, **values: Any) -> None:
            super().__call__(kind, **values)
            # Once while a minibatch is learned, and once while a rollout is written.
            if (kind == "metrics" and values["global_step"] == 5) or (
                kind == "progress" and values.get("label") == "writing" and values["done"] == 8
            ):
                cancel.cancel("enough")

    first, second = Stop(), Stop()
    for events, step in ((first, 5), (second, 8)):
        cancel = CancelToken()
        with pytest.raises(RunCancelled) as caught:
            run(tmp_path / "cancelled", cancel=cancel, events=events, **RESUMED)
        assert caught.value.details["global_step"] == step
    _, last, _ = run(tmp_path / "cancelled", **RESUMED)
    stopped = {**rows(first), **rows(second), **rows(last)}
    for curve in (rows(rest), stopped):
        for step, values in curve.items():
            for name, value in values.items():
                assert value == pytest.approx(expected[step][name], rel=1e-6, abs=1e-9), (step, name)
    assert sorted(stopped) == list(range(1, 13))
    for name in ("killed", "cancelled"):
        assert (tmp_path / name / "model" / "model.safetensors").read_bytes() == weights
    assert again.metrics["reward_first"] == artifact.metrics["reward_first"]


def test_passes_end_when_the_policy_has_moved_too_far(tmp_path: Path) -> None:
    """The update that would be made beyond ``update_kl`` is not made, and no more of the rollout is learned."""
    artifact, events, _ = run(tmp_path, update_kl=1e-9, learning_rate=1e-3)
    said = rows(events)
    # In each rollout the first update is made; the second sees a policy that has moved.
    assert sorted(said) == [1, 2, 5, 6, 9, 10]
    assert artifact.details["skipped_updates"] == 9
    assert all(said[step]["update_kl"] > 1e-9 for step in (2, 6, 10))
    _, same, _ = run(tmp_path / "none", update_kl=1e-9, learning_rate=1e-3, max_steps=1)
    assert rows(same)[1]["loss"] == pytest.approx(said[1]["loss"], rel=1e-6)


def test_training_ends_beyond_the_bound_with_the_model_before(tmp_path: Path) -> None:
    options = {"learning_rate": 3e-3, "adapter": lora(), "max_steps": 80}
    artifact, events, ctx = run(tmp_path, stop_kl=0.05, **options)
    assert "early-stop" in events.codes() and "stop_kl" in artifact.details["ended_early"]
    steps = max(rows(events))
    assert steps < 80 and artifact.metrics["kl"] > 0.05
    handed = ctx.kept[0].model
    start = driver.loaded().model
    ids = torch.tensor([[70, 71, 72, 73]])
    policy, reference = (m(input_ids=ids).logits.log_softmax(-1) for m in (handed, start))
    assert (policy.exp() * (policy - reference)).sum(-1).mean().item() * 6 < 0.5


def test_the_last_rollout_is_measured_and_taken_back_beyond_the_bound(tmp_path: Path) -> None:
    """Two rollouts: the second is the last, so that no later one sees what it made of the model."""
    options = {"learning_rate": 2e-2, "max_steps": 8, "samples": 0}
    artifact, events, ctx = run(tmp_path / "free", stop_kl=1e9, **options)
    after_first, after_second = artifact.metrics["kl"], artifact.metrics["kl_final"]
    assert after_second > 1.2 * after_first > 0
    assert artifact.details["undone"] == "" and "kl-bound" not in events.codes()
    bound = (after_first + after_second) / 2
    artifact, events, bounded = run(tmp_path / "bound", stop_kl=bound, **options)
    assert "kl-bound" in events.codes() and artifact.metrics["kl_final"] == pytest.approx(after_first)
    writer = load_file(tmp_path / "bound" / "within.safetensors")
    for name, weight in bounded.kept[0].model.named_parameters():
        assert torch.equal(weight, writer[f"policy.{name}"]), name
    free = dict(ctx.kept[0].model.named_parameters())
    assert any(not torch.equal(free[name], weight) for name, weight in bounded.kept[0].model.named_parameters())

    cancel = CancelToken()

    class Stop(driver.Events):  # type: ignore[misc]
        def __call__(self, kind: str, **values: Any) -> None:
            super().__call__(kind, **values)
            if kind == "progress" and values.get("label") == "writing" and values["done"] == 8:
                cancel.cancel("while it is measured")

    with pytest.raises(RunCancelled) as stopped:
        run(tmp_path / "cancelled", stop_kl=bound, cancel=cancel, events=Stop(), **options)
    assert stopped.value.details["global_step"] == 8
    again, _, _ = run(tmp_path / "cancelled", stop_kl=bound, **options)
    assert again.metrics["kl_final"] == artifact.metrics["kl_final"] and again.details["undone"]
    with pytest.raises(StepError) as caught:
        run(tmp_path / "one", stop_kl=0.05, **{**options, "max_steps": 4, "learning_rate": 6e-2})
    assert caught.value.code == "kl-bound"


def test_scores_of_unfinished_completions(tmp_path: Path) -> None:
    made = trainer(tmp_path, eos_penalty=0.5)
    assert made._worth([1.0, 2.0], [True, False]) == [1.0, 1.5]
    made = trainer(tmp_path, unfinished_score=-1.0, clip_scores=1.5)
    assert made._worth([5.0, 2.0, -9.0], [True, False, True]) == [1.5, -1.0, -1.5]


def test_rewards_are_given_what_the_rows_say(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, *, answer: Any, completion_ids: Any, finished: Any, **_: Any) -> Any:
        seen.update(prompts=prompts, completions=completions, answer=answer, ids=completion_ids, finished=finished)
        return [float(a == "yes") for a in answer]

    rows_ = [
        {"prompt": [{"role": "user", "content": f"Question {n}?"}], "answer": "yes" if n % 2 else "no"}
        for n in range(8)
    ]
    rewards = [
        BoundReward(name="right", reward=reward, weight=2.0),
        BoundReward(name="one", reward=lambda prompts, completions, **_: [1.0] * len(prompts), weight=0.5),
    ]
    start = LoadedModel(model=tiny_model(), tokenizer=tiny_tokenizer())
    artifact, events, _ = run(tmp_path, rewards, rows=rows_, start=start, max_steps=1)
    assert rows(events)[1]["rewards/right"] == 0.5 and rows(events)[1]["rewards/one"] == 1.0
    assert rows(events)[1]["reward"] == pytest.approx(1.5)
    assert artifact.details["rewards"] == {"right": 2.0, "one": 0.5}
    for prompt, completion, answer in zip(seen["prompts"], seen["completions"], seen["answer"], strict=True):
        assert (int(prompt[0]["content"][9]) % 2 == 1) == (answer == "yes")
        assert [message["role"] for message in completion] == ["assistant"]
    assert len(seen["ids"]) == len(seen["finished"]) == 8


def test_a_separate_critic_starts_from_the_reward_model(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    config = copy.deepcopy(driver.loaded().model.config)
    config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(4)
        judge = LlamaForSequenceClassification(config).eval()
    ctx = driver.context(
        tmp_path, score, adapter=lora(), critic="separate", critic_init="step:reward", **{**SMALL, "max_steps": 2}
    )
    ctx._load_other = {"step:reward": LoadedModel(model=judge, tokenizer=None)}.__getitem__
    seen: list[torch.Tensor] = []

    def spy(kind: str, **values: Any) -> None:
        if kind == "metrics":
            seen.append(torch.tensor(values["values"].get("value", 0.0)))

    ctx._emit = spy
    artifact = PpoComponent().run(ctx)
    assert seen[0].abs() > 1e-4  # not the zero of a fresh head
    assert artifact.adapter_path == "adapter" and artifact.details["merge_proof"]["tensors"] > 0
    ctx.options = ctx.options.model_copy(update={"critic_init": "step:other"})
    other = tiny_model(hidden=16)
    ctx._load_other = {"step:other": LoadedModel(model=other, tokenizer=None)}.__getitem__
    with pytest.raises(ArtifactError) as caught:
        PpoComponent().run(ctx)
    assert caught.value.code == "critic-init"


def test_prompts_that_leave_no_room_are_errors(tmp_path: Path) -> None:
    bad = [*driver.PROMPTS, {"prompt": "x" * 80}]
    with pytest.raises(DataError) as caught:
        run(tmp_path / "a", rows=bad, max_steps=1)
    assert caught.value.code == "prompt-too-long" and caught.value.details["row"] == 9
    artifact, events, _ = run(tmp_path / "b", rows=bad, max_steps=1, on_bad_row="skip")
    assert artifact.details["data"]["prompts"] == 8 and "rows-skipped" in events.codes()
    ctx = driver.context(tmp_path / "c", [], **SMALL)
    with pytest.raises(StepError) as missing:
        PpoComponent().run(ctx)
    assert missing.value.code == "no-reward"


def test_dropout_is_off_and_told_and_steps_follow_the_epochs(tmp_path: Path) -> None:
    start = driver.loaded(dropout=0.1)
    artifact, events, ctx = run(
        tmp_path, start=start, max_steps=None, epochs=2.0, kl_target=1e-3, kl_horizon=40, value_learning_rate=0.1
    )
    assert rows(events)[1]["ratio"] == pytest.approx(1, abs=1e-5)
    assert "0.1" in events.named("notice")[0]["message"]
    assert {layer.self_attn.attention_dropout for layer in ctx.kept[0].model.model.layers} == {0.1}
    # Eight prompts, eight completions in a rollout, four optimizer steps each.
    assert artifact.details["rollouts"] == 2 and max(rows(events)) == 8
    assert [round(values["epoch"], 3) for values in rows(events).values()] == [1] * 4 + [2] * 4
    # The first divergence is 0, as far below the target as the controller looks; so the coefficient falls.
    assert rows(events)[5]["kl_coef"] == pytest.approx(0.05 * (1 - 0.2 * 8 / 40))
