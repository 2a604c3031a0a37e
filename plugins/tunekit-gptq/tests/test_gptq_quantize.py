"""The quantize step on tiny models, with the real GPTQModel in its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tunekit.errors import ArtifactError, StepError
from tunekit.plugins.hf import load_folder
from tunekit_gptq.options import GptqOptions
from tunekit_gptq.quantizer import refuse_model
from tunekit_gptq.weights import load_dequantized

KINDS = ("int4", "int8", "asymmetric", "ragged", "kept")


def numpy_weights(folder: Path) -> dict[str, np.ndarray]:
    """Layer to weight (out, in), from the folder's files, by the description of the format."""
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = load_file(folder / "model.safetensors")
    bits, v1 = quantization["bits"], quantization["checkpoint_format"] == "gptq"
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    made = {}
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if part != "qweight":
            continue
        words = tensors[name].view(np.uint32)
        codes = ((words[:, None, :] >> shifts[None, :, None]) & (2**bits - 1)).reshape(-1, words.shape[1])
        stored = tensors[f"{layer}.qzeros"].view(np.uint32)
        zeros = ((stored[:, :, None] >> shifts) & (2**bits - 1)).reshape(len(stored), -1) + (1 if v1 else 0)
        group = tensors[f"{layer}.g_idx"]
        scales = tensors[f"{layer}.scales"].astype(np.float32)
        made[layer] = (scales[group] * (codes.astype(np.int64) - zeros[group]).astype(np.float32)).T
    return made


def sentences(model: Path) -> torch.Tensor:
    from transformers import AutoTokenizer

    text = "Once upon a time there was a little girl named Lily. She liked to play with her dog in the big park."
    return torch.tensor([AutoTokenizer.from_pretrained(model)(text)["input_ids"]])


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


def original(kind: str, request: pytest.FixtureRequest) -> Path:
    name = {"ragged": "odd", "kept": "stories260k"}.get(kind, "tiny")
    return Path(request.getfixturevalue(name))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loaded_model_computes_what_the_codes_stand_for(
    quantized: Callable[..., Any], kind: str, request: pytest.FixtureRequest
) -> None:
    done = quantized(kind)
    reference = load_folder(original(kind, request)).model
    state = reference.state_dict()
    rest = load_file(done.folder / "model.safetensors")
    for name, tensor in rest.items():
        if name in state:
            assert tensor.dtype == np.float16
            state[name].copy_(torch.from_numpy(tensor.astype(np.float32)))
    weights = numpy_weights(done.folder)
    assert len(weights) == done.artifact.details["layers_quantized"]
    for layer, weight in weights.items():
        state[f"{layer}.weight"].copy_(torch.from_numpy(np.ascontiguousarray(weight)))
    ids = sentences(done.folder)
    loaded = load_dequantized(done.folder)
    assert loaded.model.dtype == torch.float32
    torch.testing.assert_close(logits(loaded.model, ids), logits(reference, ids), rtol=1e-5, atol=1e-5)
    # What the step hands on in memory is what it wrote.
    assert torch.equal(logits(done.record.kept[0].model, ids), logits(loaded.model, ids))


def test_the_result_says_what_happened(quantized: Callable[..., Any], tiny: Path) -> None:
    done = quantized("int4")
    details, card = done.artifact.details, done.artifact.model
    assert details["size_before"] == (tiny / "model.safetensors").stat().st_size
    assert details["size_after"] == (done.folder / "model.safetensors").stat().st_size == card.size_bytes
    assert details["ratio"] > 3
    assert quantized("int8").artifact.details["ratio"] < details["ratio"]
    assert (card.dtype, card.quantized) == ("int4", "gptq int4")
    assert card.parameters == sum(p.numel() for p in load_folder(tiny).model.parameters())
    assert details["group_size"] == 64 and details["format"] == "gptq"
    assert details["layers_quantized"] == 14 and details["layers_kept"] == details["ragged_layers"] == []
    quality = details["quality"]
    assert quality["rows"] == 6 and quality["nll_after"] > 0 and 0 < quality["top1_agreement"] <= 1
    assert done.record.metrics == [{k: quality[k] for k in ("nll_before", "nll_after", "top1_agreement")}]
    assert quantized("int8").artifact.details["quality"]["top1_agreement"] >= quality["top1_agreement"]
    assert done.record.progress[0] == (0, 2, "layers") and done.record.progress[-1] == (2, 2, "layers")
    assert json.loads(json.dumps(done.artifact.to_data())) == done.artifact.to_data()


