"""What a model writes before and after a step: completions of fixed prompts, who wins, and how far it went."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit._statistics import t95, wilson
from tunekit.data import as_messages, to_text
from tunekit.errors import DataError, RunCancelled, TunekitError
from tunekit.plugins.hf.facts import model_facts
from tunekit.plugins.hf.prompts import score_samples
from tunekit.plugins.hf.rewards import RewardScores
from tunekit.plugins.hf.sampling import Sampled, prompt_ids, sample
from tunekit.plugins.hf.training import _is_main
from tunekit.storage import storage_errors

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.data import Dataset

__all__ = [
    "Samples",
    "compare_samples",
    "draw_samples",
    "fixed_prompts",
    "kl_between",
    "prompt_row",
    "start_samples",
    "win_rate",
]

Row = Mapping[str, Any]

FILE = "samples.jsonl"
TOKENS = 64
"""Longest completion where the options do not say."""
_COPIED_BYTES = 4 * 2**30
"""Largest model of which a copy is kept in memory, where its files cannot be read again."""
_SHOWN_ROWS, _SHOWN_PROMPT, _SHOWN_TEXT = 16, 1000, 2000
_POSITIONS = 64
_LOOKED_AT = 4096


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a model writes behind some prompts, one completion each."""

    rows: tuple[Row, ...]
    """The prompts, as :func:`prompt_row` gives them."""
    prompts: tuple[tuple[int, ...], ...]
    """Their token ids."""
    completions: tuple[Sampled, ...]
    scores: RewardScores | None
    """By the step's rewards; None: it has none."""
    start: Any = field(default=None, repr=False)
    """A copy of the model, where it could not be had again after the step; see :func:`start_samples`."""
    problem: str = ""
    """Why there are no completions, or no scores although the step has rewards; see :func:`start_samples`."""


def prompt_row(row: Row) -> dict[str, Any] | None:
    """The prompt of a canonical row: ``prompt`` (text or messages), ``tools`` and ``columns``; of a conversation, what
    stands before its last answer. None: it has none."""
    made = {"tools": row.get("tools") or None, "columns": dict(row.get("columns") or {})}
    if row.get("prompt"):
        return {"prompt": row["prompt"], **made}
    messages = list(row.get("messages") or ())
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    return {"prompt": messages, **made} if messages else None


