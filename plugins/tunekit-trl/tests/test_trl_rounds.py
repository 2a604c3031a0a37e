"""iterative-dpo: rounds that learn, are judged, kept or rolled back, and go on after a kill."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tunekit
from tunekit.context import BoundReward
from tunekit.errors import CheckFailed, StepError
from tunekit.plugins import LoadedModel
from tunekit.testing import warm
from tunekit.testing.beside import beside
from tunekit_peft.options import LoraOptions
from tunekit_trl.round_options import IterativeDpoOptions
from tunekit_trl.rounds import IterativeDpoTrainer

driver = beside(__file__, "online_driver")

ROWS = [{"prompt": f"{a}-{b}:", "sign": 1} for a in range(4) for b in range(4)]
HELD_OUT = [{"prompt": f"{a}+{b}:", "sign": 1} for a in range(4) for b in range(4)]
BASE: dict[str, Any] = {
    "max_new_tokens": 6,
    "max_length": 32,
    "samples": 0,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "num_generations": 6,
    "batch_size": 4,
    "epochs": 2.0,
}


def eighths(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """The share of tokens whose number eight divides; a random model gets about an eighth."""
    counts = [sum(token % 8 == 0 for token in ids) for ids in columns["completion_ids"]]
    return [sign * count / BASE["max_new_tokens"] for sign, count in zip(columns["sign"], counts, strict=True)]


EIGHTHS = BoundReward(name="eighths", reward=eighths)


class Killed(BaseException):
    """The process ends here, as far as the step can tell."""


def run(
    folder: Path,
    *,
    rows: Any = ROWS,
    held_out: Any = HELD_OUT,
    lora: LoraOptions | None = None,
    events: Any = None,
    loaded: LoadedModel | None = None,
    **options: Any,
) -> tuple[Any, Any, LoadedModel]:
    loaded = loaded or driver.tiny_pair()
    events = driver.Events() if events is None else events
    ctx = driver.online_context(
        folder,
        loaded,
        rows,
        IterativeDpoOptions(**{**BASE, **options}),
        [EIGHTHS],
        validation=held_out,
        lora=lora,
        events=events,
    )
    return IterativeDpoTrainer().run(ctx), events, loaded


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def losses(events: Any) -> list[tuple[int, float]]:
    return [(e["global_step"], e["values"]["loss"]) for e in events.named("metrics") if "round" not in e["values"]]


@pytest.mark.parametrize("reference", ["round", "start"])
def test_the_reward_rises_over_three_rounds(reference: str, tmp_path: Path) -> None:
    artifact, events, _ = run(tmp_path, reference=reference)
    rounds = artifact.details["rounds"]
    assert [one["round"] for one in rounds] == [1, 2, 3]
    assert all(one["kept"] for one in rounds)
    assert artifact.metrics["rounds_kept"] == 3
    assert artifact.metrics["reward_after"] > artifact.metrics["reward_before"] + 0.2
    for one in rounds:
        assert one["pairs"] + one["ties"] == len(ROWS)
        assert one["win_rate"]["ci_low"] < one["win_rate"]["value"] <= one["win_rate"]["ci_high"]
        assert one["kl"]["per_sequence"] > 0
    # Against the round before the first loss of every round is that of equal models; against the start it is not.
    steps = [one["steps"] for one in rounds]
    made = dict(losses(events))
    firsts = [made[1 + sum(steps[:number])] for number in range(3)]
    assert firsts[0] == pytest.approx(math.log(2), abs=1e-5)
    assert (firsts[2] == pytest.approx(math.log(2), abs=1e-5)) is (reference == "round")
    assert [step for step, _ in losses(events)] == list(range(1, sum(steps) + 1))


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4)], ids=["full", "lora"])
def test_an_update_that_makes_it_worse_is_rolled_back_bit_for_bit(lora: Any, tmp_path: Path) -> None:
    """The update learns the opposite of what the held-out prompts are judged by."""
    loaded = driver.tiny_pair()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    held_out = [{**row, "sign": -1} for row in HELD_OUT]
    # Through an adapter a random model changes little: nothing short of winning everywhere is kept there.
    limit = 1.0 if lora else 0.5
    artifact, events, _ = run(
        tmp_path, held_out=held_out, lora=lora, loaded=loaded, rounds=2, epochs=5.0, keep_at=limit
    )
    assert events.codes().count("round-rolled-back") == 2
    assert [one["kept"] for one in artifact.details["rounds"]] == [False, False]
    assert all(one["steps"] == 20 and one["kl"]["per_sequence"] > 0 for one in artifact.details["rounds"])
    if lora is None:
        assert all(one["reward_after"] < one["reward_before"] for one in artifact.details["rounds"])
    assert artifact.metrics["reward_after"] == artifact.metrics["reward_before"]
    import transformers

    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name], value) for name, value in before.items())


def test_an_update_that_breaks_the_model_loses_its_round_only(tmp_path: Path) -> None:
    """Logits that are not finite after a huge learning rate."""
    artifact, events, _ = run(tmp_path, rounds=2, learning_rate=1e30, max_grad_norm=0.0)
    assert events.codes().count("round-lost") == 2
    assert all("not finite" in one["problem"] or "nan" in one["problem"] for one in artifact.details["rounds"])


def test_prompts_whose_completions_score_alike_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "sign": 0 if number % 4 else 1} for number, row in enumerate(ROWS)]
    artifact, _, _ = run(tmp_path / "some", rows=rows, rounds=1)
    assert 1 <= artifact.details["rounds"][0]["pairs"] <= 4
    assert artifact.details["rounds"][0]["pairs"] + artifact.details["rounds"][0]["ties"] == 16
    artifact, events, _ = run(tmp_path / "all", rows=[{**row, "sign": 0} for row in ROWS], rounds=1)
    assert artifact.details["rounds"][0]["pairs"] == 0
    assert events.codes() == ["round-lost"]


class Stops(driver.Events):  # type: ignore[misc]
    """Ends the process at an event."""

    def __init__(self, at: str) -> None:
        self.at = at

    def __call__(self, kind: str, **values: Any) -> None:
        super().__call__(kind, **values)
        step, numbers = values.get("global_step"), values.get("values", {})
        reached = {
            "in round 1": kind == "metrics" and step == 3,
            "between rounds": kind == "progress" and str(values.get("label", "")).startswith("round 2"),
            "in round 2": kind == "metrics" and step == 6,
            "after the steps of round 2": kind == "metrics" and numbers.get("round") == 2.0,
        }
        if reached[self.at]:
            raise Killed


RESUMED: dict[str, Any] = {
    "rounds": 2,
    "keep_at": 0.0,
    "checkpoint_every": 1,
    "batch_size": 8,
    "num_generations": 12,
    "lora": LoraOptions(r=4),
}
"""Four steps a round."""


KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("test_trl_rounds", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
class Kill(tests.driver.Events):
    def __call__(self, kind, **values):
        if kind == "metrics" and values["global_step"] == 6:
            os.kill(os.getpid(), signal.SIGKILL)
tests.run(Path(sys.argv[2]), events=Kill(), **tests.RESUMED)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("whole")
    artifact, events, _ = run(folder, **RESUMED)
    return folder, artifact, events


def test_a_killed_step_ends_as_one_that_was_not(uninterrupted: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """T33: between rounds, within one, and after the last step of one."""
    there, whole, heard = uninterrupted
    expected = dict(losses(heard))
    assert len(expected) == 8
    for name in ("in round 1", "between rounds", "in round 2", "after the steps of round 2"):
        folder = tmp_path / name
        stops = Stops(name)
        with pytest.raises(Killed):
            run(folder, events=stops, **RESUMED)
        again, then, _ = run(folder, **RESUMED)
        assert weights(folder) == weights(there), name
        assert again.details["rounds"] == whole.details["rounds"], name
        both = dict(losses(stops)) | dict(losses(then))
        assert both == expected, name
        assert len(losses(then)) < 8, name
        assert again.details["resumed_from_step"] >= 2
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = warm.run(["-c", KILLED, __file__, tmp_path / "sigkill"], env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again, _, _ = run(tmp_path / "sigkill", **RESUMED)
    assert weights(tmp_path / "sigkill") == weights(there)
    assert again.details["rounds"] == whole.details["rounds"]


def test_damaged_rounds_begin_anew(uninterrupted: tuple[Path, Any, Any], tmp_path: Path) -> None:
    _, whole, _ = uninterrupted
    with pytest.raises(Killed):
        run(tmp_path / "cut", events=Stops("in round 2"), **RESUMED)
    rounds = tmp_path / "cut" / "checkpoints" / "rounds"
    assert sorted(path.name for path in (rounds / "1").iterdir()) == [
        "pairs.json",
        "round.json",
        "weights.safetensors",
    ]
    stored = (rounds / "1" / "weights.safetensors").read_bytes()
    (rounds / "1" / "weights.safetensors").write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    again, events, _ = run(tmp_path / "cut", **RESUMED)
    assert "damaged-round" in events.codes()
    assert again.details["rounds"] == whole.details["rounds"]
    # A finished round keeps the weights of the last kept one alone.
    assert [(rounds / str(n) / "weights.safetensors").exists() for n in (1, 2)] == [False, True]


def test_through_the_pipeline_a_share_of_the_prompts_is_held_out(tmp_path: Path) -> None:
    loaded = driver.tiny_pair()
    result = (
        tunekit.Pipeline(model=(loaded.model, loaded.tokenizer))
        .align(method="iterative-dpo", prompts=ROWS, reward=eighths, rounds=2, **{**BASE, "samples": 4})
        .run(workdir=tmp_path)
    )
    artifact = result.step("align").artifact
    assert artifact is not None
    assert artifact.details["held_out_prompts"] == 2
    assert artifact.details["data"]["prompts"] == 14
    assert len(artifact.details["rounds"]) == 2
    assert artifact.details["samples"]["n"] == 2
    assert json.loads(json.dumps(artifact.details["rounds"])) == artifact.details["rounds"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation": None}, "held-out"),
        ({"keep_best": True}, "keep_at"),
        ({"validate_every": 2}, "keep_at"),
        ({"max_new_tokens": 64, "max_length": 64}, "no room"),
        ({"offset": 1.0, "loss_type": "hinge"}, "offset"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        IterativeDpoOptions(**options)


@pytest.mark.parametrize("method", ["grpo", "online-dpo"])
def test_rounds_of_other_methods_are_refused_with_the_name_of_the_one_that_has_them(
    method: str, tmp_path: Path
) -> None:
    loaded = driver.tiny_pair()
    pipeline = tunekit.Pipeline(model=(loaded.model, loaded.tokenizer)).align(
        method=method, prompts=ROWS, reward=eighths, rounds=3
    )
    with pytest.raises(CheckFailed, match="iterative-dpo"):
        pipeline.run(workdir=tmp_path)


def test_no_reward(tmp_path: Path) -> None:
    ctx = driver.online_context(tmp_path, driver.tiny_pair(), ROWS, IterativeDpoOptions(**BASE), [])
    with pytest.raises(StepError, match="no reward"):
        IterativeDpoTrainer().run(ctx)
