"""Saving, loading and the merge proof of ``tunekit.plugins.hf``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunekit.artifacts import Artifact
from tunekit.errors import ArtifactError, StepError
from tunekit.plugins import hf
from tunekit.plugins.hf import finishing, loading
from tunekit.plugins.hf.loading import folder_problems
from tunekit.plugins.hf.training import TrainOutcome
from tunekit.plugins.protocols import LoadedModel
from tunekit.testing.contexts import step_context

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

OUTCOME = TrainOutcome(global_step=3, max_steps=3, metrics={"loss": 1.0})


class LowRank(torch.nn.Module):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.down = torch.nn.Parameter(torch.randn(4, base.in_features) * 0.2)
        self.up = torch.nn.Parameter(torch.zeros(base.out_features, 4))
        self.on = True

    def forward(self, x: Any) -> Any:
        y = self.base(x)
        return y + x @ self.down.T @ self.up.T if self.on else y


class SmallAdapter:
    """An adapter in twenty lines: low-rank updates of the query projections."""

    def attach(self, model: Any, *, seed: int) -> Any:
        torch.manual_seed(seed)
        model.requires_grad_(False)
        for layer in model.model.layers:
            layer.self_attn.q_proj = LowRank(layer.self_attn.q_proj)
        return model

    def layers(self, model: Any) -> list[LowRank]:
        return [module for module in model.modules() if isinstance(module, LowRank)]

    def train_a_little(self, model: Any, size: float = 0.3) -> None:
        torch.manual_seed(1)
        with torch.no_grad():
            for layer in self.layers(model):
                layer.up.normal_(std=size)

    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save([layer.up for layer in self.layers(model)], folder / "adapter.pt")

    def merge(self, model: Any) -> Any:
        for layer in model.model.layers:
            low = layer.self_attn.q_proj
            with torch.no_grad():
                low.base.weight += self.update(low)
            layer.self_attn.q_proj = low.base
        return model

    def update(self, low: LowRank) -> Any:
        return low.up @ low.down

    @contextmanager
    def detached(self, model: Any) -> Iterator[None]:
        for layer in self.layers(model):
            layer.on = False
        yield
        for layer in self.layers(model):
            layer.on = True


class MergesNothing(SmallAdapter):
    def update(self, low: LowRank) -> Any:
        return torch.zeros_like(low.base.weight)


class MergesTwice(SmallAdapter):
    def update(self, low: LowRank) -> Any:
        return 2 * (low.up @ low.down)


class MergesAlmost(SmallAdapter):
    def update(self, low: LowRank) -> Any:
        return 0.8 * (low.up @ low.down)


def finish(folder: Path, source: Path, adapter: Any, size: float = 0.3) -> tuple[Artifact, LoadedModel]:
    ctx = step_context(folder, None, kind="sft", adapter=adapter)
    loaded = hf.load_folder(source)
    model = loaded.model
    if adapter is not None:
        model = adapter.attach(model, seed=0)
        adapter.train_a_little(model, size)
    artifact = hf.finish(ctx, model, loaded.tokenizer, outcome=OUTCOME)
    return artifact, ctx.kept[0]


def test_merge_is_proven(tmp_path: Path, stories260k: Path) -> None:
    artifact, kept = finish(tmp_path, stories260k, SmallAdapter())
    proof = artifact.details["merge_proof"]
    assert proof["max_abs_diff"] <= proof["tolerance"] / 10, "the tolerance leaves room for wider models"
    assert proof["base_diff"] > 100 * proof["tolerance"]
    assert proof["changed_tensors"] == 5 and proof["tensors"] > 40
    assert artifact.adapter_path == "adapter" and artifact.model is not None
    assert artifact.model.path == "model" and artifact.model.dtype == "float32"
    assert artifact.trained_parameters == 5 * 4 * (64 + 64)
    assert artifact.details["parameters"] == 260_032
    again = hf.load_folder(tmp_path / "model").model
    for (name, left), (_, right) in zip(kept.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(left, right), name
        assert left.requires_grad, "the next step may train it in full"
    assert not kept.model.training


@pytest.mark.parametrize("adapter", [MergesNothing(), MergesTwice(), MergesAlmost()])
@pytest.mark.parametrize("size", [0.3, 0.003])
def test_a_wrong_merge_stops_the_step(tmp_path: Path, stories260k: Path, adapter: Any, size: float) -> None:
    with pytest.raises(StepError) as caught:
        finish(tmp_path, stories260k, adapter, size)
    assert caught.value.code == "merge-proof"
    assert caught.value.details["step"] == "sft"
    assert "max_abs_diff" in caught.value.details


def test_a_merge_that_changes_nothing_is_named(tmp_path: Path, stories260k: Path) -> None:
    with pytest.raises(StepError, match="equal the base"):
        finish(tmp_path, stories260k, MergesNothing())


def test_training_that_changed_nothing_is_no_merge(tmp_path: Path, stories260k: Path) -> None:
    with pytest.raises(StepError, match="training changed nothing") as caught:
        finish(tmp_path, stories260k, SmallAdapter(), size=0.0)
    assert "learning_rate" in caught.value.fix


def test_weights_changed_on_their_way_to_the_disk_are_noticed(
    tmp_path: Path, stories260k: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunekit.plugins.hf import finishing

    original = finishing.save_model

    def tampering(model: Any, tokenizer: Any, folder: Path) -> Path:
        from safetensors.torch import load_file, save_file

        original(model, tokenizer, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] += 1e-6
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    monkeypatch.setattr(finishing, "save_model", tampering)
    with pytest.raises(StepError, match="on disk are not the merged ones"):
        finish(tmp_path, stories260k, SmallAdapter())


def test_a_probe_that_is_not_a_number_is_no_agreement() -> None:
    good, bad = torch.zeros(2, 3), torch.tensor([[0.0, float("nan"), 0.0]])
    for order in ([good, bad], [bad, good]):
        difference = finishing._largest_difference([torch.zeros_like(part) for part in order], order)
        assert not difference <= 1e9


@pytest.mark.parametrize("adapter", [None, SmallAdapter()])
def test_the_kept_model_is_what_a_reload_gives(
    tmp_path: Path, stories260k: Path, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (finishing, loading):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.bfloat16)
    loaded = hf.load_folder(stories260k)
    model = loaded.model
    if adapter is None:
        model.float()  # as training does with the weights it changes
    else:
        model = adapter.attach(model, seed=0)
        for layer in adapter.layers(model):
            layer.to(torch.bfloat16)
        adapter.train_a_little(model)
    ctx = step_context(tmp_path, None, kind="sft", adapter=adapter)
    artifact = hf.finish(ctx, model, loaded.tokenizer, outcome=OUTCOME)
    again = hf.load_folder(tmp_path / "model").model
    assert artifact.model is not None
    assert artifact.model.dtype == ("bfloat16" if adapter else "float32")
    weights = dict(ctx.kept[0].model.named_parameters())
    for name, weight in again.named_parameters():
        assert weights[name].dtype == torch.bfloat16
        assert torch.equal(weights[name], weight)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert torch.equal(ctx.kept[0].model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_tied_embeddings_survive(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    assert loaded.model.config.tie_word_embeddings
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    _, kept = finish(tmp_path, stories260k, SmallAdapter())
    assert kept.model.lm_head.weight is kept.model.model.embed_tokens.weight
    again = hf.load_folder(tmp_path / "model").model
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert json.loads((tmp_path / "model" / "config.json").read_text())["tie_word_embeddings"]


def test_full_training_writes_a_plain_folder(tmp_path: Path, stories260k: Path) -> None:
    artifact, kept = finish(tmp_path, stories260k, None)
    assert artifact.adapter_path is None and artifact.trained == "full"
    assert artifact.trained_parameters == 260_032
    assert "merge_proof" not in artifact.details
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == "float32" and config["use_cache"] and "quantization_config" not in config
    assert kept.path == tmp_path / "model"


def test_saved_folder_keeps_template_and_forgets_truncation(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    loaded.tokenizer("long " * 50, truncation=True, max_length=8, padding="max_length") if (
        loaded.tokenizer.pad_token
    ) else loaded.tokenizer("long " * 50, truncation=True, max_length=8)
    hf.save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    again = hf.load_folder(tmp_path / "model")
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    saved = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
    assert not (tmp_path / "model.partial").exists()


def test_saving_replaces_what_was_there(tmp_path: Path, stories260k: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"left over")
    loaded = hf.load_folder(stories260k)
    hf.save_model(loaded.model, loaded.tokenizer, folder)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that nobody can write to")
def test_unwritable_folder_is_an_artifact_error(stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    with pytest.raises(ArtifactError) as caught:
        hf.save_model(loaded.model, loaded.tokenizer, Path("/sys/kernel/model"))
    assert caught.value.code in ("not-writable", "read-only")
    assert "/sys/kernel/model" in str(caught.value)


# Loading.


def test_missing_weight_is_an_error_not_a_random_tensor(tmp_path: Path, stories260k: Path) -> None:
    from safetensors.torch import load_file, save_file

    loaded = hf.load_folder(stories260k)
    hf.save_model(loaded.model, loaded.tokenizer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError) as caught:
        hf.load_folder(tmp_path)
    assert caught.value.code == "weights-missing"
    assert "model.layers.3.mlp.up_proj.weight" in caught.value.found


def test_truncated_weights_are_named(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    hf.save_model(loaded.model, loaded.tokenizer, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ArtifactError) as caught:
        hf.load_folder(tmp_path)
    assert caught.value.code == "model-unreadable" and str(tmp_path) in str(caught.value)


def test_folder_without_tokenizer(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k)
    loaded.model.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        hf.load_folder(tmp_path)
    assert caught.value.code == "no-tokenizer"
    assert "save_pretrained" in str(caught.value)


def test_problems_of_folders(tmp_path: Path) -> None:
    assert "not a folder" in folder_problems(tmp_path / "none")[0]
    assert "config.json is missing" in folder_problems(tmp_path)[0]
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter without its base" in folder_problems(tmp_path)[0]
    (tmp_path / "config.json").write_text("[")
    assert "cannot be read" in folder_problems(tmp_path)[0]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert len(folder_problems(tmp_path)) == 2
    (tmp_path / "adapter_config.json").unlink()
    assert "no weights" in folder_problems(tmp_path)[0]
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert folder_problems(tmp_path) == []


def test_dtype_is_always_explicit(tmp_path: Path, stories260k: Path) -> None:
    loaded = hf.load_folder(stories260k, dtype=torch.bfloat16)
    assert loaded.model.dtype is torch.bfloat16
    hf.save_model(loaded.model, loaded.tokenizer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert hf.load_folder(tmp_path).model.dtype is hf.compute_dtype()


def test_loading_prints_nothing(stories260k: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    capfd.readouterr()
    hf.load_folder(stories260k)
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before


def test_real_weights_give_the_golden_text(shared_data: Path, stories260k: Path) -> None:
    golden = json.loads((shared_data / "stories260k" / "golden.json").read_text())
    loaded = hf.load_folder(stories260k)
    out = loaded.model.generate(
        torch.tensor([golden["prompt_ids"]]), max_new_tokens=golden["max_new_tokens"], do_sample=False
    )
    ids = out[0].tolist()
    assert ids[: len(golden["generated_ids"])] == golden["generated_ids"] or (
        ids[len(golden["prompt_ids"]) :][: len(golden["generated_ids"])] == golden["generated_ids"]
    )
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True).strip() == golden["text"].strip()


@pytest.mark.parametrize("text", ["tinystories_sample.txt", "tinyshakespeare.txt", "wikitext-2/valid.txt"])
def test_perplexity_equals_the_reference(shared_data: Path, stories260k: Path, text: str) -> None:
    reference = json.loads((shared_data / "reference" / "stories260k.json").read_text())
    expected = reference["perplexity"]["texts"][text]
    loaded = hf.load_folder(stories260k)
    with hf.quiet():
        ids = loaded.tokenizer((shared_data / "corpora" / text).read_text(encoding="utf-8"))["input_ids"]
    ids = torch.tensor([ids[: expected["ids"]]])
    assert ids[0, : len(expected["first_ids"])].tolist() == expected["first_ids"]
    with torch.no_grad():
        logits = loaded.model(ids).logits[0, :-1].log_softmax(-1)
    loss = -logits.gather(1, ids[0, 1:, None]).mean()
    assert float(loss) == pytest.approx(expected["mean_nll"], abs=1e-3)
    assert float(loss.exp()) == pytest.approx(expected["perplexity"], rel=1e-3)
