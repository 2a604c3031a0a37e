"""What a run gives back."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import storage
from tunekit._stream import read_metrics
from tunekit.artifacts import Artifact, ModelCard, Score
from tunekit.cancel import CancelToken
from tunekit.errors import ArtifactError, DataError, TunekitError, UnknownNameError, nearest
from tunekit.events import Event

if TYPE_CHECKING:
    from tunekit.comparison import RunComparison
    from tunekit.plugins.protocols import LoadedModel
    from tunekit.session import Session

__all__ = ["ModelRef", "RunHandle", "RunResult", "StepResult"]


class ModelRef:
    """A model on disk. Nothing is read until :meth:`load` or :meth:`generate`, and then once."""

    def __init__(self, path: Path, card: ModelCard, session: Session) -> None:
        self.path = path
        """Folder of the model, loadable with ``transformers``."""
        self.card = card
        """What is known without loading: parameters, size, hash, quantization."""
        self._session = session
        self._loaded: LoadedModel | None = None

    def __repr__(self) -> str:
        kind = self.card.quantized or self.card.dtype
        return f"ModelRef({str(self.path)!r}, {kind}, {self.card.parameters:,} parameters)"

    def _get(self) -> LoadedModel:
        if self._loaded is None:
            found = storage.weights_digest(self.path)
            if found != self.card.weights_hash:
                raise ArtifactError(
                    f"The weights in {self.path} are not the ones this run wrote.",
                    code="weights-changed",
                    asked=f"weights {self.card.weights_hash[:12]}",
                    found=f"weights {found[:12]}",
                    fix="run the step again in a new workdir",
                )
            self._loaded = self._session.resolve_model(str(self.path)).load()
        return self._loaded

    def load(self) -> tuple[Any, Any]:
        """The model and its tokenizer: ``(transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)``.

        Raises:
            ArtifactError: if the files are missing, damaged, or not the ones this run wrote.
        """
        loaded = self._get()
        return loaded.model, loaded.tokenizer

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        max_new_tokens: int = 64,
        chat: bool | None = None,
        **generate_options: Any,
    ) -> str:
        """Continue ``prompt`` and return the new text. Greedy unless ``generate_options`` say otherwise.

        Args:
            prompt: text, or messages ``[{"role": ..., "content": ...}]``.
            max_new_tokens: longest answer in tokens.
            chat: put a text prompt through the chat template as a user message. None: if the tokenizer has a template.
            generate_options: passed to ``model.generate``, such as ``do_sample=True, temperature=0.7``.
        """
        model, tokenizer = self.load()
        use_chat = bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat
        if use_chat or not isinstance(prompt, str):
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = tokenizer(prompt, return_tensors="pt")
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask") if name in inputs}
        options = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, **generate_options}
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
        new_tokens = output[0][inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(new_tokens, skip_special_tokens=True))


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A finished step."""

    name: str
    kind: str
    folder: Path
    """Absolute path of the step's folder."""
    artifact: Artifact
    seconds: float
    """Wall time that the step took when it was computed."""
    reused: bool
    """True when the artifact of an earlier run was used."""
    trains: str
    """``full``, an adapter label, or ``-``."""
    component: str
    """``dist/name version`` of the component."""
    session: Session = field(repr=False, compare=False)
    minimum: Mapping[str, float] = field(default_factory=dict)
    """Least scores that the step was asked for (``evaluate(min=...)``), by benchmark."""
    policy: bool = True
    """Whether its model is one that writes: neither a reward model nor made of one."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict per optimizer step: ``step``, ``loss``, ``learning_rate``, ``grad_norm``, ``tokens`` ..."""
        return read_metrics(self.folder / "metrics.jsonl")

    @cached_property
    def model(self) -> ModelRef | None:
        """The model this step made, or None for a report. The same object each time, so that it is loaded once."""
        card = self.artifact.model
        return None if card is None else ModelRef(self.folder / card.path, card, self.session)

    @property
    def adapter_path(self) -> Path | None:
        """Folder of the adapter this step trained, or None."""
        return None if self.artifact.adapter_path is None else self.folder / self.artifact.adapter_path

    @property
    def scores(self) -> dict[str, Score]:
        """Scores this step measured, by benchmark."""
        return {
            name: replace(
                score,
                rows_path=str(self.folder / score.rows_path) if score.rows_path else "",
                files={title: str(self.folder / path) for title, path in score.files.items()},
            )
            for name, score in self.artifact.scores.items()
        }


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run."""

    run_id: str
    workdir: Path
    seed: int
    status: str
    """``finished``; or ``failed``, for a run that was loaded after it failed."""
    steps: tuple[StepResult, ...]
    notices: tuple[str, ...] = ()
    """What the user had to be told, in order."""

    def step(self, name: str) -> StepResult:
        """The step called ``name``, such as ``sft`` or ``sft-2``.

        Raises:
            UnknownNameError: if there is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        known = [step.name for step in self.steps]
        raise UnknownNameError(
            f"The run has no step {name!r}.",
            code="unknown-step",
            asked=name,
            found=", ".join(known),
            suggestions=nearest(name, known),
        )

    @property
    def model(self) -> ModelRef | None:
        """The model of the last step that made one. Reward models are a side branch: the last model that writes counts,
        and a reward model only if there is no other; ``step("reward").model`` has it in any case."""
        made = [step for step in reversed(self.steps) if step.artifact.model is not None]
        last = next((step for step in made if step.policy), made[0] if made else None)
        return last.model if last is not None else None

    @property
    def scores(self) -> dict[str, Score]:
        """Scores by benchmark. Of a benchmark measured by several steps, the last one's; a step has its own."""
        merged: dict[str, Score] = {}
        for step in self.steps:
            merged.update(step.scores)
        return merged

    @classmethod
    def load(cls, workdir: str | os.PathLike[str], *, session: Session | None = None) -> RunResult:
        """The result of an earlier run, from its work folder. Of a run that failed or is under way: what is finished.

        Raises:
            ArtifactError: if the folder holds no run, or a step's result is damaged.
        """
        from tunekit.session import default_session

        folder = Path(workdir).absolute()
        if not (folder / "manifest.json").is_file():
            raise ArtifactError(
                f"{folder} holds no run.",
                code="no-run",
                asked=str(workdir),
                found="no manifest.json" if folder.is_dir() else "no such folder",
                fix="name the workdir of a run, such as runs/first",
            )
        manifest = storage.read_json(folder / "manifest.json")
        session = session or default_session()
        steps = []
        for name, facts in manifest.get("steps", {}).items():
            step_folder = folder / facts["folder"]
            steps.append(
                StepResult(
                    name=name,
                    kind=str(facts.get("step_kind", name)),
                    folder=step_folder,
                    artifact=Artifact.from_data(facts),
                    seconds=float(facts.get("seconds", 0.0)),
                    reused=bool(facts.get("reused", False)),
                    trains=str(facts.get("trained", "-")),
                    component=str(facts.get("component", "")),
                    session=session,
                    minimum=facts.get("minimum", {}),
                    policy=bool(facts.get("policy", True)),
                )
            )
        return cls(
            run_id=str(manifest.get("run_id", "")),
            workdir=folder,
            seed=int(manifest.get("seed", 0)),
            status=str(manifest.get("status", "")),
            steps=tuple(steps),
            notices=tuple(manifest.get("notices", ())),
        )

    def compare(
        self,
        other: RunResult | None = None,
        *,
        step: str | None = None,
        other_step: str | None = None,
        prompts: str = "same",
    ) -> RunComparison:
        """Compare the scores of this run (before) with those of another (after), row by row.

        ``result.compare(other)`` compares all benchmarks that both measured. ``result.compare()`` compares the first
        evaluate step of this run with its last one; ``step`` and ``other_step`` name others.

        Args:
            other: the run after; None: this one.
            step: evaluate step of this run; None: its scores, or, without ``other``, those of its first evaluate step.
            other_step: evaluate step of the other run; None: its scores, or those of the last evaluate step.
            prompts: ``"same"``; or ``"any"``, to pair rows that were asked in other words.

        Raises:
            DataError: if there is nothing to compare.
            UnknownNameError: if there is no such step.
            ArtifactError: if rows cannot be read.
        """
        from tunekit.comparison import compare_runs

        if other is None:
            measured = [found.name for found in self.steps if found.artifact.scores]
            if len(measured) < 2 and (step is None or other_step is None):
                raise DataError(
                    "A run is compared with itself only if it measured twice.",
                    code="nothing-to-compare",
                    found=f"steps with scores: {', '.join(measured) or 'none'}",
                    fix="compare(other_run), or a pipeline with evaluate before and after",
                )
            step, other_step = step or measured[0], other_step or measured[-1]
        after = other or self
        names = (_run_name(self, step), _run_name(after, other_step))
        if other is not None and names[0] == names[1]:
            names = (f"{names[0]} ({self.run_id})", f"{names[1]} ({after.run_id})")
        return compare_runs(
            self.step(step).scores if step else self.scores,
            after.step(other_step).scores if other_step else after.scores,
            names=names,
            prompts=prompts,
        )


