"""Load a GGUF file as a plain model that can be trained, merged and saved."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError, MissingDependencyError
from tunekit.plugins import ModelFacts
from tunekit.plugins.hf import compute_dtype, config_facts, default_device, quiet, strip_quantization
from tunekit.plugins.protocols import LoadedModel

__all__ = ["gguf_tokenizer", "load_gguf"]

_lock = threading.Lock()


def load_gguf(path: Path, dtype: Any = None) -> LoadedModel:
    """The dequantised model and its tokenizer, on the default device, in evaluation mode.

    Args:
        path: the GGUF file.
        dtype: type of the weights; None: :func:`tunekit.plugins.hf.compute_dtype`.

    Raises:
        ArtifactError: if the file is damaged or its architecture is not supported.
        MissingDependencyError: if the package gguf is missing.
    """
    _require_reader(path)
    with quiet(), _read_once():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            model, info = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=dtype or compute_dtype(),
                local_files_only=True,
                output_loading_info=True,
                **_unpacked(path),
            )
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error
    packed = [name for name, module in model.named_modules() if type(module).__name__.startswith("Gguf")]
    missing = sorted(info.get("missing_keys", ()))
    if packed or missing:
        raise ArtifactError(
            f"The GGUF file {path} cannot be read as a plain model.",
            code="weights-missing",
            found=f"{len(missing)} weights are missing and {len(packed)} stay quantized: "
            + ", ".join((missing + packed)[:5]),
            fix="pass the folder of the unquantized model",
        )
    model = strip_quantization(model).to(default_device())
    model.config.architectures = [type(model).__name__]
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, path=None)


def gguf_tokenizer(path: Path) -> tuple[Any, ModelFacts]:
    """The tokenizer in a GGUF file, and what its header says of the model. Raises as :func:`load_gguf` does."""
    _require_reader(path)
    with quiet(), _read_once():
        from transformers import AutoConfig, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error
    return tokenizer, config_facts(config)


def _require_reader(path: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(
            f"Reading {path} needs the package gguf.", asked=str(path), fix="pip install 'gguf>=0.17'"
        )


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"The GGUF file {path} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}",
        code="model-unreadable",
        asked=str(path),
        fix="copy the file again, or pass the folder of the unquantized model",
    )


def _unpacked(path: Path) -> dict[str, Any]:
    """Ask for dequantised weights where transformers would keep blocks: its newer reader, for some architectures."""
    try:
        from transformers.integrations.gguf.reader import read_gguf_metadata
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:
        return {}
    metadata, _ = read_gguf_metadata(str(path))
    if not is_gguf_arch_supported(metadata["general.architecture"]):
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Keep the library from parsing one file three times and from drawing a bar that none of its switches turns off.

    It reads the header anew for the tokenizer, the config and the weights, and builds the table of tensor names for
    every module: more than half of the time. For as long as the block lasts, both are remembered.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    with _lock:
        before = (gguf.GGUFReader, gguf.get_tensor_name_map, reader.tqdm)
        gguf.GGUFReader = functools.cache(gguf.GGUFReader)
        gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
        reader.tqdm = lambda items, **kwargs: items
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map, reader.tqdm = before
