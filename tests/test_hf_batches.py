"""Micro-batches: every row once per epoch on all processes together, full, and without padding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tunekit.plugins.hf.batches import IGNORED, BatchPlan, Collator, RowSource, pack

LENGTHS = np.random.default_rng(0).integers(3, 200, 101)

MODES: dict[str, dict[str, Any]] = {
    "rows": {"batch_size": 4},
    "tokens": {"batch_size": 1000, "max_tokens": 512},
    "tokens-padded": {"batch_size": 1000, "max_tokens": 512, "padded": True},
    "packed": {"batch_size": 2, "pack_length": 256},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [1, 3])
def test_every_row_is_learned_once_and_processes_do_the_same_number_of_batches(mode: str, world: int) -> None:
    plans = [BatchPlan(LENGTHS, **MODES[mode], seed=3, rank=rank, world=world) for rank in range(world)]
    orders = []
    for epoch in (0, 1):
        seen: Counter[int] = Counter()
        for plan in plans:
            plan.set_epoch(epoch)
            batches = list(plan)
            assert len(batches) == len(plan) == len(plans[0])
            assert batches == list(plan), "an epoch that is iterated again is the same: a resume skips what is done"
            learned = [row for batch in batches for row in batch if row >= 0]
            assert sum(row < 0 for batch in batches for row in batch) <= 1
            seen.update(learned)
            orders.append(learned)
        assert seen == Counter(range(len(LENGTHS)))
    assert orders[0] != orders[world], "another epoch has another order"
    assert list(BatchPlan(LENGTHS, **MODES[mode], seed=4)) != list(BatchPlan(LENGTHS, **MODES[mode], seed=3))


def test_rows_come_in_the_order_of_transformers() -> None:
    from accelerate.data_loader import SeedableRandomSampler

    reference = SeedableRandomSampler(range(101), data_seed=7)
    plan = BatchPlan(LENGTHS, batch_size=8, seed=7)
    for epoch in (0, 3):
        reference.set_epoch(epoch)
        plan.set_epoch(epoch)
        assert [row for batch in plan for row in batch] == list(reference)


def test_batches_by_tokens_hold_as_much_as_the_limit_allows() -> None:
    """By true lengths: eight rows of 1000 fit in 8000. Rows of nearly one length are with others in each epoch."""
    assert {len(batch) for batch in BatchPlan([1000] * 64, batch_size=100, max_tokens=8000)} == {8}
    lengths = [2000 - row for row in range(400)]
    plan = BatchPlan(lengths, batch_size=100, max_tokens=10_000)
    seen = []
    for epoch in range(3):
        plan.set_epoch(epoch)
        batches = list(plan)
        assert len(batches) == len(plan)
        assert max(sum(lengths[row] for row in batch) for batch in batches) <= 10_000
        seen.append({frozenset(batch) for batch in batches})
    assert seen[0] != seen[1] != seen[2]


def test_batches_are_filled_by_tokens() -> None:
    plan = BatchPlan(LENGTHS, batch_size=10**6, max_tokens=512)
    totals = [int(LENGTHS[batch].sum()) for batch in plan]
    assert max(totals) <= 512
    assert sum(totals) / len(totals) > 0.8 * 512
    for batch in BatchPlan(LENGTHS, batch_size=10**6, max_tokens=512, padded=True):
        assert int(LENGTHS[batch].max()) * len(batch) <= 512
        assert LENGTHS[batch].max() - LENGTHS[batch].min() <= 40, "rows of similar length are together"
    assert max(len(batch) for batch in BatchPlan(LENGTHS, batch_size=3, max_tokens=512)) == 3
    assert sorted(map(tuple, BatchPlan([600, 5, 5], batch_size=9, max_tokens=16))) in ([(0,), (1, 2)], [(0,), (2, 1)])
    with pytest.raises(ValueError, match="exclude"):
        BatchPlan(LENGTHS, batch_size=1, max_tokens=8, pack_length=8)


def test_blocks_are_packed_best_fit_first() -> None:
    assert pack(np.array([6, 5, 4, 3, 2]), 10) == [[0, 2], [1, 3, 4]]
    assert pack(np.array([12, 10, 1]), 10) == [[0], [1], [2]]
    blocks = pack(LENGTHS, 256)
    assert sorted(row for block in blocks for row in block) == list(range(len(LENGTHS)))
    assert max(int(LENGTHS[block].sum()) for block in blocks) <= 256
    assert len(blocks) <= int(LENGTHS.sum()) / 256 * 1.05 + 1


def test_a_micro_batch_is_one_sequence_in_which_no_first_token_is_a_target() -> None:
    """T12: the first token of an example must not be predicted from the last one of the example before."""
    rows = [
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3]},
        {"input_ids": [4, 5, 6, 7, 8], "labels": [IGNORED, 5, 6, 7, 8], "position_ids": [0, 1, 2, 0, 1]},
    ]
    batch = Collator()(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch["targets"].tolist() == [[2, 3, IGNORED, 5, 6, IGNORED, 8, IGNORED]]
    assert batch["lengths"] == (3, 3, 2) and batch["document_targets"] == (2, 2, 1) and batch["target_count"] == 5
    masked = Collator("masked")(rows)
    assert masked["targets"].tolist() == [[1, 2, 3, IGNORED, 5, 6, 7, 8]]
    continued = Collator()([{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": [7, 8, 0]}])
    assert continued["position_ids"].tolist() == [[0, 1, 0]]
    assert rows[0]["labels"] == [1, 2, 3], "rows are left as they are"


def test_a_row_that_fills_up_a_batch_teaches_nothing() -> None:
    source = RowSource([{"input_ids": [1, 2], "labels": [1, 2]}])
    assert source[0]["labels"] == [1, 2] and source[~0]["labels"] == [IGNORED, IGNORED]
