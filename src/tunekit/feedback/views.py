"""Judgements and what can be made of them: the same for a whole store and for a part of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.data.schemas import MOST_PAIRS, conversion
from tunekit.errors import DataError
from tunekit.feedback import exports
from tunekit.feedback.methods import learners
from tunekit.feedback.records import MICRO, Record, as_micros
from tunekit.feedback.splits import SplitReport, split_records

if TYPE_CHECKING:
    from tunekit.data.dataset import Dataset
    from tunekit.feedback.export import Export

__all__ = ["FeedbackView", "Judgements"]

Redact = Callable[[str], str]
Time = float | str | datetime.datetime
"""Seconds since the epoch, an ISO 8601 text, or a datetime with a time zone."""


class Judgements:
    """Records, and the exports of them. Base of :class:`FeedbackStore` and :class:`FeedbackView`."""

    name: str

    def records(self) -> Iterator[Record]:
        """The records as of now, oldest first.

        Raises:
            DataError: for a record that is not as it was written.
            ArtifactError: if the store cannot be read.
        """
        raise NotImplementedError

    def where(
        self,
        *,
        since: Time | None = None,
        until: Time | None = None,
        user_hash: str | None = None,
        model_hash: str | None = None,
        source: str | None = None,
    ) -> FeedbackView:
        """The records of a time (``since`` inclusive, ``until`` exclusive), a user, a model or a source.

        A view with ``until`` in the past gives the same rows however much is recorded later: what a step that may be
        continued should train on.
        """
        fields = {"user_hash": user_hash, "model_hash": model_hash, "source": source}
        wanted = {name: value for name, value in fields.items() if value is not None}
        return FeedbackView(self, _Matching(as_micros(since), as_micros(until), wanted))

    def split(
        self, held_out: float = 0.1, *, by: str = "prompt", seed: int = 0
    ) -> tuple[FeedbackView, FeedbackView, SplitReport]:
        """``(train, held_out, report)``: two views without a prompt in common, and what became of the records.

        A conversation that goes on from a judged exchange is on the same side as that exchange. Which side a prompt or
        a user is on follows from a hash and ``seed``, not from the other records. What would be held out but shares
        its prompt with what is trained on is on neither side.

        Args:
            held_out: share to hold out, between 0 and 1.
            by: ``prompt``: prompts are new. ``user``: prompts and users are new; records without a user are on neither
                side. ``time``: prompts are new, and no judgement is older than ``report.boundary``; what is trained on
                is.
            seed: another seed holds out other prompts or users.

        Raises:
            DataError: if a side would be empty, or no record has a user.
        """
        records = list(self.records())
        train, held, report = split_records(records, held_out, by, seed)
        return (
            FeedbackView(self, _Among(frozenset(train))),
            FeedbackView(self, _Among(frozenset(held))),
            report,
        )

    # Rows.

    def preferences(
        self,
        *,
        min_votes: int = 1,
        min_agreement: float = 0.5,
        derived: bool = True,
        min_gap: float = 0.25,
        rating_split: float | None = 0.5,
        max_pairs: int | None = MOST_PAIRS,
        margins: bool = False,
        dedupe: str = "exact",
        redact: Redact | None = None,
    ) -> Export:
        """Preference pairs ``{prompt, chosen, rejected, margin?, tools?}``.

        An edit is preferred to the answer that it mends, a chosen answer to those it was chosen over, and, with
        ``derived``, what a user thought well of to what the same user thought badly of. Where several users compared
        two answers, the majority decides. Where none did, the verdicts of different users on the two answers do.
        Pairs on a circle (a over b over c over a) are left out.

        Of a prompt with more than 64 answers only as many pairs are derived as a choice of ``max_pairs`` needs; the
        report counts these.

        Args:
            min_votes: least number of voters on a pair that was compared, and on each answer of one that was not.
            min_agreement: least share of the majority, 0 to 1. A tie is never decided. Of the ratings of different
                users, where the thumbs that they amount to do not tell the answers apart: 1 minus their mean distance
                from the median, as a share of the scale.
            derived: take pairs from thumbs and ratings, not only from direct comparisons and edits.
            min_gap: least difference of two ratings, as a share of their scale.
            rating_split: ratings above this place on their scale (0 to 1) count as thumbs up, below it as thumbs down;
                None: ratings are no thumbs.
            max_pairs: most pairs of one prompt; None: all.
            margins: give the difference of the mean ratings (0 to 1) as ``margin``, where both answers are rated.
            dedupe: ``exact``, or ``near`` to leave out rows with nearly the words of an earlier one.
            redact: applied to every text, beside what the store did when it was written.
        """
        rules = exports.Rules(min_votes, min_agreement, rating_split, min_gap)
        return exports.preferences(
            self.name,
            list(self.records()),
            rules=rules,
            derived=derived,
            max_pairs=max_pairs,
            margins=margins,
            dedupe=dedupe,
            redact=redact,
        )

    def labelled(
        self,
        *,
        min_votes: int = 1,
        min_agreement: float = 0.5,
        rating_split: float | None = 0.5,
        comparisons: bool = False,
        dedupe: str = "exact",
        redact: Redact | None = None,
    ) -> Export:
        """Thumbs ``{prompt, completion, label, tools?}``, as KTO and BCO take them: one row an answer, by majority.

        An edit says that the answer was bad, unless the user gave it a thumb or a rating as well, and that the edited
        one is good.

        Args:
            min_votes: as for :meth:`preferences`.
            min_agreement: as for :meth:`preferences`.
            rating_split: as for :meth:`preferences`.
            comparisons: let a chosen answer count as good and those it was chosen over as bad. Off: the better of two
                answers may still be a bad one.
            dedupe: as for :meth:`preferences`.
            redact: as for :meth:`preferences`.
        """
        rules = exports.Rules(min_votes, min_agreement, rating_split)
        records = list(self.records())
        return exports.labelled(self.name, records, rules=rules, comparisons=comparisons, dedupe=dedupe, redact=redact)

    def rated(
        self,
        *,
        min_votes: int = 1,
        min_agreement: float = 0.0,
        scale: tuple[float, float] | None = None,
        dedupe: str = "exact",
        redact: Redact | None = None,
    ) -> Export:
        """Ratings ``{prompt, completion, score, tools?}`` for a reward model: the mean over users.

        Args:
            min_votes: least number of ratings of an answer.
            min_agreement: least agreement: 1 minus twice the mean distance from the median, as a share of the scale.
            scale: of the scores; default: that of the ratings, which must then be one.
            dedupe: as for :meth:`preferences`.
            redact: as for :meth:`preferences`.

        Raises:
            DataError: if the ratings are on several scales and none is given.
        """
        rules = exports.Rules(min_votes, min_agreement)
        return exports.rated(self.name, list(self.records()), rules=rules, scale=scale, dedupe=dedupe, redact=redact)

    def demonstrations(
        self,
        *,
        min_votes: int = 1,
        min_agreement: float = 0.5,
        rating_split: float | None = 0.5,
        dedupe: str = "exact",
        redact: Redact | None = None,
    ) -> Export:
        """Answers to learn from, ``{prompt, completion, tools?}``, for ``sft``: what users wrote themselves, and, for
        prompts without that, what the majority found good. The arguments are those of :meth:`labelled`."""
        rules = exports.Rules(min_votes, min_agreement, rating_split)
        return exports.demonstrations(self.name, list(self.records()), rules=rules, dedupe=dedupe, redact=redact)

    def prompts(self, *, dedupe: str = "exact", redact: Redact | None = None) -> Export:
        """Every prompt once, ``{prompt, tools?}``, for methods that write answers themselves."""
        return exports.prompts(self.name, list(self.records()), dedupe=dedupe, redact=redact)

    # What a step asks.

    def as_dataset(
        self, accepts: Sequence[str] = (), *, limit: int | None = None, on_bad_row: str = "error"
    ) -> Dataset:
        """The rows that a step takes, with the default rules: the first shape of ``accepts`` that has any.

        What is recorded later is not among them.

        Raises:
            DataError: if the judgements give no such rows; it says what they give.
        """
        made = _Made(self)
        wanted = tuple(accepts) or tuple(made)
        for shape in wanted:
            if made.get(shape):
                return made[shape].as_dataset(wanted, limit=limit, on_bad_row=on_bad_row)
        for shape in made:
            if conversion(shape, wanted) is not None and made[shape]:
                return made[shape].as_dataset(wanted, limit=limit, on_bad_row=on_bad_row)
        raise DataError(
            f"{self.name} gives no {' or '.join(wanted)} rows.",
            code="no-such-feedback",
            asked=f"rows of the shape {' or '.join(wanted)}",
            found=_found(made),
            fix=_fix(made, wanted),
            details={shape: len(export) for shape, export in made.items()},
        )

    def best_method(self, stage: str = "align") -> tuple[str, str] | None:
        """``(method, reason)`` for a step that names no method; None for stages other than ``align``.

        ``dpo`` where pairs hold at least as many judged answers as there are answers with a thumb, else ``kto``, which
        needs thumbs of both kinds.

        Raises:
            DataError: if no method fits; it says why.
        """
        from tunekit.feedback.methods import method_for

        if stage != "align":
            return None
        made = _Made(self)
        return method_for({shape: made[shape].rows for shape in ("preference", "feedback", "rated")}, self.name)

    def statistics(self) -> dict[str, Any]:
        """Counts: ``records``, ``prompts``, ``users``, ``models``, ``thumbs_up``, ``thumbs_down``, ``ratings``,
        ``edits``, ``comparisons``; and ``first`` and ``last``, seconds since the epoch or None."""
        counts = dict.fromkeys(("records", "thumbs_up", "thumbs_down", "ratings", "edits", "comparisons"), 0)
        seen: dict[str, set[str]] = {"prompts": set(), "users": set(), "models": set()}
        times: list[float] = []
        for record in self.records():
            counts["records"] += 1
            counts["thumbs_up"] += record.thumbs is True
            counts["thumbs_down"] += record.thumbs is False
            counts["ratings"] += record.rating is not None
            counts["edits"] += record.edit is not None
            counts["comparisons"] += bool(record.chosen_over)
            seen["prompts"].add(record.prompt_key)
            seen["users"].add(record.user_hash)
            seen["models"].add(record.model_hash)
            times = [min(record.time, *times), max(record.time, *times)] if times else [record.time, record.time]
        sizes = {name: len(found - {""}) for name, found in seen.items()}
        return {**counts, **sizes, "first": times[0] if times else None, "last": times[1] if times else None}


class _Made(Mapping[str, "Export"]):
    """Shape -> rows by the default rules, of the records as of the first look; each made when it is asked for."""

    _SHAPES = ("preference", "feedback", "prompt_completion", "prompt", "rated")

    def __init__(self, judgements: Judgements) -> None:
        self._name = judgements.name
        self._records = list(judgements.records())
        self._done: dict[str, Export] = {}

    def __contains__(self, shape: object) -> bool:
        return shape in self._SHAPES

    def __iter__(self) -> Iterator[str]:
        return iter(self._SHAPES)

    def __len__(self) -> int:
        return len(self._SHAPES)

    def __getitem__(self, shape: str) -> Export:
        if shape not in self._done:
            self._done[shape] = self._make(shape)
        return self._done[shape]

    def _make(self, shape: str) -> Export:
        if shape == "prompt":
            return exports.prompts(self._name, self._records)
        if shape == "rated":
            scales = {record.scale for record in self._records if record.scale is not None}
            one = next(iter(scales)) if len(scales) == 1 else (0.0, 1.0)
            return exports.rated(self._name, self._records, rules=exports.Rules(min_agreement=0.0), scale=one)
        rules = exports.Rules()
        if shape == "preference":
            return exports.preferences(self._name, self._records, rules=rules)
        if shape == "feedback":
            return exports.labelled(self._name, self._records, rules=rules)
        if shape == "prompt_completion":
            return exports.demonstrations(self._name, self._records, rules=rules)
        raise KeyError(shape)


_FIXES = {
    "preference": "record edit= or chosen_over=, or judge several answers to one prompt",
    "feedback": "record thumbs= or rating=",
    "rated": "record rating=",
    "ranked": "record chosen_over=",
    "prompt_completion": "record edit=, or thumbs= on good answers",
}


def _fix(made: Mapping[str, Export], wanted: Sequence[str]) -> str:
    """What to write for the rows that there are, or else what to record."""
    record = _FIXES.get(wanted[0], "record judgements that say so")
    there = learners({shape: export for shape, export in made.items() if shape not in wanted})
    return f"{', '.join(there)}; or {record}" if there else record


def _found(made: Mapping[str, Export]) -> str:
    parts = [f"{len(export):,} {shape} rows" for shape, export in made.items()]
    records = next(iter(made.values())).report.records
    return f"{records:,} judgements, which give {', '.join(parts)}"


@dataclass(frozen=True)
class _Matching:
    """Keeps the records of a time, from ``low`` to below ``high`` in microseconds, and with some fields."""

    low: int | None
    high: int | None
    fields: Mapping[str, str]

    def __call__(self, record: Record) -> bool:
        micros = round(record.time * MICRO)
        return (
            (self.low is None or micros >= self.low)
            and (self.high is None or micros < self.high)
            and all(getattr(record, name) == value for name, value in self.fields.items())
        )


@dataclass(frozen=True)
class _Among:
    ids: frozenset[str]

    def __call__(self, record: Record) -> bool:
        return record.id in self.ids


class FeedbackView(Judgements):
    """Some of the records of a store. Made by :meth:`Judgements.where` and :meth:`Judgements.split`."""

    def __init__(self, base: Judgements, keeps: Callable[[Record], bool]) -> None:
        self._base = base
        self._keeps = keeps
        self.name = base.name

    def records(self) -> Iterator[Record]:
        """Those of the store that belong to the view, oldest first."""
        return filter(self._keeps, self._base.records())

    def __len__(self) -> int:
        return sum(1 for _ in self.records())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<part of {self.name}>"
