"""Fixtures of the evaluation tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def stories(stories260k: Path) -> tuple[Any, Any]:
    """A real Llama of 260,032 parameters with its tokenizer (512 positions, one <s> in front, no chat template)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(stories260k)