def fixed_prompts(data: Dataset | None, count: int) -> list[dict[str, Any]]:
    """``count`` different prompts of a data set, spread evenly over its first 4,096 rows; fewer if it has fewer."""
    if data is None or count < 1:
        return []
    found: dict[str, dict[str, Any]] = {}
    for _, row in zip(range(_LOOKED_AT), data.rows(), strict=False):
        made = prompt_row(row)
        if made is not None:
            found.setdefault(json.dumps([made["prompt"], made["tools"]], default=str), made)
    rows = list(found.values())
    if len(rows) <= count:
        return rows
    return [rows[number * len(rows) // count] for number in range(count)]


def draw_samples(
    ctx: StepContext,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int | None = None,
) -> Samples:
    """One completion of each prompt, scored by the step's rewards. The same seed draws with the same random numbers,
    so that two models that are alike write alike. Prompts that leave the model no position are left out.

    Args:
        ctx: the step.
        model: a causal model, with its adapter if there is one.
        tokenizer: its tokenizer.
        rows: as :func:`prompt_row` gives them.
        max_new_tokens: longest completion.
        temperature: 0: the likeliest token each time.
        seed: of the random numbers; None: the step's.

    Raises:
        StepError: if a reward fails, or logits are not finite.
        RunCancelled: after a cancel.
    """
    made = _unscored(ctx, model, tokenizer, rows, max_new_tokens, temperature, seed)
    scores = score_samples(ctx, made.rows, made.completions) if ctx.rewards and made.rows else None
    return replace(made, scores=scores)


def _unscored(
    ctx: StepContext,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int | None = None,
) -> Samples:
    positions = model_facts(model).positions
    kept, ids = [], []
    for row in rows:
        made = prompt_ids(tokenizer, row["prompt"], row.get("tools"))
        if positions is None or len(made) < positions:
            kept.append(row)
            ids.append(tuple(made))
    drawn = sample(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=ctx.seed if seed is None else seed,
        cancel=ctx.cancel,
    )
    completions = tuple(one for (one,) in drawn)
    return Samples(rows=tuple(kept), prompts=tuple(ids), completions=completions, scores=None)


def _tolerant(ctx: StepContext, model: Any, tokenizer: Any, rows: Sequence[Row], when: str) -> Samples:
    """As :func:`draw_samples`; what fails is noticed, and left out: a report is worth less than a training."""
    try:
        made = _unscored(ctx, model, tokenizer, rows, _limit(ctx))
    except RunCancelled:
        raise
    except Exception as error:  # noqa: BLE001
        problem = _noticed(ctx, f"No samples could be drawn {when} training", error)
        return Samples(rows=(), prompts=(), completions=(), scores=None, problem=problem)
    if not ctx.rewards or not made.rows:
        return made
    try:
        return replace(made, scores=score_samples(ctx, made.rows, made.completions))
    except RunCancelled:
        raise
    except Exception as error:  # noqa: BLE001
        return replace(made, problem=_noticed(ctx, f"The samples drawn {when} training could not be scored", error))


def _noticed(ctx: StepContext, what: str, error: Exception) -> str:
    lines = str(error).splitlines()
    problem = f"{what}: {lines[0] if lines else type(error).__name__}"
    ctx.notice("samples", problem)
    return problem


def start_samples(
    ctx: StepContext, model: Any, tokenizer: Any, prompts: Sequence[Row] | None = None, *, strict: bool = False
) -> Samples | None:
    """What the model writes before the step changes it; give the result to :func:`compare_samples` afterwards.

    Without an adapter, the model before the step is gone after it. It is read again from its folder; where it has none,
    a copy is kept, up to 4 GiB.

    Args:
        ctx: the step. Its options are a :class:`tunekit.plugins.SampleOptions`.
        model: the model, with its adapter if there is one, before the first update.
        tokenizer: its tokenizer.
        prompts: rows; None: ``ctx.options.samples`` rows of the held-out data, or else of the data.
        strict: whether a reward that fails is an error, as where training cannot do without it. Otherwise it is
            noticed, and there is no win rate.

    Returns:
        None if no samples are asked for.

    Raises:
        DataError: for a row of ``prompts`` without a prompt.
        StepError: with ``strict``, if a reward fails, or logits are not finite.
        RunCancelled: after a cancel.
    """
    count = int(getattr(ctx.options, "samples", 0) or 0)
    if not count:
        return None
    rows = fixed_prompts(ctx.validation or ctx.data, count) if prompts is None else _prompt_rows(prompts)
    if not rows:
        return None
    ctx.progress(0, None, "samples", "samples before training")
    if strict:
        made = draw_samples(ctx, model, tokenizer, rows, max_new_tokens=_limit(ctx))
    else:
        made = _tolerant(ctx, model, tokenizer, rows, "before")
    if made.rows and ctx.adapter is None and ctx.input_path is None and _bytes(model) <= _COPIED_BYTES:
        return replace(made, start=copy.deepcopy(model).requires_grad_(False))
    return made


def _prompt_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = [prompt_row(row) for row in rows]
    if None in found:
        raise DataError("A row for samples has no prompt.", code="no-prompt", asked="a row with prompt or messages")
    return [row for row in found if row is not None]


def _limit(ctx: StepContext) -> int:
    options = ctx.options
    return int(getattr(options, "sample_tokens", None) or getattr(options, "max_new_tokens", None) or TOKENS)


def _bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def compare_samples(
    ctx: StepContext,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Row] | None = None,
    before: Samples | None = None,
) -> dict[str, Any]:
    """What a trained model writes beside what it wrote before, for the artifact's details and the report.

    Call it after training and before :func:`tunekit.plugins.hf.finish`, which merges the adapter. Both models draw
    with the same random numbers, at temperature 1. All texts go to ``samples.jsonl`` in the step's folder. Of several
    processes each does the same work, and the main one writes the file. What fails here is noticed, and told in the
    place of the number: a finished training is not lost for it.

    Args:
        ctx: the step.
        model: the trained model, with its adapter if there is one.
        tokenizer: its tokenizer.
        prompts: rows; None: those of ``before``.
        before: what :func:`start_samples` gave. None: through an adapter it is drawn now, with the adapter off;
            otherwise there is nothing to compare with.

    Returns:
        ``samples``: ``rows`` (``prompt``, ``before``, ``after``, their tokens, and with rewards their scores),
        ``temperature``, ``max_new_tokens``, ``cut_off`` (completions of ``before`` and ``after`` that did not end
        within them). ``win_rate``, with rewards: see :func:`win_rate`. ``kl_to_start``: see :func:`kl_between`. Each
        is ``{"problem": ...}`` where it failed, or where the model before the step cannot be had. Nothing where there
        is nothing to compare.

    Raises:
        RunCancelled: after a cancel.
    """
    if before is None and ctx.adapter is not None:
        with ctx.adapter.detached(model):
            before = start_samples(ctx, model, tokenizer, prompts)
    if before is None or not (before.rows or before.problem):
        return {}
    after = before
    if before.rows:
        ctx.progress(0, None, "samples", "samples after training")
        after = _tolerant(ctx, model, tokenizer, before.rows, "after")
    if not after.rows:
        return {"samples": {"problem": after.problem}}
    if _is_main():  # every process has drawn the same completions
        _write(ctx.dir / FILE, before, after)
    made: dict[str, Any] = {
        "samples": {
            "n": len(after.rows),
            "temperature": 1.0,
            "max_new_tokens": _limit(ctx),
            "cut_off": {
                name: sum(not one.finished for one in side.completions)
                for name, side in (("before", before), ("after", after))
            },
            "file": FILE,
            "rows": [_shown(line) for line in _lines(before, after)[:_SHOWN_ROWS]],
        }
    }
    if before.scores is not None and after.scores is not None:
        made["win_rate"] = win_rate(before.scores.total, after.scores.total)
        made["win_rate"]["by"] = {
            reward.name: {"before": before.scores.mean(reward.name), "after": after.scores.mean(reward.name)}
            for reward in ctx.rewards
        }
    elif before.problem or after.problem:
        made["win_rate"] = {"problem": before.problem or after.problem}
    try:
        with _start(ctx, model, before) as start:
            made["kl_to_start"] = kl_between(
                model, start, after.prompts, [one.ids for one in after.completions], cancel=ctx.cancel
            )
    except RunCancelled:
        raise
    except _Gone as reason:
        made["kl_to_start"] = {"problem": str(reason)}
    except Exception as error:  # noqa: BLE001
        made["kl_to_start"] = {"problem": _noticed(ctx, "The divergence from the start could not be measured", error)}
    return made


def win_rate(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """How often the second of two scores of the same prompts is the higher one; a tie is half a win.

    Returns:
        ``value``, ``ci_low`` and ``ci_high`` (Wilson's 95% interval), ``n``, ``wins``, ``ties``, ``losses``;
        ``reward_before`` and ``reward_after`` (means); ``gain`` (mean difference) and ``gain_stderr`` (its standard
        error, None for one prompt).
    """
    n = len(before)
    if not n or n != len(after):
        raise ValueError(f"{n} scores before, {len(after)} after")
    wins = sum(new > old for old, new in zip(before, after, strict=True))
    ties = sum(new == old for old, new in zip(before, after, strict=True))
    value = (wins + ties / 2) / n
    low, high = wilson(wins + ties / 2, n)  # type: ignore[arg-type]
    gains = [new - old for old, new in zip(before, after, strict=True)]
    gain = math.fsum(gains) / n
    spread = math.sqrt(math.fsum((each - gain) ** 2 for each in gains) / (n - 1)) if n > 1 else None
    return {
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "wins": wins,
        "ties": ties,
        "losses": n - wins - ties,
        "reward_before": math.fsum(before) / n,
        "reward_after": math.fsum(after) / n,
        "gain": gain,
        "gain_stderr": None if spread is None else spread / math.sqrt(n),
    }


def kl_between(
    model: Any,
    start: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    cancel: Any = None,
) -> dict[str, Any]:
    """KL divergence of ``model`` from ``start``, in nats, on completions that ``model`` drew at temperature 1.

    At each position it is summed over the vocabulary, not estimated from the token that was drawn: never below zero,
    and of less variance (Amini et al. 2025, arXiv:2504.10637).

    Args:
        model: the policy.
        start: the other model, or a context manager's factory in which ``model`` computes what the other one does.
        prompts: token ids.
        completions: token ids, one completion of each prompt.
        cancel: looked at before each completion.

    Returns:
        ``per_token``, ``per_sequence`` (mean over the completions), ``stderr`` (of ``per_sequence``; None for one),
        ``ci_half`` (half of its 95% interval), ``sequences`` and ``tokens``.
    """
    import torch

    sums: list[float] = []
    tokens = 0
    states = [(each, each.training) for each in (model, start) if hasattr(each, "training")]
    for each, _ in states:
        each.eval()
    try:
        with torch.no_grad():
            for prompt, completion in zip(prompts, completions, strict=True):
                if cancel is not None:
                    cancel.raise_if_cancelled()
                if not len(prompt) or not len(completion):
                    continue
                policy = _logits(model, prompt, completion)
                if hasattr(start, "forward"):
                    other = _logits(start, prompt, completion)
                else:
                    with start():
                        other = _logits(model, prompt, completion)
                total = 0.0
                for begin in range(0, len(completion), _POSITIONS):
                    p = policy[begin : begin + _POSITIONS].float().log_softmax(-1)
                    q = other[begin : begin + _POSITIONS].to(p.device).float().log_softmax(-1)
                    total += float((p.exp() * (p - q)).sum(-1).clamp(min=0).double().sum())
                sums.append(total)
                tokens += len(completion)
    finally:
        for each, training in states:
            each.train(training)
    n = len(sums)
    if not n:
        return {"per_token": 0.0, "per_sequence": 0.0, "stderr": None, "ci_half": None, "sequences": 0, "tokens": 0}
    mean = math.fsum(sums) / n
    error = math.sqrt(math.fsum((each - mean) ** 2 for each in sums) / (n - 1) / n) if n > 1 else None
    return {
        "per_token": math.fsum(sums) / tokens,
        "per_sequence": mean,
        "stderr": error,
        "ci_half": None if error is None else t95(n - 1) * error,
        "sequences": n,
        "tokens": tokens,
    }


def _logits(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Any:
    """(tokens of the completion, vocabulary)."""
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *completion]], device=device)
    return model(input_ids=ids).logits[0, len(prompt) - 1 : -1]


