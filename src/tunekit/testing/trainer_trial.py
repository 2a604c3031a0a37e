"""Running a trainer for its suite: short runs through a pipeline, and what is looked at afterwards."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import math
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.events import CheckpointSaved, Event, MetricLogged
from tunekit.pipeline import Pipeline
from tunekit.plan import digest
from tunekit.plugins.marker import hookimpl
from tunekit.plugins.options import SampleOptions
from tunekit.testing import warm
from tunekit.testing.driver import write_job
from tunekit.testing.model_probes import logits, told
from tunekit.testing.recording import RecordingEvents

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.cancel import CancelToken
    from tunekit.context import StepContext
    from tunekit.plan import AdapterPlan, ResolvedStep
    from tunekit.results import RunResult, StepResult
    from tunekit.session import Session

__all__ = [
    "KeptModel",
    "Trained",
    "Trial",
    "change",
    "disturb_random_states",
    "first_loss",
    "history_losses",
    "import_name",
    "one_thread",
    "plain_json",
    "same_losses",
    "shown_losses",
    "state_of",
    "stop_probability",
    "with_dropout",
    "with_loud_head",
]

_FOREIGN = re.compile(r"(events\.jsonl|\.?lock\w*|__pycache__|.*\.pyc)")
"""Files that tunekit or Python write while a step runs."""


class KeptModel:
    """A plugin that sees what a trainer hands on with ``ctx.keep``, and which files it leaves outside its folder."""

    api_version = 1

    def __init__(self) -> None:
        self.logits: Any = None
        """Logits of the model that was handed on, on fixed token ids; None if none was."""
        self.tokenizer: Any = None
        self.watched: tuple[Path, ...] = ()
        """Folders to look at for stray files; empty: no looking."""
        self.strays: list[str] | None = None
        """Files that are new or changed there after the step; None: no step has run."""

    @hookimpl(wrapper=True)
    def tunekit_run_step(self, step: ResolvedStep, ctx: StepContext) -> Any:
        """Look before and after the step."""
        kept: list[Any] = []
        keep = ctx._keep

        def keeping(loaded: Any) -> None:
            kept.append(loaded)
            keep(loaded)

        ctx._keep = keeping
        before = self._files(ctx)
        artifact = yield
        after = self._files(ctx)
        self.strays = sorted(name for name, stamp in after.items() if before.get(name) != stamp)
        self.logits = logits(kept[-1].model) if kept else None
        self.tokenizer = kept[-1].tokenizer if kept else None
        return artifact

    def _files(self, ctx: StepContext) -> dict[str, tuple[int, int]]:
        own = tuple(folder for folder in (ctx.dir, ctx.cache) if folder is not None)
        found = {}
        for root in self.watched:
            for path in root.rglob("*"):
                if path.is_file() and not any(map(path.is_relative_to, own)) and not _FOREIGN.fullmatch(path.name):
                    facts = path.stat()
                    found[str(path)] = (facts.st_size, facts.st_mtime_ns)
        return found


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run of the trainer and everything it said."""

    result: RunResult
    events: RecordingEvents
    loss_name: str
    early: list[str] = field(default_factory=list)
    """Checkpoints that were reported although nothing was there at that moment."""
    kept: KeptModel | None = None

    @property
    def step(self) -> StepResult:
        """The step that trained."""
        return self.result.steps[-1]

    @property
    def losses(self) -> list[float]:
        """The loss of each optimizer step of this run, in order."""
        return [float(event.values[self.loss_name]) for event in self.logged]

    @property
    def logged(self) -> list[MetricLogged]:
        """What was logged per optimizer step."""
        return [e for e in self.events.of(MetricLogged) if e.global_step > 0 and self.loss_name in e.values]

    @property
    def weights_hash(self) -> str:
        """Hash of the weight files."""
        card = self.step.artifact.model
        return card.weights_hash if card is not None else ""

    def state(self) -> dict[str, Any]:
        """The trained weights, read from disk."""
        model = self.step.model
        return state_of(model.load()[0]) if model is not None else {}


