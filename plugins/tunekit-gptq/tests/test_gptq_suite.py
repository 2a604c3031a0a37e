"""GPTQ against the suite that every quantizer has to pass, with the real GPTQModel in its process."""

from __future__ import annotations

import pytest

from tunekit.testing import QuantizerSuite


@pytest.mark.slow
class TestGptq(QuantizerSuite):
    name = "tunekit-gptq/gptq"