class _Gone(Exception):
    """The model before the step cannot be had."""


@contextlib.contextmanager
def _start(ctx: StepContext, model: Any, before: Samples) -> Iterator[Any]:
    """The model before the step, or the factory of a context in which ``model`` is it."""
    if ctx.adapter is not None:
        adapter = ctx.adapter
        yield lambda: adapter.detached(model)
    elif before.start is not None:
        yield before.start
    elif ctx.input_path is not None:
        try:
            loaded = ctx.load_model(str(ctx.input_path))
        except TunekitError as error:
            raise _Gone(str(error).splitlines()[0]) from error
        yield loaded.model
    else:
        raise _Gone("the model before the step has no folder and is too large to keep a copy of")


def _lines(before: Samples, after: Samples) -> list[dict[str, Any]]:
    lines = []
    for number, row in enumerate(after.rows):
        line: dict[str, Any] = {"prompt": row["prompt"]}
        for name, side in (("before", before), ("after", after)):
            one = side.completions[number]
            line[name] = one.text
            line[f"{name}_tokens"] = len(one.ids)
            line[f"{name}_finished"] = one.finished
            if side.scores is not None:
                line[f"{name}_score"] = side.scores.total[number]
        lines.append(line)
    return lines


def _shown(line: Mapping[str, Any]) -> dict[str, Any]:
    prompt = line["prompt"]
    text = prompt if isinstance(prompt, str) else to_text(as_messages(prompt))
    text = text if len(text) <= _SHOWN_PROMPT else "… " + text[-_SHOWN_PROMPT:]
    cut = {
        name: line[name] if len(line[name]) <= _SHOWN_TEXT else line[name][:_SHOWN_TEXT] + " …"
        for name in ("before", "after")
    }
    return {**line, "prompt": text, **cut}


def _write(path: Path, before: Samples, after: Samples) -> None:
    aside = path.with_name(path.name + ".partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as stream:
            for line in _lines(before, after):
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        aside.replace(path)
