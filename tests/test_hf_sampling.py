"""Samples: the tokens that transformers would write, draws with the right frequencies, whatever shares their batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunekit.cancel import CancelToken
from tunekit.errors import DataError, OptionsError, RunCancelled, StepError
from tunekit.plugins import hf
from tunekit.plugins.hf import sampling
from tunekit.plugins.hf.segments import segmented
from tunekit.testing import tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7, 8, 9], [40, 41, 42], [100, 12, 13, 14, 15, 16, 17], [60, 61, 62], [33]]
STOP = 77


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(seed=3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(None)


def _mistral() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 288}
    torch.manual_seed(0)
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=4)
    return MistralForCausalLM(config).eval()


def _gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=288, n_positions=64)).eval()


def _adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(tiny_model(seed=3), LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"]))
    return made.eval()


@pytest.mark.parametrize("make", [lambda: tiny_model(seed=3), _mistral, _gpt2, _adapted])
def test_greedy_is_what_transformers_writes(make: Any, tokenizer: Any) -> None:
    model = make()
    made = hf.sample(model, tokenizer, PROMPTS, max_new_tokens=9, temperature=0, count=2, stop_ids=[STOP])
    for prompt, (first, second) in zip(PROMPTS, made, strict=True):
        ids = torch.tensor([prompt])
        plain = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=STOP,
            pad_token_id=0,
        )
        assert list(first.ids) == plain[0, len(prompt) :].tolist()
        assert first == second
        assert first.finished == (first.ids[-1] == STOP)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (20, 1.0), (0, 0.6), (30, 0.7)])
def test_frequencies_are_those_of_the_filtered_softmax(model: Any, tokenizer: Any, top_k: int, top_p: float) -> None:
    count, temperature = 20_000, 0.3
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[:, -1]
    logits = TemperatureLogitsWarper(temperature)(None, logits)
    logits = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    expected = TopPLogitsWarper(top_p)(None, logits).softmax(-1)[0].double()
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "count": count, "seed": 4}
    (made,) = hf.sample(model, tokenizer, PROMPTS[:1], max_new_tokens=1, **how)
    found = torch.bincount(torch.tensor([one.ids[0] for one in made]), minlength=len(expected)).double() / count
    assert not found[expected == 0].any()
    deviations = (found - expected) / (expected * (1 - expected) / count).sqrt().clamp(min=1e-9)
    assert float(deviations[expected * count > 5].abs().max()) < 4.5
    # Pearson's statistic has the number of cells as its mean, and a standard deviation of sqrt(2 cells).
    large = expected * count > 5
    cells = int(large.sum())
    assert cells > 5
    assert abs(float((deviations[large] ** 2).sum()) - cells) < 5 * (2 * cells) ** 0.5


def test_what_shares_a_batch_changes_nothing(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"max_new_tokens": 12, "count": 3, "seed": 1, "stop_ids": range(0, 288, 9)}
    together = hf.sample(model, tokenizer, PROMPTS, **how)
    assert sampling._pads[model], "the prompts were not run together"
    assert len({len(one.ids) for group in together for one in group}) > 2
    monkeypatch.setattr(sampling, "CACHE_BYTES", 0)
    assert hf.sample(model, tokenizer, PROMPTS, **how) == together
    monkeypatch.undo()
    passes: list[int] = []

    def fail_once(module: Any, args: Any, kwargs: Any) -> None:
        passes.append(len(kwargs["input_ids"]))
        if len(passes) == 4:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.register_forward_pre_hook(fail_once, with_kwargs=True)
    try:
        assert hf.sample(model, tokenizer, PROMPTS, **how) == together
    finally:
        hook.remove()
    assert len({tuple(one.ids) for one in together[0]}) == 3


def test_prompts_run_once_for_all_their_samples(model: Any, tokenizer: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        hf.sample(model, tokenizer, [PROMPTS[0]] * 2, max_new_tokens=3, count=4, seed=0, stop_ids=[])
    finally:
        hook.remove()
    assert shapes == [(2, 5), (8, 1), (8, 1)]


def test_the_same_seed_gives_the_same_and_nothing_else_is_touched(model: Any, tokenizer: Any) -> None:
    before = torch.get_rng_state()
    one = hf.sample(model, tokenizer, PROMPTS, max_new_tokens=5, seed=9)
    model.train()
    with segmented(model):
        within = hf.sample(model, tokenizer, PROMPTS, max_new_tokens=5, seed=9)
        assert model.config._attn_implementation == "tunekit_segments"
    assert model.training
    model.eval()
    assert within == one
    assert hf.sample(model, tokenizer, PROMPTS, max_new_tokens=5, seed=10) != one
    assert torch.equal(before, torch.get_rng_state())


def test_a_longer_limit_goes_on_behind_the_same_beginning(model: Any, tokenizer: Any) -> None:
    def written(limit: int) -> list[tuple[int, ...]]:
        made = hf.sample(model, tokenizer, PROMPTS, max_new_tokens=limit, seed=2, count=2, stop_ids=[])
        return [one.ids for group in made for one in group]

    assert [ids[:4] for ids in written(9)] == written(4)


def test_texts_end_at_the_last_position(tokenizer: Any) -> None:
    short = tiny_model(positions=8)
    made = hf.sample(short, tokenizer, [[5, 6, 7], [8] * 7], max_new_tokens=20, seed=0, stop_ids=[])
    assert [(len(one.ids), one.finished) for (one,) in made] == [(5, False), (1, False)]
    with pytest.raises(DataError, match="8 tokens"):
        hf.sample(short, tokenizer, [[5] * 8], max_new_tokens=1)
    with pytest.raises(DataError, match="0 tokens"):
        hf.sample(short, tokenizer, [[]], max_new_tokens=1)


def test_wrong_numbers_cancels_and_broken_models(model: Any, tokenizer: Any) -> None:
    for wrong in ({"top_p": 0}, {"temperature": -1}, {"count": 0}, {"top_k": -1}, {"max_new_tokens": 0}):
        with pytest.raises(OptionsError, match=next(iter(wrong))):
            hf.sample(model, tokenizer, PROMPTS, **{"max_new_tokens": 2, **wrong})
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelled):
        hf.sample(model, tokenizer, PROMPTS, max_new_tokens=2, cancel=token)
    broken = tiny_model(tied=False)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(StepError, match="not finite"):
        hf.sample(broken, tokenizer, PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize(
    "template", [None, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", "plain"]
)
def test_exactly_one_begin_of_text(template: str | None) -> None:
    """T5."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}" if template == "plain" else template
    tokenizer = tiny_tokenizer(template, bos=True)
    ids = hf.prompt_ids(tokenizer, "ab")
    expected = [tokenizer.bos_token_id] if template is None or "bos_token" in template else []
    assert ids == [*expected, *tokenizer("ab", add_special_tokens=False)["input_ids"]]
    assert hf.prompt_ids(tokenizer, "<bos>ab").count(tokenizer.bos_token_id) == 1


def test_prompts_are_rendered_up_to_the_answer() -> None:
    """T8: the template says where the answer begins."""
    chat, plain = tiny_tokenizer(), tiny_tokenizer(None)
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(hf.prompt_ids(chat, "hi")) == asked
    assert hf.prompt_ids(chat, [{"role": "user", "content": "hi"}]) == hf.prompt_ids(chat, "hi")
    talk = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert plain.decode(hf.prompt_ids(plain, talk)) == "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"
    with pytest.raises(DataError, match="tools"):
        hf.prompt_ids(plain, "hi", tools=[{"type": "function"}])
    with pytest.raises(DataError, match="empty"):
        hf.prompt_ids(plain, "")


def test_texts_keep_the_blank_behind_the_prompt(stories260k: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    prompt = hf.prompt_ids(tokenizer, "Once upon a")
    assert prompt[0] == tokenizer.bos_token_id
    rest = tokenizer("Once upon a time, there", add_special_tokens=False)["input_ids"][len(prompt) - 1 :]
    assert sampling._text(tokenizer, prompt, [*rest, tokenizer.eos_token_id]) == " time, there"
