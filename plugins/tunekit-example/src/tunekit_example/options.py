"""Options of the components. Pydantic, torch-free: they are checked before a run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from tunekit.plugins import Options, TrainOptions

RATES = {"full": 2e-5, "adapter": 2e-4}


class PlainOptions(TrainOptions):
    """What every trainer of weights takes, and one option of its own."""

    learn_prompt: bool = False
    """Learn every token, not only those of the answer."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate: 2e-5 for full training, 2e-4 through an adapter."""
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": RATES["adapter" if adapter else "full"]})


class RtnOptions(Options):
    """Rounding to the nearest step, without calibration."""

    scheme: Literal["int8"] = "int8"
    """Width of the stored weights."""


class WordsOptions(Options):
    """How long an answer should be."""

    words: int = Field(default=20, ge=1, json_schema_extra={"unit": "words"})
    """Words of the best answer."""


class CsvOptions(Options):
    """Where to write."""

    path: str | None = None
    """File to write. None: ``metrics.csv`` in the folder of the run."""
