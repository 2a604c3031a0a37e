"""Samples before and after: win rate, divergence from the start, and what the artifact says of them."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing._internal.distributed.fake_pg import FakeStore

from tunekit.context import BoundReward
from tunekit.data import load_dataset
from tunekit.errors import DataError, RunCancelled, StepError
from tunekit.plugins import SampleOptions, hf
from tunekit.testing import tiny_model, tiny_tokenizer
from tunekit.testing.contexts import BuiltContext, step_context

ROWS = [{"prompt": f"Say {word} {number}.", "completion": word} for word in ("red", "blue") for number in range(8)]


class Peft:
    """An adapter that is on the model already."""

    def detached(self, model: Any) -> Any:
        return model.disable_adapter()


def count_e(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    assert all(len(values) == len(prompts) for values in columns.values())
    return [float(made.count("e")) for made in completions]


def context(folder: Path, *, adapter: Any = None, rewards: Any = (), **options: Any) -> BuiltContext:
    return step_context(
        folder,
        SampleOptions(**options),
        kind="align",
        adapter=adapter,
        data=load_dataset(ROWS, accepts=("prompt_completion",)),
        rewards=[BoundReward(name="e", reward=reward) for reward in rewards],
    )


def nudged(model: Any, size: float = 0.05, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(None)


def test_divergence_is_the_sum_over_the_vocabulary() -> None:
    policy, start = tiny_model(seed=3).double(), nudged(tiny_model(seed=3)).double()
    prompt, completion = [5, 6, 7], [8, 9, 10, 11]
    expected = 0.0
    for at in range(len(completion)):
        ids = torch.tensor([prompt + completion[:at]])
        with torch.no_grad():
            p, q = (model(ids).logits[0, -1].softmax(-1) for model in (policy, start))
        expected += sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert expected > 1e-3
    made = hf.kl_between(policy, start, [prompt, prompt], [completion, completion[:2]])
    assert (made["sequences"], made["tokens"]) == (2, 6)
    (alone,) = [hf.kl_between(policy, start, [prompt], [completion])]
    assert alone["per_sequence"] == pytest.approx(expected, rel=1e-5)
    assert alone["per_token"] == pytest.approx(expected / 4, rel=1e-5)
    assert alone["stderr"] is None
    assert made["per_sequence"] < alone["per_sequence"]
    assert hf.kl_between(policy, policy, [prompt], [completion])["per_sequence"] == 0


def test_divergence_is_what_draws_of_the_policy_give(tokenizer: Any) -> None:
    """The mean of log p - log q over draws is the same divergence, with more noise."""
    policy, start = tiny_model(seed=3), nudged(tiny_model(seed=3), 0.1)
    prompt, count = [5, 6, 7], 400
    (drawn,) = hf.sample(policy, tokenizer, [prompt], max_new_tokens=5, count=count, seed=0, stop_ids=[])
    made = hf.kl_between(policy, start, [prompt] * count, [one.ids for one in drawn])
    with torch.no_grad():
        ids = torch.tensor([prompt + list(one.ids) for one in drawn])
        p, q = (model(ids).logits[:, 2:-1].log_softmax(-1) for model in (policy, start))
    ratios = (p - q).gather(2, ids[:, 3:, None]).sum((1, 2))
    noise = float(ratios.std()) / count**0.5
    assert made["stderr"] < noise / 3
    assert abs(float(ratios.mean()) - made["per_sequence"]) < 4 * noise
    assert made["per_sequence"] > 10 * noise


def test_win_rate_counts_ties_half() -> None:
    made = hf.win_rate([1.0, 2.0, 3.0, 0.0], [2.0, 2.0, 1.0, 5.0])
    assert (made["wins"], made["ties"], made["losses"], made["value"]) == (2, 1, 1, 0.625)
    assert (made["reward_before"], made["reward_after"], made["gain"]) == (1.5, 2.5, 1.0)
    # Differences 1, 0, -2, 5: their squares about the mean add up to 26.
    assert made["gain_stderr"] == pytest.approx(math.sqrt(26 / 3 / 4))
    assert made["ci_low"] < 0.625 < made["ci_high"]
    with pytest.raises(ValueError, match="1 scores before"):
        hf.win_rate([1.0], [1.0, 2.0])


def test_a_step_that_changed_nothing_changed_nothing(tmp_path: Path, tokenizer: Any) -> None:
    model = get_peft_model(tiny_model(seed=3), LoraConfig(r=2, target_modules=["q_proj"]))
    ctx = context(tmp_path, adapter=Peft(), rewards=[count_e], samples=4, sample_tokens=6)
    made = hf.compare_samples(ctx, model, tokenizer)
    assert [row["before"] for row in made["samples"]["rows"]] == [row["after"] for row in made["samples"]["rows"]]
    assert made["win_rate"]["value"] == 0.5 and made["win_rate"]["ties"] == 4
    assert made["kl_to_start"]["per_sequence"] == pytest.approx(0, abs=1e-6)


def test_adapter_off_is_the_start(tmp_path: Path, tokenizer: Any) -> None:
    model = get_peft_model(tiny_model(seed=3), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    ctx = context(tmp_path, adapter=Peft(), samples=4, sample_tokens=6)
    before = hf.start_samples(ctx, model, tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
    made = hf.compare_samples(ctx, model, tokenizer, None, before)
    assert made == hf.compare_samples(ctx, model, tokenizer), "the adapter-off model is not the one before training"
    assert "win_rate" not in made
    after = hf.draw_samples(ctx, model, tokenizer, before.rows, max_new_tokens=6)
    plain = copy.deepcopy(tiny_model(seed=3))
    expected = hf.kl_between(model, plain, after.prompts, [one.ids for one in after.completions])
    assert made["kl_to_start"] == expected and expected["per_token"] > 1e-3
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["after"] for line in lines] == [one.text for one in after.completions]
    assert any(line["before"] != line["after"] for line in lines)


def test_one_process_writes_the_file(tmp_path: Path, tokenizer: Any) -> None:
    """All processes share the folder: two that write `samples.jsonl.partial` and rename it trip over each other."""
    model = get_peft_model(tiny_model(seed=3), LoraConfig(r=2, target_modules=["q_proj"]))
    made = {}
    for rank in (1, 0):
        folder = tmp_path / str(rank)
        torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        try:
            ctx = context(folder, adapter=Peft(), rewards=[count_e], samples=3, sample_tokens=4)
            made[rank] = hf.compare_samples(ctx, model, tokenizer)
        finally:
            torch.distributed.destroy_process_group()
        assert [path.name for path in folder.glob("*")] == ([] if rank else ["samples.jsonl"])
    assert made[0] == made[1]


def test_full_training_keeps_its_start(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_model(seed=3)
    ctx = context(tmp_path, rewards=[count_e], samples=8, sample_tokens=6)
    before = hf.start_samples(ctx, model, tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("e")] *= 60
    made = hf.compare_samples(ctx, model, tokenizer, None, before)
    kl = hf.kl_between(model, tiny_model(seed=3), *_drawn(ctx, model, tokenizer, before))
    assert made["kl_to_start"] == kl and kl["per_token"] > 0.01
    scores = [row["after"].count("e") for row in made["samples"]["rows"]]
    assert [row["after_score"] for row in made["samples"]["rows"]] == scores
    assert made["win_rate"]["reward_after"] == sum(scores) / 8 > made["win_rate"]["reward_before"]
    assert made["win_rate"]["by"]["e"]["after"] == made["win_rate"]["reward_after"]


def _drawn(ctx: Any, model: Any, tokenizer: Any, before: Any) -> Any:
    after = hf.draw_samples(ctx, model, tokenizer, before.rows, max_new_tokens=6)
    return after.prompts, [one.ids for one in after.completions]


def test_the_start_is_read_again_where_it_has_files(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_model(seed=3)
    ctx = context(tmp_path, samples=2, sample_tokens=4)
    ctx.input_path = tmp_path / "model"
    before = hf.start_samples(ctx, model, tokenizer)
    assert before.start is None
    made = hf.compare_samples(ctx, nudged(model), tokenizer, None, before)
    assert "can be had" in made["kl_to_start"]["problem"]
    ctx._load_other = lambda ref: SimpleNamespace(model=tiny_model(seed=3))
    made = hf.compare_samples(ctx, model, tokenizer, None, before)
    assert made["kl_to_start"]["per_sequence"] > 0


def test_prompts_are_fixed_and_spread(tmp_path: Path, tokenizer: Any) -> None:
    data = load_dataset(ROWS, accepts=("prompt_completion",))
    assert [row["prompt"] for row in hf.fixed_prompts(data, 4)] == [
        "Say red 0.",
        "Say red 4.",
        "Say blue 0.",
        "Say blue 4.",
    ]
    assert len(hf.fixed_prompts(data, 99)) == 16
    talk = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    assert hf.prompt_row({"messages": talk}) == {"prompt": talk[:3], "tools": None, "columns": {}}
    assert hf.prompt_row({"text": "x"}) is None
    ctx = context(tmp_path, samples=0)
    assert hf.start_samples(ctx, tiny_model(), tokenizer) is None
    assert hf.compare_samples(ctx, tiny_model(), tokenizer) == {}
    with pytest.raises(DataError, match="no prompt"):
        hf.start_samples(context(tmp_path), tiny_model(), tokenizer, [{"text": "x"}])


def test_rewards_are_given_messages_and_columns(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0] * len(prompts)

    ctx = context(tmp_path, rewards=[reward])
    talk = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": talk, "tools": None, "columns": {"answer": 4}}, {"prompt": "x", "tools": None, "columns": {}}]
    made = hf.draw_samples(ctx, tiny_model(), tiny_tokenizer(), rows, max_new_tokens=3)
    assert seen["prompts"] == [talk, "x"] and seen["answer"] == [4, None]
    assert seen["completions"][0] == [{"role": "assistant", "content": made.completions[0].text}]
    assert seen["completions"][1] == made.completions[1].text
    assert seen["completion_ids"] == [list(one.ids) for one in made.completions]


def test_a_reward_that_fails_loses_no_training(tmp_path: Path, tokenizer: Any) -> None:
    told: list[str] = []
    works = True

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        if not works:
            raise ConnectionError("the judge is asleep")
        return [0.0] * len(prompts)

    def emit(kind: str, **fields: Any) -> None:
        if kind == "notice":
            told.append(fields["message"])

    model = tiny_model(seed=3)
    ctx = context(tmp_path, rewards=[reward], samples=3, sample_tokens=4)
    ctx._emit = emit
    before = hf.start_samples(ctx, model, tokenizer, strict=True)
    works = False
    made = hf.compare_samples(ctx, model, tokenizer, None, before)
    assert "the judge is asleep" in made["win_rate"]["problem"] and "after training" in told[0]
    assert len(made["samples"]["rows"]) == 3 and made["kl_to_start"]["per_sequence"] == 0
    assert (tmp_path / "samples.jsonl").is_file()

    before = hf.start_samples(ctx, model, tokenizer)
    works = True
    assert before is not None and before.scores is None
    assert "before training" in hf.compare_samples(ctx, model, tokenizer, None, before)["win_rate"]["problem"]
    works = False
    with pytest.raises(StepError) as caught:
        hf.start_samples(ctx, model, tokenizer, strict=True)
    assert caught.value.code == "reward-failed"

    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    made = hf.compare_samples(ctx, model, tokenizer, None, before)
    assert "after training" in made["samples"]["problem"] and "win_rate" not in made
    assert hf.compare_samples(ctx, model, tokenizer, None, hf.start_samples(ctx, model, tokenizer)).keys() == {
        "samples"
    }
    ctx.cancel.cancel("enough")
    with pytest.raises(RunCancelled):
        hf.compare_samples(ctx, tiny_model(seed=3), tokenizer, None, before)


def test_samples_are_as_long_as_what_is_trained(tmp_path: Path, tokenizer: Any) -> None:
    class Written(SampleOptions):
        max_new_tokens: int = 5

    model = tiny_model(seed=3)
    for options, longest in ((Written(samples=2), 5), (Written(samples=2, sample_tokens=3), 3)):
        ctx = context(tmp_path)
        ctx.options = options
        made = hf.compare_samples(ctx, model, tokenizer, None, hf.start_samples(ctx, model, tokenizer))["samples"]
        assert made["max_new_tokens"] == longest
        rows = made["rows"]
        assert max(row["after_tokens"] for row in rows) == longest
        cut = sum(not row["after_finished"] for row in rows)
        assert made["cut_off"] == {"before": cut, "after": cut} and cut > 0
    assert Written().sample_tokens is None and context(tmp_path).options.sample_tokens is None
    from tunekit.plugins.hf.samples import _limit

    assert _limit(context(tmp_path)) == 64
