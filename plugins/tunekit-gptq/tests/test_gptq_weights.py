"""Unpacking against a reference in numpy, written from the format's description."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunekit_gptq.weights import dequantize


def pack(codes: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Codes into int32 words along ``axis``, lowest bits first."""
    per = 32 // bits
    moved = np.moveaxis(codes.astype(np.uint64), axis, 0)
    moved = np.concatenate([moved, np.zeros((-len(moved) % per, *moved.shape[1:]), dtype=np.uint64)])
    words = np.zeros((len(moved) // per, *moved.shape[1:]), dtype=np.uint64)
    for at in range(per):
        words |= moved[at::per] << np.uint64(bits * at)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), 0, axis)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_weights_are_scale_times_code_minus_zero(bits: int, layout: str) -> None:
    rng = np.random.default_rng(bits)
    inputs, outputs, groups = 64, 48, 3
    codes = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(1, 2**bits, (groups, outputs))
    scales = rng.random((groups, outputs)).astype(np.float16)
    group = rng.integers(0, groups, inputs).astype(np.int32)  # any order, as desc_act gives it
    expected = scales.astype(np.float32)[group] * (codes - zeros[group]).astype(np.float32)

    offset = 1 if layout == "gptq" else 0
    got = dequantize(
        torch.from_numpy(pack(codes, bits, 0)),
        torch.from_numpy(pack(zeros - offset, bits, 1)),
        torch.from_numpy(scales),
        torch.from_numpy(group),
        zero_offset=offset,
    )
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), expected)


def test_a_zero_point_of_zero_survives_the_older_layout() -> None:
    """GPTQModel subtracts one from whole words: a zero point of 0 borrows from the next one."""
    zeros = np.array([[0, 3, 0, 0, 15, 1, 0, 7]])
    words = pack(zeros, 4, 1) - np.int32(0x11111111)
    codes = np.tile(np.arange(8).reshape(8, 1), (1, 8))
    got = dequantize(
        torch.from_numpy(pack(codes, 4, 0)),
        torch.from_numpy(words),
        torch.ones(1, 8, dtype=torch.float16),
        torch.zeros(8, dtype=torch.int32),
    )
    np.testing.assert_array_equal(got.numpy(), codes - zeros)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    good = {
        "qweight": torch.zeros(8, 32, dtype=torch.int32),
        "qzeros": torch.zeros(2, 4, dtype=torch.int32),
        "scales": torch.ones(2, 32, dtype=torch.float16),
        "g_idx": torch.zeros(64, dtype=torch.int32),
    }
    dequantize(**good)
    for name, bad in {
        "qweight": torch.zeros(7, 32, dtype=torch.int32),
        "qzeros": torch.zeros(2, 3, dtype=torch.int32),
        "scales": torch.ones(3, 32, dtype=torch.float16),
        "g_idx": torch.full((64,), 2, dtype=torch.int32),
    }.items():
        with pytest.raises(ValueError, match=r"qweight|shapes differ|g_idx"):
            dequantize(**{**good, name: bad})
