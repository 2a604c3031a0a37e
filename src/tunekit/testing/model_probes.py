"""What the suites for adapters, quantizers and exporters measure on models, folders and steps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.cancel import CancelToken
from tunekit.errors import RunCancelled
from tunekit.events import Event, StepStarted
from tunekit.plugins.marker import hookimpl
from tunekit.testing.fakes import tiny_pair
from tunekit.testing.recording import RecordingEvents

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.pipeline import Pipeline
    from tunekit.plan import ResolvedStep
    from tunekit.plugins.protocols import LoadedModel
    from tunekit.results import RunResult, StepResult
    from tunekit.session import Session

__all__ = [
    "CORE_FILES",
    "Ran",
    "Seen",
    "StepWatch",
    "changed_tensors",
    "distance",
    "expressive_pair",
    "file_hashes",
    "logits",
    "peft_config",
    "probe_rows",
    "run_cancelled",
    "run_watched",
    "scale_of",
    "tensor_hashes",
    "tied",
    "told",
    "tokenizer_differences",
]

CORE_FILES = ("options.json", "result.json", "metrics.jsonl")
"""Files in a step's folder that tunekit itself writes."""

_TEXTS = ("Say red 3 times.", "Zürich: 3 €\n\tx = {y}", " two  spaces ", "")


def told(measured: str, expected: str, mistake: str) -> str:
    """A failure message: what was measured, what it should be, and which mistake usually does that."""
    return f"{measured}\n  expected: {expected}\n  usual mistake: {mistake}"


# ---------------------------------------------------------------- models


def expressive_pair(*, tied: bool = True, hidden: int = 32, **arguments: Any) -> tuple[Any, Any]:
    """A tiny model and its tokenizer. Its matrices are larger than freshly drawn ones, so that every layer shows in the
    logits: an error in a freshly drawn model hides behind the residual stream."""
    import torch

    model, tokenizer = tiny_pair(tied=tied, hidden=hidden, **arguments)
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and id(parameter) not in embeddings:
                parameter.mul_(3.0)
    return model, tokenizer


def probe_rows(vocabulary: int, rows: int = 4, tokens: int = 24, seed: int = 0) -> list[list[int]]:
    """Fixed random token ids."""
    draw = random.Random(seed)
    return [[draw.randrange(vocabulary) for _ in range(tokens)] for _ in range(rows)]


def logits(model: Any, rows: Sequence[Sequence[int]] | None = None) -> Any:
    """Logits as a float32 tensor on the CPU, shape (rows, tokens, vocabulary). The mode of the model is left alone."""
    import torch

    table = model.get_input_embeddings().weight
    ids = torch.tensor([list(row) for row in rows or probe_rows(int(table.shape[0]))], device=table.device)
    with torch.no_grad():
        return model(input_ids=ids).logits.detach().float().cpu()


def distance(left: Any, right: Any) -> float:
    """Largest absolute difference of two tensors; infinite if shapes differ or a value is no number."""
    if left.shape != right.shape:
        return float("inf")
    found = float((left - right).abs().max())
    return found if found == found else float("inf")


def scale_of(values: Any) -> float:
    """Largest absolute value, at least 1."""
    return max(1.0, float(values.abs().max()))


def tied(model: Any) -> bool:
    """Whether input and output embeddings are one tensor."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    return inputs is not None and outputs is not None and inputs.weight is outputs.weight


def tensor_hashes(model: Any) -> dict[str, str]:
    """Name to SHA-256 of type, shape and bytes, for every tensor of the model's state; and its config."""
    import torch

    found = {}
    for name, tensor in model.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
        if plain.numel():
            digest.update(memoryview(plain.reshape(-1).view(torch.uint8).numpy()))
        found[name] = digest.hexdigest()
    config = getattr(model, "config", None)
    if config is not None:
        found["(config)"] = json.dumps(config.to_dict(), sort_keys=True, default=str)
    found["(class)"] = f"{type(model).__name__}, {'training' if model.training else 'evaluation'} mode"
    return found


