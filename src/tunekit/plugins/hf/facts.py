"""Tokenizers and what is known of a model, without reading a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError
from tunekit.plugins.hf.silence import quiet
from tunekit.plugins.views import ModelFacts

__all__ = ["config_facts", "folder_tokenizer", "model_facts", "token_text"]

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


def config_facts(config: Any, generation_config: Any = None, embeddings: int | None = None) -> ModelFacts:
    """Facts out of a ``transformers`` config.

    Args:
        config: the model's config.
        generation_config: its generation config, or a mapping with the same names; None: ids from ``config``.
        embeddings: rows of the embedding matrix, if they are known; None: the config's ``vocab_size``.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = next((value for name in _POSITIONS if isinstance(value := getattr(text, name, None), int)), None)
    rows = embeddings if embeddings is not None else getattr(text, "vocab_size", None)
    if generation_config is None:
        generation_config = text
    stops = (
        generation_config.get("eos_token_id")
        if isinstance(generation_config, dict)
        else getattr(generation_config, "eos_token_id", None)
    )
    listed = stops if isinstance(stops, list | tuple) else [] if stops is None else [stops]
    return ModelFacts(
        positions=positions if positions and positions > 0 else None,
        embeddings=rows if isinstance(rows, int) else None,
        stop_ids=tuple(int(stop) for stop in listed),
        config=config.to_dict(),
    )


def model_facts(model: Any) -> ModelFacts:
    """Facts of a ``transformers`` model that is in memory."""
    embeddings = int(model.get_input_embeddings().weight.shape[0])
    return config_facts(model.config, getattr(model, "generation_config", None), embeddings)


def token_text(tokenizer: Any, token: int) -> str:
    """What one token writes in the middle of a text.

    Decoders of SentencePiece's kind drop the blank in front of a text, and with it that of a token decoded alone.
    """
    alone = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str):
        return alone
    blanks = len(piece) - len(piece.lstrip("\u2581"))
    return " " * (blanks - (len(alone) - len(alone.lstrip(" ")))) + alone


def folder_tokenizer(path: Path) -> tuple[Any, ModelFacts]:
    """The tokenizer in a model folder, and what its config says of the model.

    Raises:
        ArtifactError: if something is missing or damaged.
    """
    from tunekit.plugins.hf.loading import folder_problems

    path = Path(path)
    problems = [text for text in folder_problems(path) if "holds no weights" not in text]
    if problems:
        code = "no-tokenizer" if "tokenizer" in problems[0] else "model-folder"
        raise ArtifactError(problems[0], code=code, asked=str(path), found="; ".join(problems[1:]))
    with quiet():
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            generation = None
            if (path / "generation_config.json").is_file():
                generation = GenerationConfig.from_pretrained(path, local_files_only=True)
        except MemoryError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"The tokenizer in {path} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}",
                code="model-unreadable",
                asked=str(path),
                fix="copy or make the folder again",
            ) from error
    return tokenizer, config_facts(config, generation)
