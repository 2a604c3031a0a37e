"""What a run gives back."""

from __future__ import annotations

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
from tunekit.errors import ArtifactError, TunekitError, UnknownNameError, nearest
from tunekit.events import Event

if TYPE_CHECKING:
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
            name: replace(score, rows_path=str(self.folder / score.rows_path)) if score.rows_path else score
            for name, score in self.artifact.scores.items()
        }


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run."""

    run_id: str
    workdir: Path
    seed: int
    status: str
    """``finished``."""
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
        """The model of the last step that made one."""
        for step in reversed(self.steps):
            if step.artifact.model is not None:
                return step.model
        return None

    @property
    def scores(self) -> dict[str, Score]:
        """Scores by benchmark. Of a benchmark measured by several steps, the last one's; a step has its own."""
        merged: dict[str, Score] = {}
        for step in self.steps:
            merged.update(step.scores)
        return merged


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
