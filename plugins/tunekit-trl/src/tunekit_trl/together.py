"""Processes of a distributed training: work that each does alone and that ends for all if it ends for one, and what
they cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tunekit.errors import RunCancelled, StepError

__all__ = ["refuse_sharded", "together"]

_Made = TypeVar("_Made")


def together(work: Callable[[], _Made], processes: int, doing: str) -> _Made:
    """What ``work``, which other processes have no part in, gives. An error or a cancel in one process ends all:
    otherwise the others would wait for it for ever.

    Args:
        work: is done in this process. All processes must call this.
        processes: how many there are.
        doing: what the error of the other processes calls it, such as ``"the reference was computed"``.

    Raises:
        RunCancelled: if any process was cancelled.
        StepError: code ``other-process`` if only another process failed.
    """
    made: Any = None
    problem: Exception | None = None
    try:
        made = work()
    except Exception as error:  # noqa: BLE001  (raised again, once the others know)
        problem = error
    cancelled = isinstance(problem, RunCancelled)
    told: Any = cancelled if problem is None or cancelled else f"{type(problem).__name__}: {problem}"
    everyone: list[Any] = [told]
    if processes > 1:
        everyone = [None] * processes
        torch.distributed.all_gather_object(everyone, told)
    if problem is not None and not cancelled:
        raise problem
    for number, what in enumerate(everyone):
        if isinstance(what, str):
            raise StepError(
                f"Process {number} failed while {doing}: {what}",
                code="other-process",
                fix="see the error of that process",
                details={"process": number},
            ) from problem
    if problem is not None:
        raise problem
    if any(everyone):
        raise RunCancelled(
            f"Another process was cancelled while {doing}.",
            fix="run the same pipeline again in the same workdir to continue",
        )
    return made  # type: ignore[no-any-return]


def refuse_sharded(trainer: Any, method: str) -> None:
    """For trainings whose processes make different numbers of passes: with weights in shards each pass is one of all.

    Raises:
        StepError: code ``sharded``, under FSDP or DeepSpeed.
    """
    found = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed" if trainer.is_deepspeed_enabled else ""
    if found:
        raise StepError(
            f"{method} does not train a model whose weights are spread over the processes.",
            code="sharded",
            asked=f"{method} under {found}",
            found="processes that ask the model different numbers of times, and would wait for each other for ever",
            fix="start the processes without it (each has the whole model), with an adapter if memory is short",
        )
