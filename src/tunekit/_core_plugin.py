"""What tunekit itself provides as a plugin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tunekit.plugins import DatasetSpec, hookimpl

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.context import StepContext
    from tunekit.plan import ResolvedStep

api_version = 1

_STORE = re.compile(r"(sqlite|postgres(ql)?)(\+\w+)?:|\.(db|sqlite3?)$", re.IGNORECASE)
"""References that may be a feedback store."""


@hookimpl(trylast=True)
def tunekit_run_step(step: ResolvedStep, ctx: StepContext) -> Artifact:
    """Run the step's component here, in this process."""
    return ctx.component().run(ctx)


@hookimpl(trylast=True)
def tunekit_resolve_dataset(ref: Any) -> Any:
    """A feedback store, by the path of its file or the address of its database."""
    if not isinstance(ref, str) or not _STORE.search(ref):
        return None
    from tunekit.feedback import is_feedback, opened

    return opened(ref) if is_feedback(ref) else None


@hookimpl
def tunekit_datasets() -> list[DatasetSpec]:
    """The embedded data sets: defaults of training steps that name no data."""
    return [
        DatasetSpec(
            name="stdlib-text",
            schema="text",
            target="tunekit._embedded.stdlib:text_rows",
            summary="language topics and docstrings of the Python standard library",
            license="PSF-2.0",
        ),
        DatasetSpec(
            name="stdlib-instructions",
            schema="prompt_completion",
            target="tunekit._embedded.stdlib:instruction_rows",
            summary="questions about Python and the first lines of its documentation",
            license="PSF-2.0",
        ),
        DatasetSpec(
            name="stdlib-preferences",
            schema="preference",
            target="tunekit._embedded.stdlib:preference_rows",
            summary="questions about Python, each with the right and a wrong explanation",
            license="PSF-2.0",
        ),
    ]