def _run_name(run: RunResult, step: str | None) -> str:
    return f"{run.workdir.name}/{step}" if step else run.workdir.name


class RunHandle:
    """A run under way in a thread of its own. Made by ``Pipeline.start``."""

    def __init__(self, target: Callable[[CancelToken, Callable[[Event], None]], RunResult]) -> None:
        self._cancel = CancelToken()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(target,), name="tunekit-run", daemon=True)
        self._thread.start()

    def _work(self, target: Callable[[CancelToken, Callable[[Event], None]], RunResult]) -> None:
        try:
            self._result = target(self._cancel, self._events.put)
        except BaseException as error:  # noqa: BLE001  (handed to the caller of result())
            self._error = error
        finally:
            self._events.put(None)

    def events(self) -> Iterator[Event]:
        """The run's events as they happen, until the run is over. For one consumer: each event is given once."""
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)

    def cancel(self, reason: str = "cancelled by the caller") -> None:
        """Ask the run to stop within one optimizer step, leaving a resumable checkpoint."""
        self._cancel.cancel(reason)

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return not self._thread.is_alive()

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the run and return its result, or raise its error.

        Raises:
            TimeoutError: if it is not over after ``timeout`` seconds.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the run is not over after {timeout} seconds")
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise TunekitError("The run ended without a result.", code="no-result")
        return self._result
