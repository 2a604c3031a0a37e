"""Turn a trained model into the step's artifact, and prove the merge of an adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.artifacts import Artifact, ModelCard
from tunekit.errors import StepError
from tunekit.plugins.hf.arguments import compute_dtype, computing
from tunekit.plugins.hf.loading import load_folder
from tunekit.plugins.hf.saving import count_parameters, ready_for_use, save_model
from tunekit.plugins.protocols import LoadedModel
from tunekit.storage import storage_errors, sync_tree

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.plugins.hf.training import TrainOutcome

__all__ = ["finish"]

MAX_PROBES = 8
PROBE_TOKENS = 64

# Merging W + s*B*A and adding s*B*A*x to W*x round differently. In float32 that costs 2.6e-6 of the logits' scale in
# a model of 30 layers and 135M parameters, and less in smaller ones; the limit leaves a factor of 40. Half precision
# rounds W + s*B*A to 8 (bfloat16) or 11 (float16) bits, which is what a merge costs there.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_NOISE = {"float32": 2e-5, "float64": 2e-5, "float16": 5e-3, "bfloat16": 3e-2}


def finish(
    ctx: StepContext,
    model: Any,
    tokenizer: Any,
    *,
    outcome: TrainOutcome,
    probes: Sequence[Sequence[int]] = (),
    details: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Artifact:
    """Save the trained model, prove an adapter's merge, hand the model to the next step, and describe the artifact.

    Full training writes ``model/``. Training through ``ctx.adapter`` writes ``adapter/``, merges, writes ``model/``,
    reloads it from disk, and compares on the probes: the reloaded model must compute what base plus adapter computed,
    its weights must be the merged ones bit for bit, and they must differ from the base's.

    Args:
        model: the trained model, with the adapter on it if there is one. It is merged in place.
        probes: token id lists to compare logits on; the first 8 are used, 64 tokens each. None given: fixed random
            sequences from the vocabulary.
        details: further facts for the artifact.
        metrics: further final numbers.

    Raises:
        StepError: code ``merge-proof``.
        ArtifactError: if the disk is full or cannot be written.
    """
    total, trained = count_parameters(model)
    facts: dict[str, Any] = {"parameters": total, "trained_parameters": trained, **(details or {})}
    if outcome.resumed_from_step is not None:
        facts["resumed_from_step"] = outcome.resumed_from_step
    adapter_path = None
    folder = ctx.dir / "model"
    if ctx.adapter is None:
        model = ready_for_use(model)
        save_model(model, tokenizer, folder)
    else:
        adapter_path = "adapter"
        model, facts["merge_proof"] = _merge(ctx, model, tokenizer, folder, probes)
        total, _ = count_parameters(model)
        facts["parameters"] = total
    stored = _dtype_name(model)
    ctx.keep(LoadedModel(model=_as_loaded(model), tokenizer=tokenizer, path=folder))
    return Artifact(
        kind="model",
        model=ModelCard(path=folder.name, parameters=total, dtype=stored),
        adapter_path=adapter_path,
        trained=ctx.step.trains,
        trained_parameters=trained,
        metrics={**outcome.metrics, **(metrics or {})},
        details=facts,
    )


def _default_probes(vocabulary: int, seed: int) -> list[list[int]]:
    """Four fixed random sequences of 32 token ids below ``vocabulary``."""
    import random

    draw = random.Random(seed)
    return [[draw.randrange(vocabulary) for _ in range(32)] for _ in range(4)]


def _merge(
    ctx: StepContext, model: Any, tokenizer: Any, folder: Path, probes: Sequence[Sequence[int]]
) -> tuple[Any, dict[str, Any]]:
    adapter = ctx.adapter
    assert adapter is not None
    adapter_folder = ctx.dir / "adapter"
    model.eval()
    with storage_errors(adapter_folder):
        adapter.save(model, adapter_folder)
        sync_tree(adapter_folder)
    chosen = [list(ids)[:PROBE_TOKENS] for ids in probes if len(ids) > 0][:MAX_PROBES]
    if not chosen:
        chosen = _default_probes(int(model.get_input_embeddings().weight.shape[0]), ctx.seed)
    expected = _logits(model, chosen)
    with adapter.detached(model):
        base = _logits(model, chosen)
    base_diff = _largest_difference(expected, base)
    del base
    frozen = {_tensor_hash(p) for p in model.parameters() if not p.requires_grad}
    merged = ready_for_use(adapter.merge(model))
    save_model(merged, tokenizer, folder)
    hashes = {name: _tensor_hash(p) for name, p in merged.named_parameters()}
    changed = sorted(name for name, value in hashes.items() if value not in frozen)
    reloaded = load_folder(folder, dtype=next(merged.parameters()).dtype).model
    stored = {name: _tensor_hash(p) for name, p in reloaded.named_parameters()}
    actual = _logits(reloaded, chosen)
    del reloaded
    difference = _largest_difference(expected, actual)
    scale = max(1.0, max(float(part.abs().max()) for part in expected))
    dtype = _dtype_name(merged)
    # A merge that is as far from base plus adapter as the base itself has merged nothing, however small the change:
    # where training changed little, the limit shrinks with it, down to the noise of rounding.
    tolerance = min(_TOLERANCE[dtype] * scale, max(0.1 * base_diff, _NOISE[dtype] * scale))
    proof = {
        "max_abs_diff": difference,
        "tolerance": tolerance,
        "base_diff": base_diff,
        "probes": len(chosen),
        "positions": sum(len(ids) for ids in chosen),
        "logit_scale": scale,
        "dtype": dtype,
        "changed_tensors": len(changed),
        "tensors": len(hashes),
    }
    if not changed and base_diff == 0:
        raise _failed(
            ctx,
            "training changed nothing, so the merged weights equal the base's",
            proof,
            fix="raise max_steps or learning_rate, or lower warmup: the first warm-up step has a learning rate of 0",
        )
    if not changed:
        raise _failed(ctx, "the merged weights equal the base's", proof)
    if not difference <= tolerance:
        raise _failed(ctx, f"logits of base plus adapter and of the merged model differ by {difference:.3g}", proof)
    if stored != hashes:
        wrong = sorted(name for name in hashes.keys() | stored.keys() if hashes.get(name) != stored.get(name))
        raise _failed(ctx, f"the weights on disk are not the merged ones ({', '.join(wrong[:3])})", proof)
    return merged, proof


def _failed(ctx: StepContext, why: str, proof: Mapping[str, Any], fix: str = "") -> StepError:
    return StepError(
        f"The merge of the adapter in step {ctx.step.name!r} is wrong: {why}.",
        code="merge-proof",
        found=f"difference {proof['max_abs_diff']:.3g}, tolerance {proof['tolerance']:.3g}, "
        f"base and trained model differ by {proof['base_diff']:.3g}, {proof['changed_tensors']} tensors changed",
        fix=fix or "report it to the author of the adapter; the adapter itself is kept in the step's adapter folder",
        details={"step": ctx.step.name, **proof},
    )


def _as_loaded(model: Any) -> Any:
    """The model in the type that :func:`load_folder` reads it in: a later step must not see whether it was reloaded.

    Trained weights are float32, also where models are loaded in bfloat16; on disk they stay float32. Only parameters
    are cast: rounding the frequencies of rotary positions, which are buffers, would move positions.
    """
    dtype = compute_dtype()
    kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def _logits(model: Any, probes: Sequence[Sequence[int]]) -> list[Any]:
    """One float32 tensor on the CPU per probe: (tokens, vocabulary) of a language model, (classes,) of a classifier,
    (tokens, tags) of a tagger, and the last hidden states, (tokens, hidden), of a body without a head."""
    import torch

    device = next(model.parameters()).device
    with torch.no_grad(), computing(model):
        outputs = (model(input_ids=torch.tensor([list(ids)], device=device)) for ids in probes)
        return [
            (made.logits if hasattr(made, "logits") else made.last_hidden_state)[0].detach().float().cpu()
            for made in outputs
        ]


def _largest_difference(left: Sequence[Any], right: Sequence[Any]) -> float:
    import torch

    # Not Python's max: it passes over a value that is not a number.
    return float(torch.stack([(a - b).abs().max() for a, b in zip(left, right, strict=True)]).max())


def _tensor_hash(tensor: Any) -> str:
    import torch

    data = tensor.detach().contiguous().cpu()
    digest = hashlib.sha256(f"{tuple(data.shape)} {data.dtype}".encode())
    digest.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _dtype_name(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
