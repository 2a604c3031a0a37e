"""The record of a run: enough to know what was done, with what, on what, and to do it again."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.plan import ResolvedPlan

__all__ = ["hardware", "new_manifest", "packages"]

SCHEMA = 1


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    return dict(_packages(tuple((folder, _changed(folder)) for folder in sys.path)))


@functools.lru_cache(maxsize=4)
def _packages(path: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """Read anew when a folder of ``sys.path`` has changed: an installation adds, removes or renames something there."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[str(name)] = distribution.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or os.curdir).st_mtime_ns  # noqa: PTH116 - entries of sys.path are texts
    except OSError:
        return 0


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, and the accelerators that an already imported torch knows."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "platform": platform.platform(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["accelerators"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:  # noqa: PTH123  (a device file, not a path of ours)
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def new_manifest(
    resolved: ResolvedPlan,
    *,
    run_id: str,
    started: float,
    data: Mapping[str, Any],
    components: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The manifest of a run that begins. ``data`` maps step names to facts about their data sets; ``components`` says
    where the code of each component comes from."""
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "status": "running",
        "started": started,
        "finished": None,
        "python": sys.version.split()[0],
        "seed": resolved.seed,
        "plan": resolved.plan.to_data(),
        "resolved": resolved.to_data(),
        "data": dict(data),
        "components": list(components),
        "packages": packages(),
        "hardware": hardware(),
        "steps": {},
    }
