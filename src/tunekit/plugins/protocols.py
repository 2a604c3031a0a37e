"""What the targets of specs look like. Structural types: a plugin subclasses nothing.

Names from the field are used throughout: ``model`` is a ``torch.nn.Module``, ``tokenizer`` a
``transformers.PreTrainedTokenizerBase``. They are typed ``Any`` here, so that no heavy library is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tunekit.artifacts import Artifact, ScoredRow
from tunekit.cancel import CancelToken
from tunekit.events import Event

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.plugins.views import ModelFacts

__all__ = [
    "Adapter",
    "Benchmark",
    "BenchmarkContext",
    "Component",
    "Finding",
    "GenerationRequest",
    "ChoiceRequest",
    "LoadedModel",
    "ModelSource",
    "PerplexityRequest",
    "Request",
    "Response",
    "Reward",
    "Setup",
    "TokenizerSource",
    "Tracker",
]


@dataclass(kw_only=True)
class LoadedModel:
    """A model in memory, with its tokenizer."""

    model: Any
    """``torch.nn.Module`` that generates and scores, on its device, in evaluation mode."""
    tokenizer: Any
    """Its tokenizer."""
    path: Path | None = None
    """Folder it was read from or saved to."""
    weights_hash: str = ""
    """Hash of the weight files it equals."""


@runtime_checkable
class Component(Protocol):
    """A trainer, quantizer, exporter or step."""

    def run(self, ctx: StepContext) -> Artifact:
        """Do the work in ``ctx.dir`` and say what is there.

        Look at ``ctx.cancel`` between units of work. Raise ``StepError`` or ``DataError`` for what the user can mend.
        """
        ...


@runtime_checkable
class Adapter(Protocol):
    """Trains a small part of a model. Built as ``Target(options)`` with the validated options."""

    def attach(self, model: Any, *, seed: int) -> Any:
        """The model with the adapter on it. At the start it computes what ``model`` computes."""
        ...

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter alone, loadable without tunekit."""
        ...

    def merge(self, model: Any) -> Any:
        """A plain model with the adapter folded into the base weights, in the base's full precision."""
        ...

    def detached(self, model: Any) -> Any:
        """A context manager in which ``model`` computes what the base computes."""
        ...


class MissingColumnError(KeyError):
    """A reward cannot do without a column that the rows do not have; ``args[0]`` is its name."""


@runtime_checkable
class Reward(Protocol):
    """Scores completions; the same signature as TRL's reward functions. Built as ``Target(options)``.

    A reward may have a method ``start(ctx: StepContext) -> None``, called once before the first score, to load what it
    needs (``ctx.load_model``).
    """

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> Sequence[float | None]:
        """One number for each completion, the higher the better; None: it has nothing to say about this one.

        Args:
            prompts: texts, or lists of messages.
            completions: texts; after a prompt of messages, lists with the assistant's message.
            columns: the other columns of the prompts' rows, one value for each completion, and ``completion_ids``,
                lists of token ids, and ``finished``, whether the completion ended by itself.
        """
        ...


@runtime_checkable
class ModelSource(Protocol):
    """A model that was found but not yet loaded. Making one reads no weights and imports no torch."""

    ref: str
    """What the user wrote."""
    kind: str
    """``folder``, ``gguf``, ``hub`` or ``memory``."""

    def describe(self) -> str:
        """One line for people: what and where."""
        ...

    def problems(self) -> Sequence[str]:
        """What would make :meth:`load` fail, one sentence each, such as a missing tokenizer; empty if nothing."""
        ...

    def fingerprint(self) -> str:
        """Hash over the files, or over the id and revision; equal content, equal fingerprint."""
        ...

    def load(self) -> LoadedModel:
        """Read the weights.

        Raises:
            ArtifactError: if files are missing or damaged.
            MissingDependencyError: if a package is missing.
        """
        ...


