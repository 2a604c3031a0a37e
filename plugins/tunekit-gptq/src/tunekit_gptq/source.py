"""GPTQ folders as a source of models. Imports nothing heavy until ``load``."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunekit.errors import ArtifactError
from tunekit.plugins.protocols import LoadedModel
from tunekit_gptq.folder import COMPANIONS, layout_problem, quantization_config, weight_files, weights_size

__all__ = ["GptqFolder", "resolve"]

_hashes: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


def resolve(ref: str) -> GptqFolder | None:
    """The source behind ``ref`` if it is a folder with a GPTQ model, else None."""
    path = Path(ref).expanduser()
    return GptqFolder(ref=ref, path=path) if quantization_config(path) is not None else None


@dataclass(kw_only=True)
class GptqFolder:
    """A folder with ``quant_method: gptq`` in its config.

    On CUDA the packed weights are used as they are, through transformers and GPTQModel. Elsewhere they are turned into
    plain linear layers on loading: exactly the numbers that the int4 or int8 weights stand for, at the speed and in
    the memory of an unquantized model.
    """

    ref: str
    path: Path
    kind: str = "folder"

    def describe(self) -> str:
        """Width, group size, folder and size."""
        found = quantization_config(self.path) or {}
        try:
            size = f"{weights_size(self.path) / 1e6:,.1f} MB"
        except ArtifactError:
            size = "no weights"
        return (
            f"gptq int{found.get('bits', '?')} model folder {self.path} (group size {found.get('group_size', '?')}, "
            f"{size}; packed on CUDA, dequantised on loading elsewhere)"
        )

    def problems(self) -> Sequence[str]:
        """Missing weights or tokenizer, or a layout that is not read."""
        from tunekit.plugins.hf.loading import folder_problems

        problems = list(folder_problems(self.path))
        unknown = layout_problem(quantization_config(self.path) or {})
        if unknown:
            problems.append(f"{self.path}: {unknown}.")
        if not problems:
            try:
                weight_files(self.path)
            except ArtifactError as error:
                problems.append(f"{error.message} {error.found}.")
        return problems

    def fingerprint(self) -> str:
        """SHA-256 over names and contents of weights, config and tokenizer.

        Raises:
            ArtifactError: if a file cannot be read.
        """
        digest = hashlib.sha256()
        for file in sorted({*weight_files(self.path), *self._companions()}):
            digest.update(f"{file.name} {_file_hash(file)}\n".encode())
        return digest.hexdigest()

    def load(self) -> LoadedModel:
        """Read the weights. Raises as the loaders in :mod:`tunekit_gptq.weights` do."""
        from tunekit_gptq.weights import load

        return load(self.path)

    def _companions(self) -> list[Path]:
        patterns = ("config.json", *COMPANIONS)
        return [file for pattern in patterns for file in self.path.glob(pattern) if file.is_file()]


def _file_hash(path: Path) -> str:
    try:
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
        with _lock:
            known = _hashes.get(key)
        if known is None:
            with path.open("rb") as stream:
                known = hashlib.file_digest(stream, hashlib.sha256).hexdigest()
            with _lock:
                _hashes[key] = known
        return known
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.", code="unreadable", asked=str(path)) from error
