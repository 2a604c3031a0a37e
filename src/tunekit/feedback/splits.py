"""Held-out judgements that share nothing with those that are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunekit.errors import DataError, OptionsError
from tunekit.feedback.records import Record, Text, message_keys

__all__ = ["SplitReport", "components", "split_records"]

BY = ("prompt", "user", "time")


@dataclass
class SplitReport:
    """What a split did."""

    by: str
    train: int = 0
    """Judgements to train on."""
    held_out: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> judgements on neither side: ``shared-prompt`` (would be held out, but the prompt, or a conversation
    that it belongs to, is trained on), ``no-user`` (of a split by users)."""
    boundary: float | None = None
    """Of a split by time: seconds since the epoch; what is held out is not older."""

    def text(self) -> str:
        """One line for people."""
        parts = [f"{self.train:,} judgements to train on, {self.held_out:,} held out by {self.by}"]
        parts += [f"{number:,} on neither side ({_WHY[reason]})" for reason, number in sorted(self.left_out.items())]
        return ", ".join(parts)


_WHY = {"shared-prompt": "their prompts are trained on", "no-user": "nobody knows whose they are"}


class _Union:
    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, key: str) -> str:
        path = []
        while self._parent.get(key, key) != key:
            path.append(key)
            key = self._parent[key]
        for passed in path:
            self._parent[passed] = key
        return key

    def join(self, one: str, other: str) -> None:
        # The lower hash stands for both, so that the order of the records does not matter.
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low


def components(records: Sequence[Record]) -> dict[str, str]:
    """Prompt key -> a key that prompts which belong together have in common.

    A conversation belongs with every judged prompt that it begins with, whether the turns between were judged or not:
    it holds that prompt, and often the answer. The same messages with and without tools, or with another system
    message, belong together as well.
    """
    union = _Union()
    asked: dict[str, list[str]] = {}  # prompt key -> hashes of the beginnings of the prompt, the whole one last
    for record in records:
        if record.prompt_key not in asked:
            asked[record.prompt_key] = list(message_keys(_told(record.prompt), "user"))
    whole = {beginnings[-1] for beginnings in asked.values()}
    for key, beginnings in asked.items():
        for beginning in beginnings:
            if beginning in whole:
                union.join(key, beginning)
    return {key: union.find(key) for key in asked}


def _told(prompt: Text) -> Text:
    """A prompt without what the application says to the model; all of it if there is nothing else."""
    if isinstance(prompt, str):
        return prompt
    return [message for message in prompt if message.get("role") not in ("system", "developer")] or prompt


def split_records(
    records: Sequence[Record], held_out: float, by: str, seed: int
) -> tuple[set[str], set[str], SplitReport]:
    """Ids to train on and ids to hold out.

    Raises:
        OptionsError: for a wrong argument.
        DataError: if a side would be empty.
    """
    if by not in BY:
        raise OptionsError(f"by is {by!r}; it is {', '.join(map(repr, BY))}.", code="split", asked=f"by={by!r}")
    if isinstance(held_out, bool) or not isinstance(held_out, float) or not 0 < held_out < 1:
        raise OptionsError(
            f"held_out is {held_out!r}; it is a share between 0 and 1, such as 0.1.", code="split", asked=repr(held_out)
        )
    report = SplitReport(by)
    group = components(records)
    if by == "prompt":
        chosen = _drawn(set(group.values()), held_out, seed)
        held = {record.id for record in records if group[record.prompt_key] in chosen}
        train = {record.id for record in records} - held
    else:
        train, held = _by_user(records, held_out, seed, report) if by == "user" else _by_time(records, held_out, report)
        known = {group[record.prompt_key] for record in records if record.id in train}
        shared = {record.id for record in records if record.id in held and group[record.prompt_key] in known}
        held -= shared
        if shared:
            report.left_out["shared-prompt"] = len(shared)
    report.train, report.held_out = len(train), len(held)
    if not train or not held:
        raise DataError(
            f"Nothing is left to {'hold out' if train else 'train on'}.",
            code="empty-split",
            found=report.text(),
            fix="hold out another share, split by='prompt', or collect more feedback",
        )
    return train, held, report


def _by_user(records: Sequence[Record], held_out: float, seed: int, report: SplitReport) -> tuple[set[str], set[str]]:
    named = [record for record in records if record.user_hash]
    if not named:
        raise DataError(
            "No record says whose it is, so users cannot be held out.",
            code="no-users",
            fix="pass user_hash= to record(), or split by='prompt' or by='time'",
        )
    if len(named) < len(records):
        report.left_out["no-user"] = len(records) - len(named)
    chosen = _drawn({record.user_hash for record in named}, held_out, seed)
    held = {record.id for record in named if record.user_hash in chosen}
    return {record.id for record in named} - held, held


def _by_time(records: Sequence[Record], held_out: float, report: SplitReport) -> tuple[set[str], set[str]]:
    order = sorted(records, key=lambda record: (record.time, record.id))
    if not order:
        return set(), set()
    first = order[min(len(order) - 1, round((1 - held_out) * len(order)))]
    report.boundary = first.time
    held = {record.id for record in order if record.time >= first.time}
    return {record.id for record in order} - held, held


def _drawn(keys: set[str], share: float, seed: int) -> set[str]:
    """About a share of the keys, and of two or more at least one."""
    found = {key for key in keys if _chance(key, seed) < share}
    if not found and len(keys) > 1:
        found = {min(keys, key=lambda key: (_chance(key, seed), key))}
    return found


def _chance(key: str, seed: int) -> float:
    """A number from 0 to 1 that the key and the seed settle: records that come later move nothing."""
    drawn = hashlib.blake2b(f"tunekit-feedback-{seed}-{key}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") / 2**64
