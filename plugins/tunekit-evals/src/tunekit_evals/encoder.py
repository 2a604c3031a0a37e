"""From requests to token ids: template, one beginning-of-sequence token, context and choice together, fitting.

The boundary between context and choice follows lm-evaluation-harness (``TemplateLM._encode_pair``): white space at
the end of the context belongs to the choice, context and choice are tokenized together, and the choice's tokens are
those after as many as the context alone has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunekit.errors import OptionsError, StepError
from tunekit.plugins import ChoiceRequest, GenerationRequest, Request
from tunekit_evals.runner import Prompt

__all__ = ["ChoicePrompt", "Encoder", "GenerationPrompt", "Scored", "context_length"]


@dataclass(kw_only=True)
class Scored:
    """One input to the model, and the choices whose tokens it predicts.

    Choices that differ only in their last token share an input, and so does a choice whose input is the beginning of
    another's: four letters cost one forward pass.
    """

    ids: list[int]
    """Input ids, without the last token of the choice."""
    choices: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """(index of the choice, position that predicts its first token, its token ids)."""

    @property
    def first(self) -> int:
        """First position that is scored."""
        return min(start for _, start, _ in self.choices)


@dataclass(kw_only=True)
class ChoicePrompt(Prompt):
    """A tokenized :class:`ChoiceRequest`."""

    context: list[int]
    inputs: list[Scored]


@dataclass(kw_only=True)
class GenerationPrompt(Prompt):
    """A tokenized :class:`GenerationRequest`."""

    context: list[int]
    max_new_tokens: int


def context_length(model: Any, tokenizer: Any) -> int | None:
    """Positions the model was made for, or None when nothing says so."""
    config = model.config
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx"):
        value = getattr(inner, name, None)
        if isinstance(value, int) and value > 0:
            return value
    # transformers writes 1e30 when the tokenizer does not know.
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if isinstance(limit, int | float) and 0 < limit < 1e9 else None


class Encoder:
    """Tokenizes requests for one model.

    Args:
        tokenizer: a ``transformers`` tokenizer.
        max_length: longest input in tokens, or None.
        chat_template: show each context as one user message through the tokenizer's chat template.

    Raises:
        OptionsError: if ``chat_template`` is asked for and the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, *, max_length: int | None, chat_template: bool = False) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat_template = chat_template
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise OptionsError(
                "The tokenizer has no chat template.",
                code="no-chat-template",
                asked="chat_template=True",
                fix="leave chat_template out, or set tokenizer.chat_template and save the model folder again",
            )
        plain = self._ids(["a"], special=False)[0]
        whole = self._ids(["a"], special=True)[0]
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        self.leading: list[int] = whole[:at]
        """Special tokens the tokenizer puts before a text."""

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with the tokenizer's leading special tokens, once: a template may have written them already.

        Trailing special tokens (some tokenizers add an end-of-sequence token) would end the text before it is
        continued and are not added.
        """
        head = self.leading
        return [ids if head and ids[: len(head)] == head else head + ids for ids in self._ids(texts, special=False)]

    def bos(self, ids: Sequence[int]) -> int:
        """Beginning-of-sequence tokens at the start."""
        bos = self.tokenizer.bos_token_id
        count = 0
        while bos is not None and count < len(ids) and ids[count] == bos:
            count += 1
        return count

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def render(self, context: str) -> str:
        """The text the model sees for a context."""
        if not self.chat_template:
            return context
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": context}], tokenize=False, add_generation_prompt=True
            )
        )

    def prepare(self, requests: Sequence[Request]) -> list[Prompt]:
        """Tokenize and fit, in order. What fits at once is tokenized in one call."""
        texts = [self.render(request.context) for request in requests]
        contexts = iter(
            self.encode(
                [
                    _split(text)[0] if isinstance(request, ChoiceRequest) else text
                    for text, request in zip(texts, requests, strict=True)
                ]
            )
        )
        wholes = iter(
            self.encode(
                [
                    whole
                    for text, request in zip(texts, requests, strict=True)
                    if isinstance(request, ChoiceRequest)
                    for whole in self._wholes(text, request)
                ]
            )
        )
        prompts: list[Prompt] = []
        for text, request in zip(texts, requests, strict=True):
            context = next(contexts)
            if isinstance(request, ChoiceRequest):
                choices = [next(wholes) for _ in request.choices]
                prompts.append(self._choice(request, text, context, choices))
            else:
                prompts.append(self._generation(request, text, context))
        return prompts

    def _wholes(self, text: str, request: ChoiceRequest) -> list[str]:
        context, spaces = _split(text)
        # Behind a template's generation prompt an answer starts without the space that follows "Answer:".
        choices = [choice.lstrip(" ") if self.chat_template else choice for choice in request.choices]
        return [context + spaces + choice for choice in choices]

    def _choice(self, request: ChoiceRequest, text: str, context: list[int], wholes: list[list[int]]) -> ChoicePrompt:
        dropped = 0
        shorter = _shorter(request)
        while self.max_length is not None and max(map(len, wholes)) - 1 > self.max_length:
            following = next(shorter, None)
            if following is None:
                break
            dropped += 1
            text = self.render(following)
            context = self.encode([_split(text)[0]])[0]
            wholes = self.encode(self._wholes(text, request))
        merged = any(whole[: len(context)] != context for whole in wholes)
        if not context:
            # Nothing to condition on: the model's start token stands in.
            start = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if start is None else start
            if start is None:
                raise StepError(
                    "An empty prompt cannot be scored: the tokenizer has no start token.", code="empty-prompt"
                )
            context, wholes = [start], [[start, *whole] for whole in wholes]
        inputs: dict[tuple[int, ...], Scored] = {}
        cut = False
        for index, whole in enumerate(wholes):
            answer = whole[len(context) :]
            if not answer:
                raise StepError(
                    "A choice has no tokens of its own behind the prompt, so it cannot be scored.",
                    code="empty-choice",
                    asked=f"choice {index + 1}: {request.choices[index]!r}",
                    fix="remove empty choices, or end the prompt where a new word starts",
                )
            ids = context + answer[:-1]
            if self.max_length is not None and len(ids) > self.max_length:
                if len(answer) > self.max_length:
                    raise StepError(
                        f"A choice of {len(answer)} tokens is longer than the model's {self.max_length} positions.",
                        code="choice-too-long",
                    )
                cut = True
                ids = ids[-self.max_length :]
            scored = inputs.setdefault(tuple(ids), Scored(ids=ids))
            scored.choices.append((index, len(ids) - len(answer), answer))
        return ChoicePrompt(
            request=request,
            text=text,
            tokens=len(context),
            bos=self.bos(context),
            shots_dropped=dropped,
            cut=cut,
            context=context,
            inputs=_without_beginnings(list(inputs.values())),
            merged=merged,
        )

    def _generation(self, request: GenerationRequest, text: str, context: list[int]) -> GenerationPrompt:
        dropped = 0
        room = request.max_new_tokens
        cut = False
        if self.max_length is not None:
            shorter = _shorter(request)
            while len(context) + request.max_new_tokens > self.max_length:
                following = next(shorter, None)
                if following is None:
                    break
                dropped += 1
                text = self.render(following)
                context = self.encode([text])[0]
            room = min(room, self.max_length - len(context))
            if room < 1:
                # Not even the question fits. It is asked in part, because leaving the row out would flatter the score.
                room = min(request.max_new_tokens, max(1, self.max_length // 4))
                cut = True
                context = context[-(self.max_length - room) :]
        if not context:
            raise StepError("An empty prompt cannot be continued.", code="empty-prompt")
        return GenerationPrompt(
            request=request,
            text=text,
            tokens=len(context),
            bos=self.bos(context),
            shots_dropped=dropped,
            cut=cut,
            context=context,
            max_new_tokens=room,
        )


def _without_beginnings(inputs: list[Scored]) -> list[Scored]:
    """The inputs, those that another one begins with being scored there."""
    inputs.sort(key=lambda scored: -len(scored.ids))
    kept: list[Scored] = []
    for scored in inputs:
        longer = next((other for other in kept if other.ids[: len(scored.ids)] == scored.ids), None)
        if longer is None:
            kept.append(scored)
        else:
            longer.choices += scored.choices
    return kept


def _split(text: str) -> tuple[str, str]:
    stripped = text.rstrip()
    return stripped, text[len(stripped) :]


def _shorter(request: Request) -> Iterator[str]:
    """Contexts with one example less each, the first examples going first."""
    head, *examples = request.parts[:-1] or ("",)
    for left_out in range(1, len(examples) + 1):
        yield head + "".join(examples[left_out:]) + request.parts[-1]
