"""The template check: whether a model's chat template can be trained on, and what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunekit.errors import ArtifactError, DataError, TunekitError
from tunekit.plan import Plan, StepPlan
from tunekit.plugins.protocols import TokenizerSource
from tunekit.plugins.views import ModelFacts
from tunekit.preview import Preview, preview_plan
from tunekit.session import Session, default_session

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["TemplateCheck", "TemplateReport", "check_template"]

# Words that no template writes by itself.
SYSTEM, FIRST, SECOND, THIRD = "zealous rule", "first marmot", "second heron", "third otter"
THOUGHT, TOOL, ARGUMENT, RESULT = "quiet musing", "find_walrus", "shore-77", "walrus at noon"

TALK = (
    {"role": "user", "content": FIRST},
    {"role": "assistant", "content": SECOND},
    {"role": "user", "content": THIRD},
    {"role": "assistant", "content": SECOND},
)
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Where a walrus is.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Where to look."}},
                "required": ["place"],
            },
        },
    },
)
TOOL_TALK = (
    {"role": "user", "content": FIRST},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "call00001", "function": {"name": TOOL, "arguments": {"place": ARGUMENT}}}
        ],
    },
    {"role": "tool", "name": TOOL, "tool_call_id": "call00001", "content": RESULT},
    {"role": "assistant", "content": SECOND},
)


@dataclass(frozen=True, kw_only=True)
class TemplateCheck:
    """One thing that was looked at."""

    name: str
    """Stable identifier, such as ``stop-trained``."""
    level: str
    """``ok``; ``note``: some rows cannot be used, or another tool would go wrong; ``problem``: training would harm."""
    message: str
    """What was found and what it means."""
    fix: str = ""
    """What to do."""


@dataclass(frozen=True, kw_only=True)
class TemplateReport:
    """What is known of a model's chat template."""

    model: str
    template: str
    """``chat template``, or ``plain text`` for a model without one."""
    checks: tuple[TemplateCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether training on it does no harm."""
        return not any(check.level == "problem" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "model": self.model,
            "template": self.template,
            "ok": self.ok,
            "checks": [asdict(check) for check in self.checks],
        }

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.template}"]
        for check in self.checks:
            lines.append(
                f"{check.level:<8}{check.name:<20}{check.message}" + (f" Fix: {check.fix}" if check.fix else "")
            )
        return "\n".join(lines)

    def __rich__(self) -> RenderableType:
        from tunekit._preview_view import report_view

        return report_view(self)


def check_template(model: Any, *, session: Session | None = None) -> TemplateReport:
    """Look at the chat template of ``model``. No weights are read.

    Some checks render conversations with the template; the others look at the tokens and labels that the trainer of
    ``sft`` makes of one.

    Args:
        model: folder, GGUF file, hub id, short name, or ``(model, tokenizer)`` in memory.
        session: plugins and settings; None: the default session.

    Raises:
        ArtifactError: if the model or its tokenizer cannot be had.
    """
    from tunekit._values import model_ref

    session = session or default_session()
    objects: dict[str, Any] = {}
    ref = model_ref(model, objects)
    source = session.resolve_model(ref, objects=objects)
    if not isinstance(source, TokenizerSource):
        raise ArtifactError(
            f"{ref} does not give its tokenizer without the whole model.",
            code="no-tokenizer",
            fix="save the model to a folder and pass that",
        )
    tokenizer, facts = source.tokenizer()
    doctor = _Doctor(tokenizer, facts)
    doctor.vocabulary()
    if getattr(tokenizer, "chat_template", None):
        doctor.template()
    else:
        doctor.add(
            "template",
            "note",
            "the tokenizer has no chat template: conversations become plain text (User: ..., Assistant: ...), and rows "
            "with tools are refused",
            "for chat use a model with a template, or set tokenizer.chat_template and save the tokenizer",
        )
    doctor.labels(_learned(ref, objects, session, (tokenizer, facts)))
    shown = source.describe() if ref in objects else ref
    name = "chat template" if getattr(tokenizer, "chat_template", None) else "plain text"
    return TemplateReport(model=shown, template=name, checks=tuple(doctor.checks))


def _learned(
    ref: str, objects: Mapping[str, Any], session: Session, known: tuple[Any, ModelFacts]
) -> Preview | DataError:
    """What the trainer of ``sft`` learns from :data:`TALK`."""
    rows = [{"messages": [dict(message) for message in TALK]}]
    step = StepPlan(kind="sft", name="sft", options={"data": rows, "max_length": 1024})
    try:
        return preview_plan(Plan(model=ref, steps=(step,)), objects=objects, session=session, n=1, known=known)
    except DataError as error:
        return error


class _Doctor:
    def __init__(self, tokenizer: Any, facts: ModelFacts) -> None:
        self.tokenizer = tokenizer
        self.facts = facts
        self.checks: list[TemplateCheck] = []

    def add(self, name: str, level: str, message: str, fix: str = "") -> None:
        self.checks.append(TemplateCheck(name=name, level=level, message=message, fix=fix))

    def vocabulary(self) -> None:
        """Whether every token has an embedding."""
        rows, tokens = self.facts.embeddings, len(self.tokenizer)
        if rows is None or tokens <= rows:
            known = f"{tokens:,} tokens, {rows:,} embeddings" if rows is not None else f"{tokens:,} tokens"
            self.add("vocabulary", "ok", known)
            return
        self.add(
            "vocabulary",
            "problem",
            f"the tokenizer has {tokens:,} tokens and the model {rows:,} embeddings: rows with one of them cannot "
            "be trained on",
            "use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer)) and save both",
        )

    # ------------------------------------------------------------ what the template writes

    def template(self) -> None:
        """What the template does with conversations."""
        whole = self._render(TALK)
        if isinstance(whole, Exception):
            self.add(
                "renders",
                "problem",
                f"the template refuses a conversation of two questions and answers: {whole}",
                "give the tokenizer a chat template for several turns",
            )
            return
        lost = [text for text in (FIRST, SECOND, THIRD) if text not in whole]
        if lost:
            self.add(
                "renders",
                "problem",
                f"the template leaves messages out ({lost[0]!r} is not in the text)",
                "give the tokenizer a chat template that writes every message",
            )
        else:
            self.add("renders", "ok", "conversations of several turns are written, message by message")
        self._prefix(whole)
        self._generation_prompt(whole)
        self._system()
        self._tools()
        self._thoughts()

    def _prefix(self, whole: str) -> None:
        heads = [self._render(TALK[:count]) for count in (1, 2, 3)]
        if all(isinstance(head, str) and whole.startswith(head) for head in heads):
            self.add(
                "prefix-preserving", "ok", "what is written of earlier turns stays the same when later ones follow"
            )
        else:
            self.add(
                "prefix-preserving",
                "note",
                "the template writes earlier turns differently when later ones follow; turns are found by their "
                "content, and a cache of the conversation so far cannot be reused while generating",
            )

    def _generation_prompt(self, whole: str) -> None:
        asked, given = self._render(TALK[:3]), self._render(TALK[:3], generation_prompt=True)
        if isinstance(given, Exception):
            self.add("generation-prompt", "problem", f"the template cannot ask for an answer: {given}")
        elif given == asked and whole.startswith(given) and (header := self._header_behind(whole, given)):
            self.add(
                "generation-prompt",
                "problem",
                f"the template writes {header!r} behind the last answer even where no answer is asked for "
                "(add_generation_prompt=False); tunekit cuts it off, others train it",
                "write the header of an answer only {% if add_generation_prompt %}",
            )
        elif whole.startswith(given):
            same = "; it adds nothing to the question" if given == asked else ""
            self.add(
                "generation-prompt", "ok", f"answers are trained behind exactly what the model is given in use{same}"
            )
        else:
            self.add(
                "generation-prompt",
                "note",
                "with add_generation_prompt the template writes something that stands in no training text, so answers "
                "are trained behind another beginning than they are generated behind",
                "compare the two ends of the template; templates that open a <think> block there are for models that "
                "think, and want rows with reasoning_content",
            )

    def _header_behind(self, whole: str, given: str) -> str:
        """What stands behind the last answer and is the header of one more; empty if nothing is."""
        behind, header = whole.rpartition(SECOND)[2], given.rpartition(THIRD)[2]
        length = 0
        while length < min(len(behind), len(header)) and behind[-1 - length] == header[-1 - length]:
            length += 1
        shared = behind[len(behind) - length :]
        ends = [shared.rfind(stop) + len(stop) for stop in self._stops() if stop in shared]
        special = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        # A turn may end with a special token that generation does not stop at.
        firsts = [shared.find(token) + len(token) for token in special if token in shared]
        at = max(ends, default=min(firsts, default=0))
        return shared[at:].strip()

    def _stops(self) -> tuple[str, ...]:
        """Texts of the tokens that generation stops at."""
        stops = self.tokenizer.convert_ids_to_tokens(list(self.facts.stop_ids))
        return tuple({str(name) for name in (*stops, self.tokenizer.eos_token) if name})

    def _system(self) -> None:
        text = self._render(({"role": "system", "content": SYSTEM}, *TALK))
        if isinstance(text, Exception):
            self.add(
                "system", "note", f"rows with a system message are refused: {text}", "put it into the first question"
            )
        elif SYSTEM not in text:
            self.add(
                "system",
                "note",
                "the template accepts system messages and leaves them out; rows with one are refused",
                "put them into the first question",
            )
        else:
            self.add("system", "ok", "system messages are written")

    def _tools(self) -> None:
        shown = self._render(TALK, tools=TOOLS)
        if isinstance(shown, str) and TOOL in shown:
            self.add("tools", "ok", "tools are shown to the model")
        else:
            why = f": {shown}" if isinstance(shown, Exception) else ""
            self.add("tools", "note", f"tools are not shown to the model, and rows with tools are refused{why}", _OTHER)
        called = self._render(TOOL_TALK, tools=TOOLS)
        if isinstance(called, Exception):
            self.add("tool-calls", "note", f"rows with tool calls are refused: {called}", _OTHER)
            return
        # The tool's name alone may come from the list of tools.
        lost = [text for text in (ARGUMENT, RESULT) if text not in called]
        if lost:
            what = "tool calls" if ARGUMENT in lost else "what tools answer"
            self.add("tool-calls", "note", f"the template leaves {what} out; rows with tool calls are refused", _OTHER)
        else:
            self.add("tool-calls", "ok", "tool calls and what tools answer are written")

    def _thoughts(self) -> None:
        for field in ("reasoning_content", "thinking"):
            thinking = [dict(message) for message in TALK]
            thinking[1][field], thinking[3][field] = f"{THOUGHT} one", f"{THOUGHT} two"
            text = self._render(thinking)
            if isinstance(text, Exception) or f"{THOUGHT} two" not in text:
                continue
            if f"{THOUGHT} one" in text:
                self.add("thoughts", "ok", f"thoughts ({field}) are written in every turn, and learned")
            else:
                self.add(
                    "thoughts",
                    "note",
                    f"thoughts ({field}) are written in the last turn only; those of earlier turns are not learned",
                    'split conversations so that each turn is the last of one row, or train_on="last"',
                )
            return
        self.add(
            "thoughts",
            "note",
            "thoughts (reasoning_content, thinking) are left out of the text and not learned",
            "write them into the content, or use the template of a model that thinks",
        )

    def _render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Any = None, generation_prompt: bool = False
    ) -> str | Exception:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] if tools else None,
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
        except Exception as error:  # noqa: BLE001  (a template can fail in any way; that is what is looked for)
            return error

    # ------------------------------------------------------------ what is learned

    def labels(self, found: Preview | DataError) -> None:
        """What the trainer makes of a conversation."""
        if isinstance(found, TunekitError):
            name = {"double-bos": "one-bos", "no-eos": "stop-trained", "stop-never-trained": "stop-trained"}
            fix = found.fix or ""
            self.add(name.get(found.code, "labels"), "problem", f"training refuses the template: {found.message}", fix)
            return
        (row,) = found.rows
        turns = [
            "".join(token.text for token in row.tokens if token.turn == turn and token.label is not None)
            for turn in sorted({token.turn for token in row.tokens if token.turn is not None})
        ]
        learned = [text for text in turns if text]
        right = len(learned) == 2 and all(SECOND in text for text in learned)
        if right and not any(text in "".join(learned) for text in (FIRST, THIRD)):
            self.add("labels", "ok", "both answers are learned, and nothing of the questions")
        else:
            self.add("labels", "problem", f"what is learned is not the two answers: {learned}", _OTHER)
        self._stop(bool(row.stopped), [bool(text) and self._ends(text) for text in learned])
        self._bos(row.bos)

    def _ends(self, text: str) -> bool:
        return text.rstrip().endswith(self._stops())

    def _stop(self, stopped: bool, turns: Sequence[bool]) -> None:
        if not stopped:
            self.add(
                "stop-trained",
                "problem",
                "the last learned token is none that generation stops at: the model would not learn to stop",
                "set tokenizer.eos_token to the token that ends a turn in the template, or list it in the model's "
                "generation_config.json (eos_token_id)",
            )
            return
        whole = self._render(TALK) if getattr(self.tokenizer, "chat_template", None) else ""
        if isinstance(whole, str) and whole and not self._ends(whole):
            self.add(
                "stop-trained",
                "note",
                "the template ends answers with no token that generation stops at; tunekit adds "
                f"{self.tokenizer.eos_token} behind the last answer and trains it, other tools may not",
                "set tokenizer.eos_token to the token that ends a turn in the template",
            )
        elif not all(turns):
            self.add(
                "stop-trained",
                "note",
                "the token that ends an answer is learned at the end of the last answer only",
                'train_on="last", or a template that ends every turn with it',
            )
        else:
            self.add("stop-trained", "ok", "every answer ends with a token that generation stops at, and it is learned")

    def _bos(self, count: int | None) -> None:
        bos = self.tokenizer.bos_token
        if count is None:
            self.add("one-bos", "ok", "the tokenizer has no begin-of-text token")
            return
        if count > 1:
            self.add(
                "one-bos", "problem", f"training text begins with {count} of {bos}", f"take {bos} out of the template"
            )
            return
        text = self._render(TALK) if getattr(self.tokenizer, "chat_template", None) else ""
        ids = self.tokenizer(text)["input_ids"] if isinstance(text, str) and text else []
        if list(ids[:2]) == [self.tokenizer.bos_token_id] * 2:
            self.add(
                "one-bos",
                "note",
                f"the template writes {bos} and the tokenizer adds another one: tunekit trains with one, and whoever "
                "tokenizes the template's text with special tokens gets two",
                "tokenize(add_special_tokens=False) wherever the template's text is tokenized",
            )
        elif count == 0 and text and list(self.tokenizer("a")["input_ids"][:1]) == [self.tokenizer.bos_token_id]:
            self.add(
                "one-bos",
                "note",
                f"the tokenizer begins texts with {bos}, and the template writes none: chats have none",
            )
        else:
            self.add("one-bos", "ok", f"{'one' if count else 'no'} begin-of-text token ({bos}) in front")


_OTHER = "use a model whose chat template does, or give the tokenizer such a template"
