"""Folders with int8 weights as models. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError
from tunekit.plugins import LoadedModel

METHOD = "rtn"
"""Name of the method in ``config.json``."""
SCALE = "_scale"
"""What the name of a scale ends with; before it stands the name of the weight."""


def resolve(ref: str) -> RtnFolder | None:
    """The source behind ``ref`` if the quantizer wrote that folder, else None."""
    folder = Path(ref).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        mine = config["quantization_config"]["quant_method"] == METHOD
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return RtnFolder(ref=ref, folder=folder) if mine else None


@dataclass(kw_only=True)
class RtnFolder:
    """A rounded model. On loading, each weight becomes the number that its code and scale stand for."""

    ref: str
    folder: Path
    kind: str = "folder"

    def describe(self) -> str:
        """One line for people."""
        return f"{METHOD} int8 model folder {self.folder}"

    def problems(self) -> Sequence[str]:
        """What would make ``load`` fail."""
        names = ("model.safetensors", "tokenizer.json")
        return [f"{self.folder} has no {name}." for name in names if not (self.folder / name).is_file()]

    def fingerprint(self) -> str:
        """SHA-256 over the files."""
        digest = hashlib.sha256()
        for file in sorted(path for path in self.folder.iterdir() if path.is_file()):
            with file.open("rb") as stream:
                digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    def load(self) -> LoadedModel:
        """Read the weights; they cannot be trained."""
        import transformers
        from safetensors.torch import load_file

        from tunekit.plugins import hf

        try:
            stored = load_file(self.folder / "model.safetensors")
        except Exception as error:
            raise ArtifactError(
                "The rounded weights cannot be read.", asked=str(self.folder), found=str(error), fix="quantize again"
            ) from error
        weights: dict[str, Any] = {}
        for name, tensor in stored.items():
            if not name.endswith(SCALE):
                scale = stored.get(name + SCALE)
                weights[name] = tensor if scale is None else tensor.float() * scale
        with hf.quiet():
            config = transformers.AutoConfig.from_pretrained(self.folder, local_files_only=True)
            del config.quantization_config
            architecture = getattr(transformers, config.architectures[0])
            model = architecture.from_pretrained(None, config=config, state_dict=weights, dtype=hf.compute_dtype())
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = model.to(hf.default_device()).eval().requires_grad_(False)
        model.is_quantized = True
        model.quantization_method = METHOD
        return LoadedModel(model=model, tokenizer=tokenizer, path=self.folder)
