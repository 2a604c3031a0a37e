"""What every reward must hold to: one number for each completion, the same one whoever else is scored beside it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pytest

from tunekit._rewards import bound_rewards, needed_columns, start_rewards
from tunekit.cancel import CancelToken
from tunekit.context import StepContext
from tunekit.plan import ComponentRef, ResolvedReward, ResolvedStep
from tunekit.testing.suite import Suite

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.plugins.protocols import Reward
    from tunekit.session import Session

__all__ = ["RewardCase", "RewardSuite"]

_ODD = {
    "nothing": "",
    "blanks": " \n\t ",
    "a long text": "word " * 5_000,
    "other scripts": "数学 Ω \N{GRINNING FACE} \u202e",
    "broken mark-up": "<answer>\\boxed{ ``` $$ [[",
    "a huge number": "9" * 400,
}


@dataclass(frozen=True, kw_only=True)
class RewardCase:
    """A completion, and what it is worth."""

    prompt: str | Sequence[Mapping[str, Any]]
    completion: str
    score: float | None
    """None: the reward has nothing to say about it."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the prompt's row that the reward looks at."""
    finished: bool = True
    """Whether the completion ended by itself."""


class RewardSuite(Suite):
    """Tests of a reward. They call it as trainers do, with whole batches::

    class TestBrevity(RewardSuite):
        name = "acme-brevity/brevity"
        cases = (
            RewardCase(prompt="Say hi.", completion="hi", score=-2.0),
            RewardCase(prompt="Say hi.", completion="hello", score=-5.0),
        )
    """

    kind = "reward"
    cases: ClassVar[Sequence[RewardCase]] = ()
    """At least two, with different scores."""
    tolerance: ClassVar[float] = 1e-6
    """How far a score may be from the expected one, and from that of another batch."""

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        """Options of the reward: JSON types."""
        return {}

    @pytest.fixture
    def resolved(self, session: Session, entry: Entry, options: dict[str, Any]) -> ResolvedReward:
        """The reward as a plan has it."""
        parsed = session.parse_options(entry.component, options)
        values = parsed.model_dump(mode="json") if parsed is not None else {}
        return ResolvedReward(name=entry.component.name, component=entry.component, options=values)

    @pytest.fixture
    def reward(self, session: Session, resolved: ResolvedReward, tmp_path: Path) -> Reward:
        """The reward, made and started."""
        (bound,) = bound_rewards([resolved], session, {})
        start_rewards([bound], _context(session, tmp_path))
        return bound.reward

    # ---------------------------------------------------------------- what completions are worth

    def test_known_completions_get_their_scores(self, reward: Reward) -> None:
        """Every case of `cases`, in one batch."""
        cases = self._cases()
        expected = [case.score for case in cases]
        assert len(set(expected)) > 1, (
            f"all {len(cases)} cases have the score {expected[0]}: name one that is better than another, "
            "or a reward that is constant passes"
        )
        scores = self._scores(reward, cases)
        for case, score in zip(cases, scores, strict=True):
            assert self._same(score, case.score), (
                f"{case.completion!r:.80} after {case.prompt!r:.80} is worth {case.score}, and got {score}"
            )

    def test_there_is_one_finite_number_for_each(self, reward: Reward) -> None:
        """A sequence of Python floats (or None), as long as the batch; also for a batch of one."""
        for cases in (self._cases(), self._cases()[:1]):
            given = self._call(reward, cases)
            assert isinstance(given, Sequence) and not isinstance(given, str), (
                f"it gave {type(given).__name__}, not a list. Usual mistake: one number for the whole batch, or a "
                "tensor; return a list of floats"
            )
            assert len(given) == len(cases), f"{len(cases)} completions, {len(given)} scores"
            for score in given:
                assert score is None or (isinstance(score, int | float) and math.isfinite(score)), (
                    f"a score is {score!r}. Usual mistakes: a tensor in place of its .item(), a division by zero, "
                    "a logarithm of zero"
                )

    def test_neighbours_do_not_matter(self, reward: Reward) -> None:
        """Alone, together, and in reverse order: the same scores."""
        cases = self._cases()
        together = self._scores(reward, cases)
        alone = [self._scores(reward, [case])[0] for case in cases]
        backwards = self._scores(reward, cases[::-1])[::-1]
        for other, how in ((alone, "alone"), (backwards, "in reverse order")):
            for case, one, two in zip(cases, together, other, strict=True):
                assert self._same(one, two), (
                    f"{case.completion!r:.80} got {one} in the batch and {two} {how}. Usual mistakes: scores are "
                    "normalised over the batch (the trainer does that), padding counts, or state is kept between calls"
                )

    def test_asking_twice_changes_nothing(self, reward: Reward) -> None:
        """The same batch again: the same scores, and the batch as it was."""
        cases = self._cases()
        arguments = self._arguments(cases)
        before = copy.deepcopy(arguments)
        first = list(reward(**arguments))
        assert arguments == before, "it changed the prompts, completions or columns that it was given; copy them first"
        second = list(reward(**arguments))
        assert all(self._same(one, two) for one, two in zip(first, second, strict=True)), (
            f"first {first}, then {second}. Usual mistake: chance that no seed decides, or state kept between calls"
        )

    # ---------------------------------------------------------------- what it is given

    def test_texts_and_messages_are_one(self, reward: Reward) -> None:
        """After a prompt of messages, completions are lists with the assistant's message: the same score."""
        cases = [case for case in self._cases() if isinstance(case.prompt, str)]
        if not cases:
            pytest.skip("every prompt of `cases` is a list of messages")
        arguments = self._arguments(cases)
        plain = list(reward(**arguments))
        arguments["prompts"] = [[{"role": "user", "content": case.prompt}] for case in cases]
        arguments["completions"] = [[{"role": "assistant", "content": case.completion}] for case in cases]
        chat = list(reward(**arguments))
        for case, one, two in zip(cases, plain, chat, strict=True):
            assert self._same(one, two), (
                f"{case.completion!r:.80} got {one} as text and {two} as a message. Usual mistake: "
                'str(completion) of a list of messages; take completion[0]["content"] where it is no text'
            )

    def test_other_columns_do_no_harm(self, reward: Reward) -> None:
        """Rows have columns that are for others."""
        cases = self._cases()
        arguments = self._arguments(cases)
        expected = list(reward(**arguments))
        try:
            found = list(reward(**arguments, tunekit_unrelated=[{"some": "thing"}] * len(cases)))
        except TypeError as error:
            pytest.fail(f"a column that it does not know: {error}. Take **columns", pytrace=False)
        assert all(self._same(one, two) for one, two in zip(expected, found, strict=True))

    def test_the_columns_it_needs_are_declared(
        self, session: Session, resolved: ResolvedReward, reward: Reward, entry: Entry
    ) -> None:
        """`check()` looks for the columns of the spec before a run: each is used, and no other is needed."""
        declared = needed_columns(resolved, session, {})
        cases = self._cases()
        for name in declared:
            assert all(name in case.columns for case in cases), (
                f"the spec of {entry.component.id} says that it needs the column {name!r}, and a case has none"
            )
        arguments = self._arguments(cases)
        known = {"prompts", "completions", "completion_ids", "finished", *declared}
        try:
            found = list(reward(**{name: value for name, value in arguments.items() if name in known}))
        except Exception as error:  # noqa: BLE001
            pytest.fail(
                f"with the columns of its spec ({', '.join(declared) or 'none'}) alone it failed: "
                f"{type(error).__name__}: {error}. Declare what it needs: columns=(...)",
                pytrace=False,
            )
        assert len(found) == len(cases)
        for name in declared:
            without = {key: value for key, value in arguments.items() if key != name}
            try:
                silent = list(reward(**without))
            except Exception:  # noqa: BLE001  (an error is right)
                continue
            assert all(score is None for score in silent), (
                f"without the column {name!r} it gave {silent}; raise, or return None for what cannot be judged"
            )

    @pytest.mark.parametrize("what", _ODD)
    def test_whatever_a_model_writes_gets_a_score(self, reward: Reward, what: str) -> None:
        """Models write anything: no exception, and no number that is not finite."""
        case = self._cases()[0]
        odd = RewardCase(
            prompt=case.prompt, completion=_ODD[what], score=None, columns=case.columns, finished=what != "a long text"
        )
        score = self._scores(reward, [case, odd])[1]
        assert score is None or math.isfinite(score), f"{what}: it gave {score}"

    # ---------------------------------------------------------------- helpers

    def _cases(self) -> Sequence[RewardCase]:
        if len(self.cases) < 2:
            pytest.fail(
                f"{type(self).__name__} needs two cases or more: cases = (RewardCase(prompt=..., completion=..., "
                "score=...), ...)",
                pytrace=False,
            )
        return self.cases

    @staticmethod
    def _arguments(cases: Sequence[RewardCase]) -> dict[str, Any]:
        """The arguments of one call, as trainers make them."""
        columns = sorted({name for case in cases for name in case.columns})
        return {
            "prompts": [copy.deepcopy(case.prompt) for case in cases],
            "completions": [
                case.completion if isinstance(case.prompt, str) else [{"role": "assistant", "content": case.completion}]
                for case in cases
            ],
            "completion_ids": [[ord(letter) % 250 for letter in case.completion[:100]] for case in cases],
            "finished": [case.finished for case in cases],
            **{name: [copy.deepcopy(case.columns.get(name)) for case in cases] for name in columns},
        }

    def _call(self, reward: Reward, cases: Sequence[RewardCase]) -> Any:
        return reward(**self._arguments(cases))

    def _scores(self, reward: Reward, cases: Sequence[RewardCase]) -> list[float | None]:
        return list(self._call(reward, cases))

    def _same(self, one: float | None, two: float | None) -> bool:
        if one is None or two is None:
            return one is two
        return math.isclose(one, two, rel_tol=self.tolerance, abs_tol=self.tolerance)


def _context(session: Session, folder: Path) -> StepContext:
    """What a reward is started with, outside of a run."""

    def nothing(*arguments: Any) -> NoReturn:
        raise NotImplementedError("a reward is started without an input model here")

    component = ComponentRef("trainer", "suite", "inline", "", "tunekit.testing:RewardSuite", "align")
    return StepContext(
        run_id="suite",
        step=ResolvedStep(1, "align", "align", component, {}, None, None, "full", None),
        options=None,
        seed=0,
        dir=folder,
        cancel=CancelToken(),
        input=None,
        _component=nothing,
        _load=nothing,
        _keep=nothing,
        _emit=lambda kind, **values: None,
        _load_other=lambda ref: session.resolve_model(ref).load(),
    )
