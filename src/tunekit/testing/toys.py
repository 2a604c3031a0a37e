"""A plugin without torch: a model that is never loaded, and steps that only log. For tests of trackers and data.

Hand the module itself to a session: ``isolated_session(tunekit.testing.toys)``; then
``Pipeline(model="toy-model").step("toy-work", steps=3)`` runs in milliseconds.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunekit.artifacts import Artifact
from tunekit.errors import ArtifactError, StepError
from tunekit.plugins.marker import hookimpl
from tunekit.plugins.options import DataOptions, Options
from tunekit.plugins.protocols import LoadedModel
from tunekit.plugins.specs import ModelSpec, StepSpec

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["METRICS", "ToyModel", "ToyRead", "ToyReadOptions", "ToyWork", "ToyWorkOptions"]

api_version = 1

METRICS = ({"loss": 0.1 + 0.2}, {"loss": 1 / 3, "tokens": 123_456_789}, {"loss": 2.5e-300, "grad_norm": -0.0})
"""What the steps log, again and again: numbers that do not survive rounding to a few digits or to float32."""


class ToyWorkOptions(Options):
    """How the step goes."""

    steps: int = 4
    """Optimizer steps that it claims to make."""
    fail_at: int | None = None
    """Optimizer step at which it raises ``StepError``."""
    kill_at: int | None = None
    """Optimizer step at which the process kills itself."""


class ToyWork:
    """Logs numbers, says that it saved checkpoints, and looks at the cancel token after every step."""

    def run(self, ctx: StepContext) -> Artifact:
        """Log.

        Raises:
            StepError: at ``fail_at``.
        """
        options: ToyWorkOptions = ctx.options
        ctx.notice("toy", 'nothing is trained here: ünïcode, a "quote"\nand a second line')
        saved = ctx.dir / "checkpoints"
        for step in range(1, options.steps + 1):
            ctx.metrics(step, METRICS[(step - 1) % len(METRICS)])
            ctx.progress(step, options.steps, "steps")
            if step % 2 == 0:
                saved.mkdir(exist_ok=True)
                (saved / "state.txt").write_text(str(step), encoding="utf-8")
                ctx.checkpoint_saved(saved, step)
            if step == options.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == options.fail_at:
                raise StepError("The toy step was asked to fail.", code="toy")
            ctx.cancel.raise_if_cancelled()
        return Artifact(kind="report", metrics={"loss": 0.25})


class ToyReadOptions(DataOptions):
    """Which rows it reads."""


class ToyRead:
    """Reads its data and counts the rows."""

    def run(self, ctx: StepContext) -> Artifact:
        """Count."""
        return Artifact(kind="report", metrics={"rows": 0 if ctx.data is None else sum(1 for _ in ctx.data.rows())})


class ToyModel:
    """A model that is there but cannot be loaded."""

    ref = "toy-model"
    kind = "memory"

    def describe(self) -> str:
        """One line."""
        return "a stand-in for a model"

    def problems(self) -> Sequence[str]:
        """None."""
        return ()

    def fingerprint(self) -> str:
        """Always the same."""
        return "0" * 64

    def load(self) -> LoadedModel:
        """Raises:
        ArtifactError: always.
        """
        raise ArtifactError("The toy model has no weights.", code="toy")


@hookimpl
def tunekit_models() -> list[ModelSpec]:
    """The model that is never loaded."""
    return [ModelSpec(name="toy-model", target="tunekit.testing.toys:ToyModel", summary="has no weights")]


@hookimpl
def tunekit_steps() -> list[StepSpec]:
    """The steps that only log and only read."""
    return [
        StepSpec(
            name="toy-work",
            target="tunekit.testing.toys:ToyWork",
            summary="logs a few numbers",
            options="tunekit.testing.toys:ToyWorkOptions",
            makes="report",
        ),
        StepSpec(
            name="toy-read",
            target="tunekit.testing.toys:ToyRead",
            summary="counts the rows of its data",
            options="tunekit.testing.toys:ToyReadOptions",
            makes="report",
            data=("text", "prompt_completion", "conversation", "preference", "feedback"),
        ),
    ]
