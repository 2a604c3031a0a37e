"""Pretraining and continued pretraining, run for real on small models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from language_step import TEXTS, Step  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from tunekit.plugins import hf  # noqa: E402
from tunekit_transformers.causal import CausalPostPretraining, CausalPretraining  # noqa: E402
from tunekit_transformers.options import PostPretrainOptions, PretrainOptions  # noqa: E402


def small(**values: Any) -> PretrainOptions:
    return PretrainOptions(
        **{
            "data": [],
            "vocab_size": 400,
            "hidden_size": 32,
            "layers": 2,
            "max_length": 32,
            "max_steps": 20,
            "batch_size": 4,
            **values,
        }
    )


def test_pretraining_learns_and_leaves_a_usable_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    environment = dict(os.environ)
    state = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    step = Step(tmp_path, small(max_steps=60))
    capfd.readouterr()
    artifact = step.run(CausalPretraining())
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    losses = list(step.losses().values())
    assert len(losses) == 60 and losses[0] > 5.5 and losses[-1] < losses[0] - 2
    assert artifact.metrics["loss_first"] == losses[0] and artifact.metrics["loss"] == losses[-1]
    assert artifact.metrics["tokens_per_second"] > 0
    details = artifact.details
    assert details["documents"] == len(TEXTS) and details["tokens_dropped"] == 0
    assert details["targets_per_epoch"] == details["tokens_per_epoch"] - len(TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model"]

    loaded = hf.load_folder(tmp_path / "model")
    tokenizer, model = loaded.tokenizer, loaded.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(tokenizer) == model.config.vocab_size == details["vocab_size"]
    assert artifact.model is not None and artifact.model.parameters == hf.count_parameters(model)[0]
    for left, right in zip(step.kept[0].model.parameters(), model.parameters(), strict=True):
        assert torch.equal(left, right)
    for text in ("Lily saw 42 boats.", "Grüße, 世界 🙂\n\tx"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234")["input_ids"]) == 4, "digits stand alone"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer("<|im_end|>")["input_ids"]) == 1
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert set(model.generation_config.eos_token_id) == set(
        tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    )
    ids = tokenizer("Lily went to the", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=60, do_sample=False)
    assert out.shape[1] > ids["input_ids"].shape[1]


def test_post_pretraining_starts_from_the_model(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    step = Step(tmp_path, PostPretrainOptions(data=[], max_steps=12, learning_rate=1e-3, max_length=1024), model=loaded)
    artifact = step.run(CausalPostPretraining())
    losses = list(step.losses().values())
    assert losses[0] < 4.5, "a trained model, not a random one"
    assert losses[-1] < losses[0]
    assert "512" in step.notices()["block-length"]
    assert artifact.details["block_length"] == 512
    assert artifact.trained_parameters == 260_032


def test_every_token_is_trained(tmp_path: Path, stories260k: Path) -> None:
    """The first loss is the mean over all tokens but the first of each document, end of text included."""
    loaded = hf.load_folder(stories260k)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[*loaded.tokenizer(text)["input_ids"], loaded.tokenizer.eos_token_id]])
        assert ids[0, 0] == loaded.tokenizer.bos_token_id and ids[0, 1] != loaded.tokenizer.bos_token_id
        with torch.no_grad():
            logits = loaded.model(ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    # Blocks as long as the whole corpus would not fit the context, so documents are kept whole by their length here.
    options = PostPretrainOptions(data=[], max_steps=1, batch_size=100, max_length=512, warmup=0.0)
    step = Step(tmp_path, options, model=loaded)
    artifact = step.run(CausalPostPretraining())
    assert artifact.metrics["tokens"] == count == artifact.details["targets_per_epoch"]
    assert step.losses()[1] == pytest.approx(total / count, rel=0.02), "cut documents lose their beginning"


def test_defaults_are_filled_in() -> None:
    bare = PretrainOptions().resolve(adapter=None)
    assert bare.max_steps and bare.learning_rate and bare.intermediate_size
    assert bare.intermediate_size % 128 == 0 and bare.hidden_size % 128 == 0, "GPTQ groups divide the widths"
    assert PretrainOptions(data="x.txt").resolve(adapter=None).max_steps is None
    assert PretrainOptions(epochs=1).resolve(adapter=None).max_steps is None
    assert PostPretrainOptions().resolve(adapter=None).learning_rate == 2e-5
    assert PostPretrainOptions().resolve(adapter="lora").learning_rate == 2e-4


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"hidden_size": 100, "heads": 3}, "hidden_size"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"max_length": 512, "context": 256}, "context"),
        ({"vocab_size": 10}, "vocab_size"),
        ({"adapter_r": 3}, "adapter_r"),
        ({"layers": "2"}, "layers"),
    ],
)
def test_wrong_options(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        PretrainOptions(**values)
