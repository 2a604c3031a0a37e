"""Which rows form a micro-batch, and the micro-batch as one sequence without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["IGNORED", "BatchPlan", "Collator", "RowSource", "pack"]

IGNORED = -100
"""Label of a token that is not learned; what torch's cross-entropy leaves out."""

_LENGTH_CLASSES = 128


class BatchPlan:
    """The micro-batches of an epoch as lists of row numbers; a ``batch_sampler`` for ``torch.utils.data.DataLoader``.

    Every row is in exactly one batch per epoch, and an epoch has the same number of batches each time. The order of an
    epoch depends on ``seed`` and the epoch only, so that an interrupted epoch can be continued. Rows are grouped

    - by number: ``batch_size`` rows in random order, the order of ``transformers.Trainer`` for the same seed;
    - by tokens (``max_tokens``): rows of similar length up to this many tokens, at most ``batch_size`` of them. A
      longer row is a batch of its own;
    - packed (``pack_length``): rows are put into blocks of up to this many tokens, best fit first, longest rows first;
      ``batch_size`` counts blocks.

    In a group of processes each takes every ``world``-th batch. Where that does not come out even, the processes that
    are short get a batch whose row is written ``~number``: it is run, so that all processes do the same number of
    steps, but nothing of it is learned.

    Args:
        lengths: tokens per row, (rows,).
        batch_size: most rows (or blocks) of a batch.
        max_tokens: most tokens of a batch; None: no limit.
        pack_length: length of a block; None: no packing.
        padded: whether rows are padded to the longest of the batch; ``max_tokens`` then counts padding too.
        seed: of the order.
        rank: number of this process.
        world: number of processes.

    Raises:
        ValueError: for no rows, or both ``max_tokens`` and ``pack_length``.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray[Any, Any],
        *,
        batch_size: int,
        max_tokens: int | None = None,
        pack_length: int | None = None,
        padded: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        import numpy as np

        self.lengths = np.asarray(lengths, dtype=np.int64)
        if len(self.lengths) == 0:
            raise ValueError("there are no rows")
        if max_tokens is not None and pack_length is not None:
            raise ValueError("max_tokens and pack_length exclude each other")
        self.batch_size, self.max_tokens, self.pack_length = batch_size, max_tokens, pack_length
        self.padded, self.seed, self.rank, self.world = padded, seed, rank, world
        self.epoch = 0
        self._length: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is iterated over."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch of each process."""
        if self._length is None:
            self._length = -(-len(self._batches()) // self.world)
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches()
        own = batches[self.rank :: self.world]
        yield from own
        if len(own) < len(self):
            yield [~batches[0][0]]

    def _batches(self) -> list[list[int]]:
        import torch

        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        if self.max_tokens is None and self.pack_length is None:
            return _chunks([int(row) for row in order], self.batch_size)
        if self.pack_length is not None:
            blocks = pack(self.lengths, self.pack_length, order)
            turn = torch.randperm(len(blocks), generator=generator).tolist()
            return [[row for number in group for row in blocks[number]] for group in _chunks(turn, self.batch_size)]
        groups = self._by_tokens(order, int(torch.randint(2**31, (), generator=generator)))
        return [groups[number] for number in torch.randperm(len(groups), generator=generator).tolist()]

    def _by_tokens(self, order: np.ndarray[Any, Any], seed: int) -> list[list[int]]:
        """Cuts between groups are at the same ranks of the sorted lengths in every epoch; which of the rows of about
        one length goes where is random, as far as the limit allows."""
        import numpy as np

        limit = self.max_tokens
        assert limit is not None
        ordered = order[np.argsort(-self.lengths[order], kind="stable")]
        groups: list[list[int]] = []
        group: list[int] = []
        used = 0
        for row, cost in zip(ordered.tolist(), self.lengths[ordered].tolist(), strict=True):
            now = int(self.lengths[group[0]]) * (len(group) + 1) if self.padded and group else used + cost
            if group and (now > limit or len(group) >= self.batch_size):
                groups.append(group)
                group, used = [], 0
            group.append(row)
            used += cost
        groups.append(group)
        self._exchange(groups, limit, seed)
        return groups

    def _exchange(self, groups: list[list[int]], limit: int, seed: int) -> None:
        """Rows of nearly one length change places between neighbouring groups where both stay within the limit."""
        import numpy as np

        near = max(1, limit // _LENGTH_CLASSES)
        lengths = self.lengths.tolist()
        sums = [sum(lengths[row] for row in group) for group in groups]
        draw = np.random.default_rng(seed).random((len(lengths), 2)).tolist()
        turn = 0
        for number in range(len(groups) - 1):
            one, other = groups[number], groups[number + 1]
            for _ in range(min(len(one), len(other))):
                here, there = int(draw[turn][0] * len(one)), int(draw[turn][1] * len(other))
                turn += 1
                more = lengths[other[there]] - lengths[one[here]]
                if abs(more) > near:
                    continue
                if not self.padded and (sums[number] + max(more, 0) > limit or sums[number + 1] - min(more, 0) > limit):
                    continue
                one[here], other[there] = other[there], one[here]
                if self.padded and any(max(lengths[row] for row in each) * len(each) > limit for each in (one, other)):
                    one[here], other[there] = other[there], one[here]
                    continue
                sums[number] += more
                sums[number + 1] -= more


def pack(lengths: np.ndarray[Any, Any], size: int, order: np.ndarray[Any, Any] | None = None) -> list[list[int]]:
    """Row numbers in blocks of at most ``size`` tokens: best fit, longest rows first (Johnson 1973).

    A row longer than ``size`` is a block of its own. ``order`` (a permutation of the rows) says which of the rows of
    one length comes first; the number of blocks does not depend on it.
    """
    import numpy as np

    rows = np.arange(len(lengths)) if order is None else order
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    blocks: list[list[int]] = []
    # By room that is left: the blocks with that much, and a bit for "there is one".
    open_blocks: list[list[int]] = [[] for _ in range(size + 1)]
    rooms = 0
    for row, length in zip(rows.tolist(), lengths[rows].tolist(), strict=True):
        fitting = rooms >> length if length <= size else 0
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = open_blocks[room].pop()
            if not open_blocks[room]:
                rooms &= ~(1 << room)
            blocks[number].append(row)
        else:
            room = size
            number = len(blocks)
            blocks.append([row])
        left = room - length
        if left > 0:
            open_blocks[left].append(number)
            rooms |= 1 << left
    return blocks


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


class RowSource:
    """Token rows for a ``DataLoader`` under a :class:`BatchPlan`: ``~number`` gives the row with nothing to learn."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        if number >= 0:
            row: Mapping[str, Any] = self.rows[number]
            return row
        row = self.rows[~number]
        return {**row, "labels": [IGNORED] * len(row["input_ids"])}


@dataclass(frozen=True)
class Collator:
    """Token rows to one micro-batch without padding.

    Rows are mappings with ``input_ids`` and ``labels`` (not shifted, -100: not learned) and, for a row that holds
    several documents, ``position_ids`` that begin at 0 with each of them. The micro-batch:

    - ``input_ids``, ``position_ids``, (1, tokens), int64: the documents one after the other, each with positions from
      0;
    - ``targets``, (1, tokens), int64: what is to be predicted *at* each position. With the objective ``causal`` that is
      the label of the next token of the same document, so that no document's first token is ever a target; with
      ``masked`` the label itself;
    - ``lengths``: tokens of each document, a tuple; they add up to ``tokens``;
    - ``document_targets``: positions with a target, of each document; ``target_count``: of all.
    """

    objective: str = "causal"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import numpy as np
        import torch

        ids = np.concatenate([np.asarray(row["input_ids"], dtype=np.int64) for row in rows])
        labels = np.concatenate([np.asarray(row["labels"], dtype=np.int64) for row in rows])
        positions = np.concatenate([_positions(row) for row in rows])
        starts = np.flatnonzero(positions == 0)
        if self.objective == "causal":
            labels[starts] = IGNORED
            labels = np.append(labels[1:], IGNORED)
        lengths = np.diff(np.append(starts, len(ids)))
        counts = np.add.reduceat((labels != IGNORED).astype(np.int64), starts)
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": torch.from_numpy(positions)[None],
            "targets": torch.from_numpy(labels)[None],
            "lengths": tuple(lengths.tolist()),
            "document_targets": tuple(counts.tolist()),
            "target_count": int(counts.sum()),
        }


def _positions(row: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Positions of a row's tokens; a block that begins in the middle of a document begins at 0 all the same."""
    import numpy as np

    own = row.get("position_ids")
    if own is None:
        return np.arange(len(row["input_ids"]), dtype=np.int64)
    positions = np.asarray(own, dtype=np.int64).copy()
    first = np.flatnonzero(positions == 0)
    begin = int(first[0]) if len(first) else len(positions)
    positions[:begin] = np.arange(begin)
    return positions
