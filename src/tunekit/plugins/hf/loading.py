"""Read a model folder, strictly: what is missing is an error, never a random weight."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError, MissingDependencyError
from tunekit.plugins.hf.arguments import compute_dtype, default_device
from tunekit.plugins.hf.silence import quiet
from tunekit.plugins.protocols import LoadedModel

__all__ = ["folder_problems", "load_folder"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


def folder_problems(path: Path) -> list[str]:
    """What would keep :func:`load_folder` from reading ``path``, one sentence each. Imports nothing heavy."""
    if not path.is_dir():
        return [f"{path} is not a folder."]
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            return [
                f"{path} holds an adapter without its base model: "
                "merge it into the base first, or give the folder of the merged model."
            ]
        return [f"{path} is not a model folder: config.json is missing."]
    problems = []
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        return [f"{path / 'config.json'} cannot be read: {error}."]
    if not any(file for pattern in WEIGHT_FILES for file in path.glob(pattern) if "adapter" not in file.name):
        if (path / "adapter_config.json").is_file():
            problems.append(f"{path} holds an adapter without its base model: merge it into the base first.")
        else:
            problems.append(f"{path} holds no weights (model.safetensors or its shards).")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        problems.append(
            f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES[:4])} ...): "
            "save the tokenizer of the model there with tokenizer.save_pretrained(folder)."
        )
    return problems


def load_folder(path: Path, dtype: Any = None) -> LoadedModel:
    """The model and tokenizer in ``path``, on the default device, in evaluation mode.

    The class is the one that wrote the folder: a causal or masked language model, a classifier, a tagger, or a body
    without a head.

    Args:
        path: a folder as ``save_pretrained`` writes it. A GPTQ folder needs gptqmodel and optimum.
        dtype: type of the weights; None: :func:`compute_dtype`.

    Raises:
        ArtifactError: if something is missing or damaged, or the weights do not fit the architecture.
        MissingDependencyError: if the folder is quantized and the package that reads it is missing.
    """
    path = Path(path)
    problems = folder_problems(path)
    if problems:
        code = "no-tokenizer" if "tokenizer" in problems[0] else "model-folder"
        raise ArtifactError(problems[0], code=code, asked=str(path), found="; ".join(problems[1:]))
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    quantization = config.get("quantization_config") or {}
    method = str(quantization.get("quant_method", "")) if quantization else ""
    guard = contextlib.nullcontext()
    if method == "gptq":
        _require({"gptqmodel": "gptqmodel", "optimum": "optimum"}, path)
        guard = untouched_process()  # type: ignore[assignment]
    with quiet(), guard:
        try:
            arguments: dict[str, Any] = {
                "dtype": dtype or compute_dtype(),
                "local_files_only": True,
                "output_loading_info": True,
                # Packed layers choose their kernels by device while they are made; the default would be the CPU.
                "device_map": {"": default_device()} if method else None,
            }
            model, info = _model_class(config).from_pretrained(path, **arguments)
            missing = list(info.get("missing_keys", ()))
            if missing and all(name.startswith("pooler.") for name in missing):
                # An encoder that was saved from under a head that needs none.
                model, info = _model_class(config).from_pretrained(path, add_pooling_layer=False, **arguments)
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except MemoryError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"The model in {path} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}",
                code="model-unreadable",
                asked=str(path),
                fix="copy or make the folder again",
            ) from error
    if not method:
        _check_complete(path, info)
        model = model.to(default_device())
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, path=path)


def _check_complete(path: Path, info: Any) -> None:
    missing = sorted(info.get("missing_keys", ()))
    mismatched = sorted(str(item) for item in info.get("mismatched_keys", ()))
    if missing or mismatched:
        names = missing + mismatched
        raise ArtifactError(
            f"{len(names)} weights of the model in {path} are missing or have another shape.",
            code="weights-missing",
            asked=str(path),
            found=", ".join(names[:5]) + (" ..." if len(names) > 5 else ""),
            fix="copy or make the folder again",
        )


def _model_class(config: dict[str, Any]) -> Any:
    import transformers

    architecture = (config.get("architectures") or [""])[0]
    for ending, auto in (
        ("ForSequenceClassification", "AutoModelForSequenceClassification"),
        ("ForTokenClassification", "AutoModelForTokenClassification"),
        ("ForMaskedLM", "AutoModelForMaskedLM"),
        ("ForPreTraining", "AutoModelForMaskedLM"),
        ("LMHeadModel", "AutoModelForCausalLM"),
        ("Model", "AutoModel"),
    ):
        if architecture.endswith(ending):
            return getattr(transformers, auto)
    return transformers.AutoModelForCausalLM


def _require(packages: dict[str, str], path: Path) -> None:
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"The model in {path} is quantized and needs {' and '.join(missing)}.",
            asked=str(path),
            fix=f"pip install {' '.join(missing)}",
        )


@contextlib.contextmanager
def untouched_process() -> Iterator[None]:
    """Undo what chatty packages do while they are imported and used: environment variables, text on stdout."""
    before = dict(os.environ)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        finally:
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)
