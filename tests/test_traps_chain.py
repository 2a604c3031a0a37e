"""Traps that no single step shows: what has to hold from one step to the next, and before the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tunekit_trl.encoding")

from tunekit import Pipeline, lora  # noqa: E402
from tunekit.errors import ArtifactError, CheckFailed, DataError  # noqa: E402
from tunekit.testing import save_tiny, tiny_pair  # noqa: E402

WORDS = ["hypertension", "cardiomyopathy", "thrombocytopenia"]
ROWS = [{"prompt": f"what is {word}", "completion": f"{word} is {word}"} for word in WORDS]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_tokens_and_ties_survive_resize_training_merge_and_reload(tied: bool, tmp_path: Path) -> None:
    """T18, T19: a resized embedding, trained through LoRA and merged, is one matrix with the output layer if it was
    one before, on disk as in memory; the new rows have moved, and no old one has."""
    result = (
        Pipeline(model=tiny_pair(tied=tied, positions=512))
        .extend_vocabulary(data=[{"text": " ".join(row.values())} for row in ROWS * 3], size=20)
        .sft(data=ROWS, adapter=lora(r=2), max_steps=3, learning_rate=0.1, batch_size=3)
        .run(workdir=tmp_path)
    )
    extended, _ = result.step("extend_vocabulary").model.load()
    merged, tokenizer = result.step("sft").model.load()
    begin, _ = extended.config.tunekit_new_tokens
    ids = torch.tensor([tokenizer(ROWS[1]["completion"])["input_ids"]])
    assert int(ids.max()) >= begin, "the data use new tokens"
    for model in (extended, merged):
        assert model.config.tie_word_embeddings is tied
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    before, after = extended.get_input_embeddings().weight, merged.get_input_embeddings().weight
    assert before.shape == after.shape and torch.equal(before[:begin], after[:begin])
    used = sorted({int(token) for row in ROWS for text in row.values() for token in tokenizer(text)["input_ids"]})
    new = [token for token in used if token >= begin]
    assert new and all(not torch.equal(before[token], after[token]) for token in new)
    # What is on disk is what the merge was proven on: the adapter over the model it was trained on.
    proof = result.step("sft").artifact.details["merge_proof"]
    assert proof["max_abs_diff"] <= proof["tolerance"] < proof["base_diff"]


def _broken(folder: Path) -> str:
    """A model whose weights cannot be read."""
    path = save_tiny(folder)
    for weights in path.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    return str(path)


@pytest.mark.parametrize(
    ("rows", "options", "code"),
    [
        ([{"prompt": "a" * 200, "completion": "b"}] * 2, {"max_length": 64}, "no-targets"),
        ([{"prompt": "a", "completion": "b" * 200}] * 2, {"max_length": 64}, "stop-never-trained"),
    ],
    ids=["nothing-learned", "never-stops"],
)
def test_what_the_tokens_show_is_known_without_weights(
    rows: list[dict[str, Any]], options: dict[str, Any], code: str, tmp_path: Path
) -> None:
    """T32: validate, tokenize a sample, plan; then load weights. These cannot even be read."""
    pipeline = Pipeline(model=_broken(tmp_path / "model")).sft(data=rows, **options)
    with pytest.raises(DataError) as caught:
        pipeline.preview()
    assert caught.value.code == code


def test_bad_options_and_rows_are_known_before_weights(tmp_path: Path) -> None:
    """T32: the rows are at fault, and so are the weights; the rows are named."""
    model = _broken(tmp_path / "model")
    bad = [*ROWS, {"prompt": 1, "completion": "b"}]
    with pytest.raises((CheckFailed, DataError)) as caught:
        Pipeline(model=model).sft(data=bad).run(workdir=tmp_path / "run")
    assert "row 4" in str(caught.value)
    with pytest.raises(ArtifactError) as unreadable:
        Pipeline(model=model).sft(data=ROWS, max_steps=1).run(workdir=tmp_path / "good")
    assert unreadable.value.code == "model-unreadable"
