"""A tokenizer and a model with random weights."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import OptionsError
from tunekit.plugins import hf
from tunekit_transformers.corpus import bounded_sample, texts
from tunekit_transformers.presets import read_architecture
from tunekit_transformers.tokenizer import KINDS, TURN_END, given_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from tunekit.plugins import StepContext
    from tunekit_transformers.options import PretrainOptions

__all__ = ["corpus_tokenizer", "new_model", "own_tokenizer"]

_NOT_SHAPE = ("architectures", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "auto_map")


def own_tokenizer(ctx: StepContext, options: PretrainOptions, *, masked: bool) -> Any:
    """Train the tokenizer, or read the one that an interrupted run of this step trained, or take the one given."""
    from transformers import AutoTokenizer

    folder = ctx.dir / "tokenizer"
    if folder.is_dir():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if options.tokenizer not in KINDS:
        return given_tokenizer(options.tokenizer)
    assert ctx.data is not None
    ctx.progress(0, None, "tokens", "training the tokenizer")
    sample = bounded_sample(texts(ctx, ctx.data), options.tokenizer_sample, ctx.seed)
    tokenizer, _ = corpus_tokenizer(sample, options, masked=masked)
    with hf.storage_errors(folder):
        # Processes that train together each make it; the first to be done decides for all.
        aside = Path(tempfile.mkdtemp(prefix="tokenizer-", suffix=".partial", dir=ctx.dir))
        try:
            tokenizer.save_pretrained(aside)
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return tokenizer


def corpus_tokenizer(sample: Sequence[str], options: PretrainOptions, *, masked: bool) -> tuple[Any, bool]:
    """A tokenizer trained on ``sample``, or the one that the options name; and whether it was trained."""
    if options.tokenizer not in KINDS:
        return given_tokenizer(options.tokenizer), False
    assert options.vocab_size is not None
    tokenizer = train_tokenizer(
        sample,
        options.vocab_size,
        options.context,
        kind=options.tokenizer,
        byte_level=options.byte_level,
        byte_fallback=options.byte_fallback,
        special_tokens=options.special_tokens,
        masked=masked,
    )
    return tokenizer, True


def new_model(options: PretrainOptions, tokenizer: Any, seed: int, *, masked: bool) -> Any:
    """A model with random weights, on the default device in float32.

    Raises:
        OptionsError: code ``architecture`` if transformers refuses it, or its vocabulary is smaller than the
            tokenizer's.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    config = _config(options, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = auto.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise _refused(options, error) from error
    if not masked:
        # A text ends with one token, a turn with another; generation stops at both.
        ends = (tokenizer.eos_token_id, tokenizer.get_vocab().get(TURN_END))
        model.generation_config.eos_token_id = [end for end in dict.fromkeys(ends) if end is not None]
    return model.to(hf.default_device())


def _config(options: PretrainOptions, tokenizer: Any) -> Any:
    from transformers import CONFIG_MAPPING, LlamaConfig, ModernBertConfig

    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "pad", "cls", "sep")
        if getattr(tokenizer, f"{name}_token_id") is not None
    }
    if options.architecture is not None:
        values = read_architecture(options.architecture)
        kind = values.pop("model_type", "")
        if kind not in CONFIG_MAPPING:
            raise OptionsError(
                f"transformers knows no architecture {kind!r}.", code="architecture", fix='{"model_type": "llama", ...}'
            )
        size = values.get("vocab_size") or 0
        if "vocab_size" in values and size < len(tokenizer):
            raise OptionsError(
                f"The architecture has {size} embeddings and the tokenizer {len(tokenizer)} tokens.",
                code="architecture",
                asked=f"architecture with vocab_size={size}",
                fix=f"leave vocab_size out of the architecture, or pretrain(vocab_size={max(size, 300)})",
            )
        known = {name: value for name, value in values.items() if name not in _NOT_SHAPE and name not in ids}
        try:
            return CONFIG_MAPPING[kind](**{**known, "vocab_size": max(size, len(tokenizer)), **ids})
        except (ValueError, TypeError) as error:
            raise _refused(options, error) from error
    shape = options.shape()
    assert shape is not None
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": options.context,
        # Nguyen & Salazar 2019 (arXiv 1910.05895), section 2.2: the library's 0.02 learns slowly in narrow models.
        "initializer_range": math.sqrt(2 / (5 * shape.hidden_size)),
        "tie_word_embeddings": shape.tie_embeddings,
        **ids,
    }
    if shape.family == "modernbert":
        return ModernBertConfig(**common)
    return LlamaConfig(**common, num_key_value_heads=shape.kv_heads)


def _refused(options: PretrainOptions, error: Exception) -> OptionsError:
    return OptionsError(
        f"transformers refuses the architecture: {str(error).strip().splitlines()[0] if str(error) else error!r}",
        code="architecture",
        asked=f"architecture={str(options.architecture)[:200]}",
        fix="correct the config; the models of transformers show what each needs",
    )