@runtime_checkable
class TokenizerSource(Protocol):
    """What a :class:`ModelSource` may offer besides, so that ``Pipeline.preview`` need not load the model."""

    def tokenizer(self) -> tuple[Any, ModelFacts]:
        """The model's tokenizer, and what is known of the model. No weights are read.

        Raises:
            ArtifactError: if files are missing or damaged.
            MissingDependencyError: if a package is missing.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest:
    """Score each choice as a continuation of ``context``: summed log-probability of its tokens.

    ``prefix`` is the leading part of ``context`` that many requests share (few-shot examples); runners may compute it
    once. Context and choice are tokenized together; the boundary is found by offsets.
    """

    context: str
    choices: tuple[str, ...]
    prefix: str = ""
    parts: tuple[str, ...] = ()
    """``context`` in pieces: what stands before the examples, one piece per few-shot example, the question. Joined they
    are ``context``. When it does not fit the model, examples are left out from the front; the question is never cut."""
    contexts: tuple[str, ...] = ()
    """A context of its own for each choice, in place of ``context``, where the choice is the same and what comes before
    it differs (WinoGrande). ``parts`` must be empty then."""
    system: str = ""
    """System message, where the model is asked through its chat template."""
    turns: tuple[tuple[str, str], ...] = ()
    """The few-shot examples as (user, assistant) messages, in the order of ``parts``, for asking them as turns of a
    chat. Empty: the benchmark has no such form."""
    question: str = ""
    """The question alone, as the last user message behind ``turns``; empty: the last of ``parts``."""
    answer_prefix: str = ""
    """What the assistant's answer begins with, behind the chat template's generation prompt. Not part of ``context``,
    and not used without a template."""
    verbatim: bool = False
    """Behind a chat template, score the choices as they are. Otherwise white space at their start, which belongs behind
    ``Answer:``, is left out there, as the answer begins anew."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Continue ``context`` until one of ``stop`` appears or ``max_new_tokens`` are written; greedily unless
    ``temperature`` is above 0."""

    context: str
    stop: tuple[str, ...]
    max_new_tokens: int
    prefix: str = ""
    parts: tuple[str, ...] = ()
    """As in :class:`ChoiceRequest`."""
    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    question: str = ""
    answer_prefix: str = ""
    """As in :class:`ChoiceRequest`."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """A whole conversation in the form of chat templates, asked in place of ``context`` where the model is asked
    through its template."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of functions, for the chat template."""
    samples: int = 1
    """Texts to write; more than one needs a ``temperature``."""
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    ignore_eos: bool = False
    """Go on behind an end-of-text token."""