def changed_tensors(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose value differs, or that one side lacks."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def tokenizer_differences(before: Any, after: Any) -> list[str]:
    """In which of chat template, special tokens and encoding two tokenizers differ, one sentence each."""
    found = []
    for what in ("bos_token", "eos_token", "pad_token", "unk_token"):
        left, right = getattr(before, what, None), getattr(after, what, None)
        if left != right:
            found.append(f"{what} was {left!r} and is {right!r}")
        elif left is not None and getattr(before, f"{what}_id") != getattr(after, f"{what}_id"):
            ids = getattr(before, f"{what}_id"), getattr(after, f"{what}_id")
            found.append(f"the id of {what} was {ids[0]} and is {ids[1]}")
    left, right = getattr(before, "chat_template", None), getattr(after, "chat_template", None)
    if left != right:
        found.append(f"chat_template was {_short(left)} and is {_short(right)}")
    for text in (*_TEXTS, "".join(token for token in before.all_special_tokens if token)):
        pair = list(before(text)["input_ids"]), list(after(text)["input_ids"])
        if pair[0] != pair[1]:
            found.append(f"{text!r} was {pair[0][:8]} and is {pair[1][:8]} in token ids")
    return found


def _short(text: Any) -> str:
    return "none" if text is None else f"{str(text)[:40]!r} ({len(str(text))} characters)"


def peft_config(config: Any) -> Any:
    """A PEFT config that leaves this process alone when it is put on a model of plain linear layers.

    For each layer PEFT asks every quantization library that it finds whether the layer is one of theirs, and imports
    them for it. One of them prints, writes environment variables and leaves threads running.
    """
    import peft
    import torch

    if isinstance(config, peft.LoraConfig) and hasattr(config, "_register_custom_module"):
        from peft.tuners.lora.layer import dispatch_default

        config._register_custom_module({torch.nn.Linear: dispatch_default})
    return config


# ---------------------------------------------------------------- files


def file_hashes(folder: Path, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Relative name to SHA-256 of every file below ``folder``; empty if there is no such folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in leave_out
    }


# ---------------------------------------------------------------- steps


@dataclass
class Seen:
    """What was seen of one step while it ran."""

    input: LoadedModel
    """The input model, the very object that the component was given."""
    before: dict[str, str]
    """Its tensors before the step."""
    after: dict[str, str] = field(default_factory=dict)
    """Its tensors after the step."""
    kept: LoadedModel | None = None
    """What the component handed on with ``ctx.keep``."""


class StepWatch:
    """A plugin that looks at the model of the steps it is told to watch, before and after they run."""

    api_version = 1

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds
        self.seen: dict[str, Seen] = {}

    @hookimpl(wrapper=True)
    def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Any:
        """Compare the input model before and after the step, and see what is handed on."""
        if step.kind not in self.kinds:
            return (yield)
        loaded = ctx.model()
        seen = self.seen[step.name] = Seen(input=loaded, before=tensor_hashes(loaded.model))
        keep = ctx._keep

        def keeping(kept: LoadedModel) -> None:
            seen.kept = kept
            keep(kept)

        ctx._keep = keeping
        try:
            return (yield)
        finally:
            seen.after = tensor_hashes(loaded.model)


@dataclass(frozen=True)
class Ran:
    """A run and what was seen of it."""

    result: RunResult
    step: StepResult
    """The step that is tested: the last one."""
    seen: Seen | None
    events: RecordingEvents
    strays: list[str]
    """What the run left outside its work folder, in the current directory."""


@contextlib.contextmanager
def _elsewhere(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        yield


def run_watched(pipeline: Pipeline, session: Session, workdir: Path, watch: StepWatch | None = None) -> Ran:
    """Run a pipeline with seed 0 in ``workdir``, with an empty folder beside it as the current directory."""
    events = RecordingEvents()
    here = workdir.with_name(f"{workdir.name}-cwd")
    with _elsewhere(here):
        result = pipeline.run(session=session, workdir=workdir, seed=0, on_event=events)
    step = result.steps[-1]
    strays = sorted(path.relative_to(here).as_posix() for path in here.rglob("*"))
    return Ran(result, step, watch.seen.get(step.name) if watch else None, events, strays)


def run_cancelled(pipeline: Pipeline, session: Session, workdir: Path, kind: str) -> str:
    """Run a pipeline and cancel it when its first step of ``kind`` begins. What is wrong, or an empty text."""
    cancel, started = CancelToken(), []

    def observe(event: Event) -> None:
        if isinstance(event, StepStarted) and event.kind == kind:
            started.append(event)
            cancel.cancel("the suite cancels this step")

    try:
        pipeline.run(session=session, workdir=workdir, seed=0, on_event=observe, cancel=cancel)
    except RunCancelled:
        if not started:
            return f"the run ended before a step {kind} began"
    else:
        return "the step ran to its end"
    published = f"{started[0].index:02d}-"
    left = sorted(path.name for path in workdir.iterdir() if path.is_dir() and path.name.startswith(published))
    finished = [name for name in left if (workdir / name / "result.json").is_file()]
    return f"a finished step was published in {', '.join(finished)}" if finished else ""
