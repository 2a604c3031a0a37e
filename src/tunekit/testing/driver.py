"""A program that runs one plan in a process of its own, and can kill itself: for tests of resuming.

``python -m tunekit.testing.driver JOB.json`` with a job of the form::

    {
        "plan": {...},                        # Plan.to_data(); its model is set by "model"
        "model": {"seed": 0},                 # arguments of tiny_pair, or null: the plan's own model
        "plugins": ["pkg.module", "pkg.module:Class"],
        "workdir": "runs/one",
        "seed": 0,                            # optional
        "autoload": true,                     # optional: load the installed plugins too
        "die": {"step": "sft", "at": 3},      # or null: SIGKILL when this checkpoint was reported
        "losses": "losses.json"               # optional; default: losses.json next to the job
    }

Losses are written as ``[[step, global_step, loss], ...]``, after every one, so that they survive the kill.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit._lazy import load_target
from tunekit.events import CheckpointSaved, Event, MetricLogged
from tunekit.pipeline import Pipeline
from tunekit.planfile import load_json
from tunekit.testing.sessions import isolated_session

__all__ = ["main", "write_job"]


def write_job(
    folder: str | Path,
    pipeline: Pipeline,
    *,
    workdir: str | Path,
    model: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    seed: int | None = None,
    autoload: bool = True,
    die: tuple[str, int] | None = None,
    name: str = "job",
) -> Path:
    """Write ``<name>.json`` for the program; losses go to ``<name>.losses.json`` next to it.

    Args:
        folder: where to write.
        pipeline: what to run. A model in memory is left out: ``model`` describes it.
        workdir: work folder of the run.
        model: arguments of :func:`tunekit.testing.tiny_pair`; None: the plan's own model.
        plugins: import strings of further plugins.
        seed: seed of the run.
        autoload: load the installed plugins too.
        die: name of the step and optimizer step of the checkpoint after whose report the process kills itself.
        name: stem of the file names.
    """
    plan = pipeline.plan.to_data()
    if model is not None:
        plan.pop("model", None)
    job = {
        "plan": plan,
        "model": None if model is None else dict(model),
        "plugins": list(plugins),
        "workdir": str(workdir),
        "seed": seed,
        "autoload": autoload,
        "die": None if die is None else {"step": die[0], "at": die[1]},
        "losses": str(Path(folder) / f"{name}.losses.json"),
    }
    path = Path(folder) / f"{name}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


class _Watch:
    def __init__(self, losses: Path, die: Mapping[str, Any] | None) -> None:
        self._path = losses
        self._die = die
        self._losses: list[tuple[str | None, int, float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, MetricLogged) and "loss" in event.values:
            self._losses.append((event.step, event.global_step, float(event.values["loss"])))
            self._path.write_text(json.dumps(self._losses), encoding="utf-8")
        elif isinstance(event, CheckpointSaved) and self._die == {"step": event.step, "at": event.global_step}:
            # No clean-up of any kind runs, as when the machine loses power.
            os.kill(os.getpid(), signal.SIGKILL)


def _single_thread() -> None:
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job whose file is the one argument; returns the exit code."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    path = Path(name)
    job = json.loads(path.read_text(encoding="utf-8"))
    plugins = [load_target(each) if ":" in each else importlib.import_module(each) for each in job.get("plugins", ())]
    plan = dict(job["plan"])
    objects: dict[str, Any] = {}
    if job.get("model") is not None:
        from tunekit.testing.fakes import tiny_pair

        _single_thread()
        made = Pipeline(model=tiny_pair(**job["model"]))
        objects = dict(made._objects)
        plan.pop("model", None)
    loaded = load_json(json.dumps(plan))
    if objects:
        from dataclasses import replace

        loaded = replace(loaded, model=next(iter(objects)))
    watch = _Watch(Path(job.get("losses") or path.with_name("losses.json")), job.get("die"))
    session = isolated_session(*plugins, autoload=job.get("autoload", True))
    Pipeline.from_plan(loaded, objects).run(
        workdir=job["workdir"], seed=job.get("seed"), on_event=watch, session=session
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
