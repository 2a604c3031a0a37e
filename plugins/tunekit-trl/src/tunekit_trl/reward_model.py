"""The reward ``reward-model``: scores texts and conversations with a sequence-classification model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.data import as_messages
from tunekit.errors import DataError, OptionsError, StepError, nearest
from tunekit.plugins import StepContext, hf
from tunekit_trl.encoding import Encoder, encoder_from
from tunekit_trl.reward import RECORD
from tunekit_trl.reward_head import give_padding
from tunekit_trl.reward_options import RewardModelOptions
from tunekit_trl.reward_rows import shared_prompt

__all__ = ["RewardModel"]

_UNLIMITED = 2**20


class RewardModel:
    """A :class:`tunekit.plugins.Reward` of a trained reward model.

    A text is made, and ended, as it was when the model was trained: whether a completion was finished does not change
    its score. Completions of one prompt share its computation.
    """

    def __init__(self, options: RewardModelOptions) -> None:
        self.options = options
        self._model: Any = None
        self._tell: Any = None
        self._cut = False

    def start(self, ctx: StepContext) -> None:
        """Load the model.

        Raises:
            ArtifactError: if it cannot be read.
            StepError: if it is no sequence-classification model.
            OptionsError: for a ``label`` that it does not have, or ``normalise`` where nothing was measured.
        """
        self._load(ctx.load_model(self.options.model))
        self._tell = ctx.notice

    def _load(self, loaded: Any) -> None:
        model, options = loaded.model, self.options
        config = model.config
        if not type(model).__name__.endswith("ForSequenceClassification"):
            raise StepError(
                f"{options.model} is no reward model.",
                code="no-reward-model",
                asked="a sequence-classification model",
                found=type(model).__name__,
                fix='train one with reward(data=pairs), and name it: reward={"name": "reward-model", "model": '
                '"step:reward"}',
            )
        self._column = self._label(config)
        record = getattr(config, RECORD, None) or {}
        self._mean, self._deviation = 0.0, 1.0
        if options.normalise:
            if "mean" not in record:
                raise OptionsError(
                    f"normalise needs the mean and deviation of the rewards, which {options.model} does not carry.",
                    code="reward-spread",
                    asked="normalise=True",
                    fix="leave normalise out, or train the model with reward(...)",
                )
            self._mean, self._deviation = float(record["mean"]), float(record["deviation"])
        tokenizer = copy.deepcopy(loaded.tokenizer)
        template = options.template or {"chat template": "chat", "plain text": "plain"}.get(record.get("template", ""))
        if template == "plain":
            tokenizer.chat_template = None
        elif template == "chat" and not getattr(tokenizer, "chat_template", None):
            raise OptionsError(
                f"The tokenizer of {options.model} has no chat template.",
                code="no-chat-template",
                asked="template='chat'",
                fix="template='plain'",
            )
        facts = hf.model_facts(model)
        with hf.quiet():
            self._encoder: Encoder = encoder_from(tokenizer, facts, options.max_length or _UNLIMITED)
        if config.get_text_config().pad_token_id is None:
            give_padding(model, tokenizer, self._encoder.stops)
        self._model = model.eval()
        self._scorer: hf.ScoreModel | None = None

    def _label(self, config: Any) -> int | None:
        """Number of the class that is scored; None for a model with one output."""
        asked = self.options.label
        names = [str(config.id2label.get(number, number)) for number in range(config.num_labels)]
        if config.num_labels == 1:
            if asked is not None:
                raise OptionsError(
                    f"label has no effect: {self.options.model} has one output.",
                    code="reward-label",
                    asked=f"label={asked!r}",
                    fix="leave label out",
                )
            return None
        if asked not in names:
            raise OptionsError(
                f"{self.options.model} is a classifier; label says which class is good.",
                code="reward-label",
                asked="no label" if asked is None else f"label={asked!r}",
                found=", ".join(names),
                suggestions=nearest(asked, names) if asked else (),
                fix=f"label={names[-1]!r}",
            )
        return names.index(asked)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> Sequence[float | None]:
        """Reward of each completion.

        Raises:
            DataError: for a completion that the model's template cannot write.
            StepError: before :meth:`start`.
        """
        if self._model is None:
            raise StepError("The reward model is not loaded.", code="not-started", fix="call start(ctx) first")
        if not completions:
            return []
        sequences = self._sequences(prompts, completions, columns.get("tools"))
        groups, order = _grouped(sequences, prompts)
        if self._scorer is None:
            self._scorer = hf.ScoreModel(self._model, groups)
        with hf.fast_products(self._model):
            outputs = self._scorer.scores(groups)
        values = self._values(outputs)
        made = [0.0] * len(sequences)
        for number, value in zip(order, values, strict=True):
            made[number] = value
        return made

    def _sequences(self, prompts: Sequence[Any], completions: Sequence[Any], tools: Any) -> list[list[int]]:
        rows: list[Mapping[str, Any]] = [
            {"prompt": prompt, "completion": _answer(prompt, completion)}
            | ({"tools": tools[number]} if tools is not None and tools[number] else {})
            for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        made: list[list[int]] = []
        with hf.quiet():
            found = self._encoder.examples(rows, "prompt_completion", "all")
        for number, example in enumerate(found):
            if isinstance(example, DataError) and example.code == "no-targets":
                # Of nothing but an end, no token has one before it; a score it has all the same.
                made.append([*self._encoder.prefix, next(iter(sorted(self._encoder.stops)))])
                continue
            if isinstance(example, DataError):
                raise DataError(
                    f"Completion {number} cannot be scored: {example.message}.",
                    code=example.code,
                    found=example.found,
                    fix=example.fix,
                ) from example
            if example.cut and not self._cut:
                self._cut = True
                if self._tell is not None:
                    self._tell(
                        "reward-cut",
                        f"The reward model {self.options.model} reads {self._encoder.max_length} tokens; the end of "
                        "longer answers is not scored.",
                    )
            made.append(example.input_ids)
        return made

    def _values(self, outputs: Any) -> list[float]:
        import torch

        outputs = outputs.double()
        if self._column is None:
            values = outputs[:, 0]
        else:
            others = [number for number in range(outputs.shape[1]) if number != self._column]
            values = outputs[:, self._column] - torch.logsumexp(outputs[:, others], 1)
        made: list[float] = ((values - self._mean) / self._deviation).tolist()
        return made


def _answer(prompt: Any, completion: Any) -> Any:
    """Both are texts, or both messages."""
    return as_messages(completion, "assistant") if not isinstance(prompt, str) else completion


def _grouped(sequences: Sequence[list[int]], prompts: Sequence[Any]) -> tuple[list[hf.PromptGroup], list[int]]:
    """Completions of one prompt together; and the number of each completion, in the order of the groups."""
    together: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        together.setdefault(repr(prompt), []).append(number)
    groups, order = [], []
    for numbers in together.values():
        groups.append(hf.PromptGroup(*shared_prompt([sequences[number] for number in numbers])))
        order += numbers
    return groups, order
