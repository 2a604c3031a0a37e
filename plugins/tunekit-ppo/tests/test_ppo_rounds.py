"""PPO in rounds: judged, kept or rolled back with all that belongs to a round, and gone on with after a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tunekit
from tunekit.data import load_dataset
from tunekit.errors import DataError, OptionsError
from tunekit.plugins import hf
from tunekit.testing import tiny_pair, warm
from tunekit.testing.beside import beside
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions
from tunekit_ppo.options import PpoOptions
from tunekit_ppo.ppo import PpoComponent
from tunekit_ppo.schedule import shares_of

driver = beside(__file__, "ppo_driver")

HELD_OUT = [{"prompt": f"{a} and {b}"} for a in "abcd" for b in "wxyz"]
BASE: dict[str, Any] = {
    "rollout_size": 8,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "ppo_epochs": 1,
    "max_new_tokens": 6,
    "max_length": 64,
    "learning_rate": 1e-2,
    "max_steps": 8,
    "kl_target": 3.0,
    "kl_horizon": 40,
    "scale_scores": True,
    "samples": 0,
}
"""Four rollouts of two optimizer steps."""


def eighths(prompts: Any, completions: Any, *, completion_ids: Any, **columns: Any) -> list[float]:
    """The share of tokens whose number eight divides."""
    return [sum(token % 8 == 0 for token in ids) / len(ids) for ids in completion_ids]


def turned(prompts: Any, completions: Any, *, completion_ids: Any, **columns: Any) -> list[float]:
    """What is learned from is the opposite of what held-out prompts are judged by; these have an ``and``."""
    found = eighths(prompts, completions, completion_ids=completion_ids)
    return [-value if " and " in prompt else value for prompt, value in zip(prompts, found, strict=True)]


TURNED = [{"prompt": text} for text in ("ab", "a longer prompt", "cd?", "e", "what?", "go on", "more", "then")]


def lora() -> LoraAdapter:
    return LoraAdapter(LoraOptions(r=4))


def run(folder: Path, reward: Any = eighths, held_out: Any = HELD_OUT, **arguments: Any) -> tuple[Any, Any, Any]:
    """Artifact, events and context of one step."""
    events = arguments.pop("events", None)
    events = driver.Events() if events is None else events
    ctx = driver.context(folder, reward, events=events, **{**BASE, **arguments})
    if held_out is not None:
        ctx.validation = load_dataset(held_out, accepts=("prompt",))
    return PpoComponent().run(ctx), events, ctx


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def rows(events: Any) -> dict[int, dict[str, float]]:
    """What each optimizer step logged."""
    return {
        said["global_step"]: said["values"] for said in events.named("metrics") if "round/kept" not in said["values"]
    }


@pytest.mark.parametrize("through", ["full", "lora"])
def test_one_round_is_the_run_without_rounds(through: str, tmp_path: Path) -> None:
    adapter = lora() if through == "lora" else None
    plain, said, _ = run(tmp_path / "plain", adapter=adapter)
    one, heard, _ = run(tmp_path / "one", rounds=1, keep_at=0.0, adapter=adapter)
    assert rows(heard) == rows(said) and len(rows(said)) == 8
    assert weights(tmp_path / "one") == weights(tmp_path / "plain")
    for name in ("reward", "reward_first", "reward_best", "kl_max", "loss_mean", "steps"):
        assert one.metrics[name] == plain.metrics[name], name
    for name in ("rollouts", "completions", "data", "kl_coef"):
        assert one.details[name] == plain.details[name], name
    (record,) = one.details["rounds"]
    assert record["kept"] and record["steps"] == 8 and record["kl"]["per_sequence"] > 0
    assert one.details["held_out_prompts"] == 16
    assert json.loads(json.dumps(one.details["rounds"])) == one.details["rounds"]


def test_rounds_share_the_rollouts_and_the_reward_rises(tmp_path: Path) -> None:
    """Adam begins anew in each round; what a rollout is written from and held to does not."""
    artifact, events, _ = run(tmp_path, rounds=3, max_steps=39, learning_rate=2e-2, schedule="constant")
    records = artifact.details["rounds"]
    assert [one["steps"] for one in records] == [12, 14, 13] and sorted(rows(events)) == list(range(1, 40))
    assert [one["rollouts"] for one in records] == [6, 7, 7]
    assert all(one["kept"] for one in records)
    assert artifact.metrics["reward_after"] > artifact.metrics["reward_before"] + 0.2
    # The reference is the model of the start in all rounds, and the coefficient goes on.
    assert rows(events)[1]["kl"] == 0 and rows(events)[13]["kl"] > 0.1
    assert rows(events)[13]["kl_coef"] == records[0]["kl_coef"] != BASE.get("kl_coef", 0.05)
    assert rows(events)[13]["ratio"] == pytest.approx(1, abs=1e-5)
    assert rows(events)[27]["value"] != 0


@pytest.mark.parametrize("through", ["full", "lora"])
def test_a_round_that_makes_it_worse_leaves_nothing_behind(
    through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy, value head, coefficient and running scale are as before it, byte for byte."""
    seen: list[tuple[dict[str, Any], Any]] = []
    original = hf.Rounds.run

    def watched(self: Any) -> Any:
        def look() -> None:
            trained = {name: value.clone() for name, value in hf.TrainedWeights(self.trained).values.items()}
            seen.append((trained, self.state.state_dict()))

        inner = self.update

        def update(part: Any) -> Any:
            look()
            made = inner(part)
            look()
            return made

        self.update = update
        made = original(self)
        look()
        return made

    monkeypatch.setattr(hf.Rounds, "run", watched)
    start = driver.loaded()
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    # Through an adapter a random model changes little: nothing short of winning everywhere is kept there.
    adapter, limit = (lora(), 1.0) if through == "lora" else (None, 0.5)
    artifact, events, _ = run(
        tmp_path,
        turned,
        rows=TURNED,
        start=start,
        adapter=adapter,
        rounds=2,
        keep_at=limit,
        max_steps=64,
        learning_rate=2e-2,
        schedule="constant",
        kl_coef=1e-3,
    )
    records = artifact.details["rounds"]
    assert [one["kept"] for one in records] == [False, False]
    assert events.codes().count("round-rolled-back") == 2
    assert all(one["kl"]["per_sequence"] > 0 for one in records)
    first, learned, second, _, last = seen
    assert not torch.equal(learned[0]["value_head.weight"], first[0]["value_head.weight"])
    assert learned[1]["kl_coef"] != first[1]["kl_coef"] and learned[1]["scale"] != first[1]["scale"]
    for other in (second, last):
        assert other[1] == first[1]
        assert all(torch.equal(other[0][name], value) for name, value in first[0].items())
    assert artifact.details["kl_coef"] == 1e-3
    # Another round asks other prompts with other random numbers.
    assert rows(events)[33]["kl"] == 0 and rows(events)[33]["entropy"] != rows(events)[1]["entropy"]
    import transformers

    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(stored[name], value) for name, value in before.items())


