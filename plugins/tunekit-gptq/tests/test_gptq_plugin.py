"""The records, and folders as a source of models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunekit.plugins import ModelSource
from tunekit.session import Session
from tunekit_gptq.source import GptqFolder, resolve


def test_a_gptq_folder_is_recognised_and_a_plain_one_is_not(quantized: Callable[..., Any], tiny: Path) -> None:
    folder = quantized("int4").folder
    source = resolve(str(folder))
    assert isinstance(source, GptqFolder) and isinstance(source, ModelSource)
    assert source.kind == "folder" and source.problems() == []
    assert "int4" in source.describe() and "group size 64" in source.describe()
    assert resolve(str(tiny)) is None and resolve(str(folder / "nothing")) is None and resolve("owner/name") is None


def test_a_session_takes_our_source_for_gptq_folders_only(quantized: Callable[..., Any], tiny: Path) -> None:
    session = Session()
    loaded = session.resolve_model(str(quantized("int4").folder)).load()
    assert loaded.model.tunekit_quantized == "gptq int4"
    assert type(loaded.model.model.layers[0].mlp.up_proj).__name__ == "Linear"
    assert not isinstance(session.resolve_model(str(tiny)), GptqFolder)


def test_the_fingerprint_follows_the_content(quantized: Callable[..., Any], tmp_path: Path) -> None:
    folder = quantized("int4").folder
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    first = GptqFolder(ref="", path=folder).fingerprint()
    assert GptqFolder(ref="", path=copy).fingerprint() == first
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert GptqFolder(ref="", path=copy).fingerprint() != first


def test_problems_are_found_without_reading_weights(quantized: Callable[..., Any], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(quantized("int4").folder, tmp_path / "copy"))
    source = GptqFolder(ref="", path=copy)
    config = json.loads((copy / "config.json").read_text())
    quantization = config["quantization_config"]
    for change, word in (({"checkpoint_format": "marlin"}, "marlin"), ({"bits": 3}, "3 bits")):
        spoilt = {**config, "quantization_config": {**quantization, **change}}
        (copy / "config.json").write_text(json.dumps(spoilt))
        assert any(word in problem for problem in source.problems())
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "tokenizer.json").unlink()
    assert any("tokenizer" in problem for problem in source.problems())
    (copy / "model.safetensors").unlink()
    assert any("weights" in problem for problem in source.problems())


def test_looking_at_a_plan_imports_nothing_heavy(quantized: Callable[..., Any]) -> None:
    code = (
        "import sys, tunekit_gptq.plugin as p, tunekit_gptq.options\n"
        "assert [s.name for s in p.tunekit_quantizers()] == ['gptq']\n"
        "source = p.tunekit_resolve_model(sys.argv[1])\n"
        "assert source.problems() == [] and source.describe() and source.fingerprint()\n"
        "heavy = {'torch', 'transformers', 'gptqmodel', 'optimum', 'datasets', 'numpy', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(quantized("int4").folder)], check=True)