@dataclass(frozen=True, kw_only=True)
class PerplexityRequest:
    """Score all of a text: summed log-probability of every token given those before it, in windows of the model's
    context. Each token is predicted once, with as much context as the window leaves it."""

    text: str
    stride: int | None = None
    """Tokens by which windows advance; None: windows that do not overlap, each continued from the last token of the one
    before (as lm-evaluation-harness's ``loglikelihood_rolling``)."""

    @property
    def context(self) -> str:
        """The text: what the model sees."""
        return self.text

    @property
    def prefix(self) -> str:
        """Nothing: texts share no examples."""
        return ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Nothing: a text has no examples that could be left out."""
        return ()


Request = ChoiceRequest | GenerationRequest | PerplexityRequest


@dataclass(frozen=True, kw_only=True)
class Response:
    """The model's answer to one request."""

    logprobs: tuple[float, ...] = ()
    """For a ``ChoiceRequest``: summed log-probability of each choice, natural logarithm. For a ``PerplexityRequest``:
    that of the text."""
    greedy: tuple[bool, ...] = ()
    """For a ``ChoiceRequest``: whether each token of the choice is the likeliest one."""
    tokens: tuple[int, ...] = ()
    """Tokens of each choice, or of the text."""
    text: str = ""
    """For a ``GenerationRequest``: the text, without the stop string and without what the model thought."""
    texts: tuple[str, ...] = ()
    """All texts, where ``samples`` is above 1; ``text`` is the first."""
    reasoning: str = ""
    """What a thinking model wrote before its answer."""
    truncated: bool = False
    """The context did not fit and was cut, or the length limit ended the text."""
    stop: str = ""
    """How generation ended: ``stop`` (a stop string), ``eos`` or ``length``."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkContext:
    """What a benchmark may use beyond its rows, handed to its ``start``."""

    options: Mapping[str, Any]
    """Options of the evaluate step for this benchmark, its own ``settings`` among them."""
    model: Any
    """The model under test: :class:`LoadedModel`."""
    runner: Any
    """What answers its requests; ``runner.count(text)`` gives the tokens of a text, ``runner.max_length`` the longest
    input in tokens or None."""
    folder: Path
    """Where the benchmark may write, such as a picture; kept with the step."""
    seed: int
    cancel: CancelToken
    notice: Callable[[str, str], None]
    """``notice(code, message)``: something the user must be told."""
    load_model: Callable[[str], LoadedModel]
    """Another model by reference, such as a judge."""
    allow_unsafe: bool = False
    """Run code without isolation where there is none."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One published way to measure a benchmark; see ``variants`` of the evaluate step."""

    name: str
    """Such as ``continuation`` or ``0-shot``."""
    equals: str
    """The published setup it equals, such as ``"lm-evaluation-harness 0.4.13: mmlu_continuation"``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the evaluate step that it sets, such as ``num_fewshot``."""
    target: str = ""
    """Import string of the benchmark class, where it is another one."""


@runtime_checkable
class Benchmark(Protocol):
    """Questions, how to ask them, and how to judge the answers. One screen of code each."""

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The questions, in a fixed order, from the user's folder or file.

        ``source`` None asks for the embedded sample. ``options`` are those of the evaluate step; ``limit`` is applied
        by the caller.

        Raises:
            DataError: naming file, row and field.
        """
        ...

    def request(self, row: Mapping[str, Any]) -> Request:
        """What the model is asked."""
        ...

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        """Whether the answer is right. ``prompt_hash`` may stay empty: the caller fills it in."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """How it measures: shots, extraction, averaging, source. Recorded with the score.

        ``metric`` names the metric of the score. ``higher_is_better`` False: less is better, as of a perplexity.
        ``chat``: ``"template"`` where the benchmark means chat models, and is asked through the chat template if the
        tokenizer has one and the user does not say (``chat_template=None``).
        """
        ...

    # A benchmark may have more; none of it is needed:
    #   start(context: BenchmarkContext) -> None        after rows() and before the first request(), with the model at
    #                                                   hand: for what depends on its tokenizer
    #   further_files(source: Path | None, options) -> Sequence[Path]
    #                                                   files or folders besides the source whose content counts
    #   aggregate(rows: Sequence[ScoredRow]) -> Mapping[str, float]
    #                                                   metrics over all rows; the one that ``protocol()["metric"]``
    #                                                   names is the score's value, the others stand in Score.metrics
    #   finish(score: Score) -> Score                   last word on the score, such as adding pictures to ``files``
    #   variants: Sequence[Setup]                       published setups, for evaluate(variants=True)
    #   categories: Mapping[str, str]                   group to wider category


@runtime_checkable
class Tracker(Protocol):
    """Receives every event of a run. Built as ``Target(options)``."""

    def on_event(self, event: Event) -> None:
        """Take one event. An exception is isolated and reported once."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing ``check`` noticed."""

    level: str
    """``error`` (the run is refused), ``warning``, or ``note``."""
    step: str | None
    """Name of the step, or None for the whole plan."""
    code: str
    """Stable identifier, such as ``unknown-option``."""
    message: str
    """One sentence."""
    fix: str = ""
    """What to type or do."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts as JSON types."""

    def __str__(self) -> str:
        where = f"{self.step}: " if self.step else ""
        return f"{self.level}: {where}{self.message}" + (f" Fix: {self.fix}" if self.fix else "")