RESUMED: dict[str, Any] = {"rounds": 2, "keep_at": 0.0, "checkpoint_every": 1}

KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("test_ppo_rounds", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
class Kill(tests.driver.Events):
    def __call__(self, kind, **values):
        if kind == "metrics" and values["global_step"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)
tests.run(Path(sys.argv[2]), events=Kill(), adapter=tests.lora(), **tests.RESUMED)
"""


class Killed(BaseException):
    """The process ends here, as far as the step can tell."""


def test_a_killed_step_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """T33: in round 2, and between the rounds, where the coefficient and the scale come from the round before."""
    whole, heard, _ = run(tmp_path / "whole", adapter=lora(), **RESUMED)
    expected = rows(heard)
    assert sorted(expected) == list(range(1, 9))

    class Between(driver.Events):  # type: ignore[misc]
        def __call__(self, kind: str, **values: Any) -> None:
            super().__call__(kind, **values)
            if kind == "progress" and str(values.get("label")).startswith("round 2"):
                raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "between", adapter=lora(), events=Between(), **RESUMED)
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = warm.run(["-c", KILLED, __file__, tmp_path / "killed"], env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for name, first in (("between", 5), ("killed", 7)):
        again, then, _ = run(tmp_path / name, adapter=lora(), **RESUMED)
        assert rows(then) == {step: expected[step] for step in range(first, 9)}, name
        assert weights(tmp_path / name) == weights(tmp_path / "whole"), name
        assert again.details["rounds"] == whole.details["rounds"], name
        for what in ("reward_first", "reward_best", "kl_max", "reward", "reward_after"):
            assert again.metrics[what] == whole.metrics[what], (name, what)


def test_a_round_beyond_the_bound_or_with_broken_numbers_is_lost(tmp_path: Path) -> None:
    artifact, events, _ = run(tmp_path / "bound", rounds=2, stop_kl=0.05, learning_rate=0.1)
    assert events.codes().count("round-lost") == 2
    assert all("stop_kl" in one["problem"] and not one["kept"] for one in artifact.details["rounds"])
    assert sorted(rows(events)) == list(range(1, sum(one["steps"] for one in artifact.details["rounds"]) + 1))
    broken, said, _ = run(tmp_path / "broken", rounds=2, learning_rate=1e30, max_grad_norm=0.0)
    assert said.codes().count("round-lost") == 2 and broken.metrics["rounds_kept"] == 0


def test_through_the_pipeline_a_share_of_the_prompts_is_held_out(tmp_path: Path) -> None:
    prompts = [f"Say {number}." for number in range(20)]
    result = (
        tunekit.Pipeline(model=tiny_pair())
        .align(method="ppo", prompts=prompts, reward=eighths, rounds=2, **{**BASE, "samples": 4})
        .run(workdir=tmp_path)
    )
    artifact = result.step("align").artifact
    assert artifact is not None
    assert artifact.details["held_out_prompts"] == 2 and artifact.details["data"]["prompts"] == 18
    assert [one["round"] for one in artifact.details["rounds"]] == [1, 2]
    assert artifact.details["samples"]["n"] == 2


def test_shares_and_options(tmp_path: Path) -> None:
    """Whole rollouts, as evenly as they go; the last may be cut by ``max_steps``."""
    options = PpoOptions(**{**BASE, "max_steps": 9}, rounds=3)
    assert [tuple(share) for share in shares_of(options, 8)] == [(0, 2), (1, 4), (3, 3)]
    assert options.validation == 0.1 and PpoOptions().validation is None
    with pytest.raises(OptionsError) as caught:
        shares_of(PpoOptions(**{**BASE, "max_steps": 4}, rounds=3), 8)
    assert caught.value.code == "empty-round" and "max_steps to 6" in str(caught.value)
    for bad, said in (
        ({"keep_at": 0.6}, "without rounds"),
        ({"eval_prompts": 3}, "without rounds"),
        ({"rounds": 2, "validation": None}, "held-out"),
        ({"validation": 4, "keep_best": True}, "keep_at decides"),
        ({"early_stopping": 2}, "keep_at decides"),
    ):
        with pytest.raises(ValidationError, match=said):
            PpoOptions(**bad)
    with pytest.raises(DataError) as missing:
        run(tmp_path, held_out=None, rounds=2)
    assert missing.value.code == "no-held-out-prompts"