def test_the_folder_holds_the_input_models_own_files(quantized: Callable[..., Any], tiny: Path) -> None:
    done = quantized("int4")
    left = {path.name for path in done.record.context.dir.iterdir()}
    assert left == {"model", "calibration.json"}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (done.folder / name).read_bytes() == (tiny / name).read_bytes()
    config = json.loads((done.folder / "config.json").read_text())
    before = json.loads((tiny / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "gptq"
    assert config == {**before, "dtype": "float16"}
    text = "".join((done.folder / name).read_text() for name in ("config.json", "quantize_config.json"))
    assert str(done.record.context.dir) not in text and "/tmp" not in text


def test_calibration_is_recorded_and_repeats(
    quantized: Callable[..., Any], make_context: Callable[..., Any], tiny: Path, stories: list[dict[str, Any]]
) -> None:
    first = quantized("int4")
    again = make_context(tiny, training_data=[stories], scheme="int4")
    artifact = again.run()
    assert artifact.details["calibration"] == first.artifact.details["calibration"]
    recorded = json.loads((again.context.dir / "calibration.json").read_text())
    assert recorded["sha256"] == first.artifact.details["calibration"]["sha256"]
    assert len(recorded["token_ids"]) == recorded["rows"] == 24
    assert (again.folder / "model.safetensors").read_bytes() == (first.folder / "model.safetensors").read_bytes()


def test_layers_that_cannot_be_packed_stay_and_are_named(quantized: Callable[..., Any]) -> None:
    done = quantized("kept")
    assert "15 of 35" in done.record.notices["gptq-layers-kept"]
    assert len(done.artifact.details["layers_kept"]) == 15
    assert all(".mlp." in name for name in done.artifact.details["layers_kept"])


def test_a_group_size_that_does_not_divide_is_accepted_and_said(quantized: Callable[..., Any]) -> None:
    done = quantized("ragged")
    said = done.record.notices["gptq-ragged-group"]
    assert "96, 160 inputs" in said and "llm-compressor" in said and "group_size=32" in said
    assert len(done.artifact.details["ragged_layers"]) == 14
    assert not quantized("int4").record.notices.keys() & {"gptq-ragged-group", "gptq-layers-kept"}


def test_an_input_without_a_folder_is_written_first(quantized: Callable[..., Any], tiny: Path) -> None:
    done = quantized("asymmetric")
    assert done.artifact.details["format"] == "gptq_v2"
    assert done.artifact.details["size_before"] == (tiny / "model.safetensors").stat().st_size
    assert not (done.record.context.dir / "work").exists()


def test_explicit_data_wins_over_training_data(
    make_context: Callable[..., Any],
    tiny: Path,
    stories: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # the worker has a working folder of its own: relative paths must survive that
    own = [{"text": f"The boat number {n} went to the sea and came back."} for n in range(12)]
    record = make_context(
        tiny, folder=Path("here"), training_data=[stories], data=own, scheme="int8", calibration_rows=6
    )
    details = record.run().details["calibration"]
    assert [(source["schema"], source["rows"]) for source in details["sources"]] == [("text", 6)]
    assert "gptq-few-tokens" in record.notices


def test_the_loaded_model_generates_and_is_marked_as_quantized(quantized: Callable[..., Any]) -> None:
    from transformers import Trainer, TrainingArguments

    folder = quantized("kept").folder
    loaded = load_dequantized(folder)
    ids = torch.tensor([loaded.tokenizer("Once upon a time")["input_ids"]])
    made = loaded.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    assert "there was" in loaded.tokenizer.decode(made[0])
    assert loaded.model.tunekit_quantized == "gptq int4"
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    with pytest.raises(ValueError, match="quantized"):
        Trainer(loaded.model, args=TrainingArguments(output_dir=str(folder / "unused"), use_cpu=True, report_to=[]))


READER = """
import json, os, sys
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torch
from gptqmodel import GPTQModel
from gptqmodel.nn_modules.qlinear.torch import TorchLinear

for folder, out in zip(sys.argv[1::2], sys.argv[2::2]):
    model = GPTQModel.load(folder, device="cpu", backend="gptq_torch", dtype=torch.float16).model.eval()
    ids = torch.tensor([json.load(open(out + ".ids"))])
    with torch.inference_mode():
        weights = {name: TorchLinear.dequantize_weight(module) for name, module in model.named_modules()
                   if isinstance(module, TorchLinear)}
        torch.save({"logits": model(input_ids=ids).logits.float(), "weights": weights}, out)
"""


@pytest.fixture(scope="module")
def read_by_gptqmodel(quantized: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights and logits of every kind as GPTQModel's portable kernel has them."""
    home = tmp_path_factory.mktemp("reader")
    arguments = []
    for kind in KINDS:
        folder = quantized(kind).folder
        (home / f"{kind}.ids").write_text(json.dumps(sentences(folder)[0].tolist()))
        arguments += [str(folder), str(home / kind)]
    subprocess.run([sys.executable, "-c", READER, *arguments], check=True, cwd=home, capture_output=True)
    return {kind: torch.load(home / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_gptqmodel_reads_the_folder_and_agrees(
    read_by_gptqmodel: dict[str, Any], quantized: Callable[..., Any], kind: str
) -> None:
    found = read_by_gptqmodel[kind]
    model = load_dequantized(quantized(kind).folder).model
    assert len(found["weights"]) == quantized(kind).artifact.details["layers_quantized"]
    for name, weight in found["weights"].items():
        # GPTQModel multiplies in float16; the exact product rounded once is the same number.
        assert torch.equal(model.get_submodule(name).weight.T.half(), weight)
    ours = logits(model, sentences(quantized(kind).folder))
    torch.testing.assert_close(found["logits"], ours, rtol=0.02, atol=0.02 * float(ours.abs().max()))
    with torch.inference_mode():
        for name, weight in found["weights"].items():
            model.get_submodule(name).weight.copy_(weight.T.float())
    rounded = logits(model, sentences(quantized(kind).folder))
    torch.testing.assert_close(rounded, ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))


KERNELS = """
import json, os, sys
from pathlib import Path
before = dict(os.environ)
import torch
from tunekit_gptq.weights import load_dequantized, load_with_kernels

folder = Path(sys.argv[1])
packed = load_with_kernels(folder, device_map="cpu", dtype=torch.float32, backend="torch_fused").model
assert dict(os.environ) == before, "environment changed"
plain = load_dequantized(folder).model
ids = torch.tensor([json.loads(sys.argv[2])])
kinds = {type(module).__name__ for module in packed.modules()}
with torch.inference_mode():
    a, b = packed(input_ids=ids).logits, plain(input_ids=ids).logits
Path(sys.argv[3]).write_text(json.dumps({
    "difference": float((a - b).abs().max()), "size": float(b.abs().max()), "kinds": sorted(kinds),
    "quantized": packed.is_quantized, "trained": any(p.requires_grad for p in packed.parameters()),
}))
"""


def test_packed_kernels_agree_and_leave_the_process_alone(quantized: Callable[..., Any], tmp_path: Path) -> None:
    """The way models are loaded on CUDA, on the kernel that a CPU has; with layers that stayed as they were."""
    folder = quantized("kept").folder
    ids = json.dumps(sentences(folder)[0].tolist())
    ran = subprocess.run(
        [sys.executable, "-c", KERNELS, str(folder), ids, str(tmp_path / "out.json")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout == ""
    found = json.loads((tmp_path / "out.json").read_text())
    assert "TorchFusedLinear" in found["kinds"]
    assert found["quantized"] and not found["trained"]
    assert found["difference"] < 0.05 * found["size"]


def test_this_process_stays_clean(
    make_context: Callable[..., Any],
    tiny: Path,
    stories: list[dict[str, Any]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Another test of this process may have imported them.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("gptqmodel", "optimum")]:
        monkeypatch.delitem(sys.modules, name)
    before, here = dict(os.environ), Path.cwd()
    make_context(tiny, training_data=[stories], calibration_rows=8).run()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert dict(os.environ) == before and Path.cwd() == here
    assert "gptqmodel" not in sys.modules and "optimum" not in sys.modules


def test_an_adapter_without_its_base_is_refused(
    make_context: Callable[..., Any], tiny: Path, tmp_path: Path, stories: list[dict[str, Any]]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(StepError) as caught:
        make_context(tiny, source=adapter, training_data=[stories]).run()
    assert caught.value.code == "unmerged-adapter" and "merge" in caught.value.fix


def test_what_a_model_carries_is_named(quantized: Callable[..., Any], tiny: Path) -> None:
    with pytest.raises(StepError) as caught:
        refuse_model(load_dequantized(quantized("int4").folder).model)
    assert caught.value.code == "already-quantized" and "gptq int4" in caught.value.found

    from transformers import LlamaForCausalLM

    refuse_model(LlamaForCausalLM.from_pretrained(tiny))


def test_a_model_without_a_layer_to_pack_is_refused(
    make_context: Callable[..., Any], narrow: Path, stories: list[dict[str, Any]]
) -> None:
    with pytest.raises(StepError) as caught:
        make_context(narrow, training_data=[stories]).run()
    assert caught.value.code == "gptq-no-layers"


@pytest.fixture
def damaged(quantized: Callable[..., Any], tmp_path: Path) -> Iterator[Path]:
    """A copy of a quantized folder, to be spoilt."""
    import shutil

    yield Path(shutil.copytree(quantized("int4").folder, tmp_path / "copy"))


def test_damaged_folders_are_named(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError) as caught:
        load_dequantized(damaged)
    assert caught.value.code == "gptq-damaged" and str(damaged) in caught.value.message

    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file

    weights.write_bytes(whole)
    tensors = load_torch(weights)
    lost = tensors.pop("model.layers.0.mlp.up_proj.scales")
    save_file(tensors, weights)
    with pytest.raises(ArtifactError, match=r"up_proj lacks scales"):
        load_dequantized(damaged)
    tensors["model.layers.0.mlp.up_proj.scales"] = lost
    del tensors["model.norm.weight"]
    save_file(tensors, weights)
    with pytest.raises(ArtifactError, match=r"model\.norm\.weight"):
        load_dequantized(damaged)
    weights.unlink()
    with pytest.raises(ArtifactError, match="not complete"):
        load_dequantized(damaged)


@pytest.mark.parametrize(
    "wrong",
    [{"scheme": "int5"}, {"group_size": 100}, {"damp_percent": 1.0}, {"calibration_rows": 0}, {"groupsize": 64}],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        GptqOptions(**wrong)