class Trial:
    """Runs one trainer on its suite's model, rows and options.

    Args:
        session: with the trainer's plugin.
        entry: the trainer.
        model: ``(model, tokenizer)``, or None for a trainer that starts from nothing.
        rows: training rows.
        options: options of every run.
        adapter: adapter of every run, or None.
        loss_name: name of the loss among the logged values.
        folder: where runs go, one folder each.
        shared: finished runs that several tests look at, by name.
        kept: a plugin of ``session``, or None.
        plugins: plugins of ``session`` that are not installed.
    """

    def __init__(
        self,
        *,
        session: Session,
        entry: Entry,
        model: Any,
        rows: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        adapter: AdapterPlan | None,
        loss_name: str,
        folder: Path,
        shared: dict[str, Trained],
        kept: KeptModel | None,
        plugins: Sequence[Any],
    ) -> None:
        self.session, self.entry, self.model, self.rows = session, entry, model, list(rows)
        self.options, self.adapter, self.loss_name = dict(options), adapter, loss_name
        self.folder, self.shared, self.kept, self.plugins = folder, shared, kept, plugins
        known: Any = session.options_model(entry.component)
        self.fields = frozenset(getattr(known, "model_fields", {}))
        shows = inspect.isclass(known) and issubclass(known, SampleOptions) and "samples" not in options
        self.samples = 2 if shows else 0
        """Texts that are written before and after in runs that are compared in full; other runs write none."""

    @property
    def stage(self) -> str:
        """Stage of the trainer."""
        return self.entry.component.stage

    def having(self, **options: Any) -> dict[str, Any]:
        """Those of ``options`` that the trainer has."""
        return {name: value for name, value in options.items() if name in self.fields}

    def pipeline(
        self, *, rows: Any = None, model: Any = None, adapter: AdapterPlan | None = None, **options: Any
    ) -> Pipeline:
        """One step with the trainer; ``options`` win over those of the suite."""
        chosen = {**self.options, **options, "method": self.entry.component.id}
        chosen["data"] = self.rows if rows is None else rows
        if self.stage == "pretrain":
            return Pipeline().pretrain(**chosen)
        chosen["adapter"] = adapter or self.adapter
        return getattr(Pipeline(model=model or self.model), self.stage)(**chosen)  # type: ignore[no-any-return]

    def run(
        self,
        name: str,
        *,
        seed: int = 0,
        cancel: CancelToken | None = None,
        on_event: Callable[[Event], None] | None = None,
        events: RecordingEvents | None = None,
        **arguments: Any,
    ) -> Trained:
        """Run :meth:`pipeline` in the work folder ``name`` and keep what is said."""
        events = RecordingEvents() if events is None else events
        early: list[str] = []

        def observe(event: Event) -> None:
            events(event)
            if isinstance(event, CheckpointSaved) and not _holds_files(Path(event.path)):
                early.append(event.path)
            if on_event is not None:
                on_event(event)

        result = self.pipeline(**arguments).run(
            workdir=self.folder / name, seed=seed, on_event=observe, cancel=cancel, session=self.session
        )
        return Trained(result=result, events=events, loss_name=self.loss_name, early=early, kept=self.kept)

    def once(self, name: str, **arguments: Any) -> Trained:
        """:meth:`run`, but only for the first test that asks."""
        if name not in self.shared:
            self.shared[name] = self.run(name, **arguments)
        return self.shared[name]

    def start_state(self, **options: Any) -> dict[str, Any]:
        """The weights that training starts from."""
        return state_of(self.start_model(self.rows, **options)[0])

    def start_model(self, rows: Sequence[Mapping[str, Any]], **options: Any) -> tuple[Any, Any]:
        """Model and tokenizer that training on ``rows`` starts from."""
        if self.model is not None:
            return self.model[0], self.model[1]
        # A trainer that makes its own model shows it when it trains at a rate that moves nothing.
        still = self.having(max_steps=1, learning_rate=1e-12)
        name = f"start-{len(rows)}-{digest([list(rows), options])[:8]}"
        model = self.once(name, rows=list(rows), **{**options, **still}).step.model
        assert model is not None
        loaded: tuple[Any, Any] = model.load()
        return loaded

    def kill(self, pipeline: Pipeline, name: str, at: int) -> int:
        """Run ``pipeline`` in a process that kills itself at the checkpoint of step ``at``; its exit code."""
        names, paths = [], [path for path in sys.path if path]
        for plugin in self.plugins:
            text, path = import_name(plugin)
            names.append(text)
            paths += [path] if path else []
        job = write_job(
            self.folder,
            pipeline,
            workdir=self.folder / name,
            plugins=names,
            seed=0,
            die=(pipeline.plan.steps[-1].name, at),
            name=f"{name}-job",
        )
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        done = warm.run(["-m", "tunekit.testing.driver", job], env=env)
        if done.returncode >= 0:
            sys.stderr.write(done.stderr)
        return done.returncode

    def saved(self, pair: Any) -> str:
        """``(model, tokenizer)`` in a folder of its own."""
        folder = self.folder / f"model-{len(list(self.folder.glob('model-*')))}"
        for part in pair:
            part.save_pretrained(folder)
        return str(folder)


def import_name(plugin: Any) -> tuple[str, str]:
    """How another process imports a plugin: an import string, and a folder that its path needs, or an empty text.

    Raises:
        LookupError: if it cannot: an object, or a class made inside a function.
    """
    if isinstance(plugin, str):
        return plugin, ""
    module = plugin if inspect.ismodule(plugin) else inspect.getmodule(plugin)
    qualname = "" if inspect.ismodule(plugin) else getattr(plugin, "__qualname__", "<locals>")
    if module is None or "<locals>" in qualname:
        raise LookupError(f"{plugin!r} cannot be imported by another process: put it at the top of a module")
    name, folder = module.__name__, ""
    try:
        known = importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        known = False
    if not known or ("." in name and _origin(name) != getattr(module, "__file__", None)):
        # Test files are imported by path; by name they are found next to themselves.
        name, folder = name.rpartition(".")[2], str(Path(str(module.__file__)).parent)
    return (f"{name}:{qualname}" if qualname else name), folder


def _origin(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: with several threads the same run gives other last digits.

    Raises:
        AssertionError: if the block leaves another number of threads.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
        left = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
    assert left == 1, f"global state was changed and not put back: torch number of threads: 1 -> {left}"


def state_of(model: Any) -> dict[str, Any]:
    """Name to a copy of each parameter, in float32 on the CPU; tied ones once."""
    return {name: value.detach().float().cpu().clone() for name, value in model.named_parameters()}


def with_dropout(pair: Any, rate: float) -> Any:
    """A copy of ``(model, tokenizer)`` whose dropout has this rate wherever the architecture has dropout."""
    import torch

    model, tokenizer = copy.deepcopy(pair[0]), pair[1]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        if isinstance(getattr(module, "attention_dropout", None), float | int):
            module.attention_dropout = rate
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout"):
        if isinstance(getattr(model.config, name, None), float | int):
            setattr(model.config, name, rate)
    return model, tokenizer


def with_loud_head(pair: Any) -> Any:
    """``(model, tokenizer)`` with an output layer ten times as large: behind a freshly drawn one that stays frozen, an
    adapter cannot make any token likely."""
    import torch

    with torch.no_grad():
        pair[0].get_output_embeddings().weight.mul_(10.0)
    return pair


def first_loss(run: Trained) -> tuple[float, float | None]:
    """Loss of the first optimizer step, and the number of target tokens it is a mean over, if that was logged."""
    event = run.logged[0]
    tokens = event.values.get("tokens")
    return run.losses[0], None if tokens is None else float(tokens)


def history_losses(step: StepResult, loss_name: str) -> list[tuple[int, float]]:
    """``(optimizer step, loss)`` of the whole training, interruptions included."""
    return [(int(row["step"]), float(row[loss_name])) for row in step.history if loss_name in row]


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def plain_json(values: Mapping[str, Any]) -> bool:
    """Whether ``values`` are JSON types without infinities."""
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def disturb_random_states() -> None:
    """Put the global random generators where nobody expects them."""
    import numpy
    import torch

    random.seed(99)
    numpy.random.seed(99)
    torch.manual_seed(99)


def change(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """Euclidean distance of two sets of weights."""
    return math.sqrt(sum(float(((value - right[name]) ** 2).sum()) for name, value in left.items()))


def stop_probability(model: Any, probes: Sequence[tuple[list[int], int]]) -> float:
    """Mean probability, over ``(token ids, stop id)``, that the stop comes next."""
    import torch

    values = []
    with torch.no_grad():
        for ids, stop in probes:
            ids_on = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
            values.append(float(model.eval()(input_ids=ids_on).logits[0, -1].float().softmax(-1)[stop]))
    return sum(values) / len(values)


def same_losses(left: Sequence[float], right: Sequence[float], what: str, mistake: str) -> None:
    """Raises:
    AssertionError: naming the first optimizer step at which the losses differ, if they do.
    """
    if list(left) == list(right):
        return
    pairs = enumerate(zip(left, right, strict=False), 1)
    first = next((number for number, (a, b) in pairs if a != b), min(len(left), len(right)) + 1)
    measured = f"the losses of {what} part at step {first}: {shown_losses(left)} and {shown_losses(right)}"
    raise AssertionError(told(measured, "the same, bit for bit", mistake))


def shown_losses(losses: Sequence[float]) -> str:
    """Losses as text."""
    return "[" + ", ".join(f"{loss:.7g}" for loss in losses) + "]"
