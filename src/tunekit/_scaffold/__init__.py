"""``tunekit plugin new``: a distribution with one small component that works, written from templates.

A plugin is the template ``common`` and the template of its kind, rendered by copier into one folder.
"""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.errors import ArtifactError, MissingDependencyError, OptionsError, nearest
from tunekit.plan import TRAINING_KINDS

__all__ = ["KINDS", "Scaffolded", "scaffold"]

_TEMPLATES = Path(__file__).parent / "template"

_DISTRIBUTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_TORCH = "torch>=2.8"
_TRANSFORMERS = "transformers>=5.15,<6"
_LOADING = "tunekit-transformers>=0.1,<0.2"

KINDS: Mapping[str, Mapping[str, Any]] = {
    "adapter": {
        "spec": "AdapterSpec",
        "hook": "tunekit_adapters",
        "suite": "AdapterSuite",
        "options": True,
        "usage": 'Pipeline(model="my-model").sft(data="pairs.jsonl").adapter("{name}", r=8).run()',
        "summary": "Trains a low-rank update of every linear layer",
        "needs": (_TORCH, "safetensors>=0.5"),
        "test": (_LOADING, "tunekit-trl>=0.1,<0.2"),
    },
    "benchmark": {
        "spec": "BenchmarkSpec",
        "hook": "tunekit_benchmarks",
        "suite": "BenchmarkSuite",
        "options": False,
        "usage": 'result = Pipeline(model="my-model").evaluate(["{name}"]).run()\nprint(result.scores["{name}"].value)',
        "summary": "Twelve questions with four choices each, by log-likelihood of the answer",
        "needs": (),
        "test": (_LOADING, "tunekit-evals>=0.1,<0.2"),
    },
    "exporter": {
        "spec": "ExporterSpec",
        "hook": "tunekit_exporters",
        "suite": "ExporterSuite",
        "options": True,
        "usage": 'Pipeline(model="my-model").export("{name}").run()',
        "summary": "Writes a folder with float16 weights that transformers reads",
        "needs": (_TORCH, _TRANSFORMERS),
        "test": (_LOADING,),
    },
    "format": {
        "spec": "DataFormatSpec",
        "hook": "tunekit_formats",
        "suite": "DataFormatSuite",
        "options": False,
        "usage": 'Pipeline(model="my-model").sft(data="log.jsonl", format="{name}").run()',
        "summary": "Chat logs, one text per row with a line for each message",
        "needs": (),
        "test": (),
    },
    "quantizer": {
        "spec": "QuantizerSpec",
        "hook": "tunekit_quantizers",
        "suite": "QuantizerSuite",
        "options": True,
        "usage": 'Pipeline(model="my-model").quantize("int8", method="{name}").run()',
        "summary": "Rounds linear weights to 255 steps per row, stored as bfloat16",
        "needs": (_TORCH, _TRANSFORMERS),
        "test": (_LOADING,),
    },
    "reward": {
        "spec": "RewardSpec",
        "hook": "tunekit_rewards",
        "suite": "RewardSuite",
        "options": True,
        "usage": 'Pipeline(model="my-model").align(method="grpo", prompts="prompts.jsonl", reward="{name}").run()',
        "summary": "Scores completions by whether their last number is the answer of the row",
        "needs": (),
        "test": (),
    },
    "step": {
        "spec": "StepSpec",
        "hook": "tunekit_steps",
        "suite": "",
        "options": True,
        "usage": 'Pipeline().step("{name}", data="corpus.jsonl").run()',
        "summary": "Counts the rows, characters and words of a data set",
        "needs": (),
        "test": (),
    },
    "tracker": {
        "spec": "TrackerSpec",
        "hook": "tunekit_trackers",
        "suite": "TrackerSuite",
        "options": True,
        "usage": 'Pipeline(model="my-model").sft(data="pairs.jsonl").track("{name}", path="events.jsonl").run()',
        "summary": "Writes every event to a file, one JSON document a line",
        "needs": (),
        "test": (),
    },
    "trainer": {
        "spec": "TrainerSpec",
        "hook": "tunekit_trainers",
        "suite": "TrainerSuite",
        "options": True,
        "usage": 'Pipeline(model="my-model").sft(data="pairs.jsonl", method="{name}").run()',
        "summary": "Fine-tuning on prompts with completions, with the plain trainer of transformers",
        "needs": (_TORCH, _TRANSFORMERS, "accelerate>=1.13,<2"),
        "test": (_LOADING,),
    },
}
"""Kinds that can be begun, and what their templates are filled with."""


@dataclass(frozen=True, kw_only=True)
class Scaffolded:
    """What was written."""

    folder: Path
    """Folder of the distribution."""
    kind: str
    distribution: str
    """Name to install, such as ``acme-trivia``."""
    package: str
    """Name to import, such as ``acme_trivia``."""
    component: str
    """Name that users write, such as ``trivia``."""
    files: tuple[str, ...]
    """Files relative to :attr:`folder`, sorted."""


def scaffold(name: str, kind: str, *, component: str = "", folder: Path | None = None, author: str = "") -> Scaffolded:
    """Write a new plugin.

    Args:
        name: name of the distribution, such as ``acme-trivia``.
        kind: one of :data:`KINDS`.
        component: name of the component; default: the name without its first part, ``trivia``.
        folder: where to write; default: ``name`` in the current folder.
        author: for the licence and the package; default: "the authors of NAME".

    Raises:
        OptionsError: for an unknown kind, a name that cannot be used, or a folder that holds something.
        MissingDependencyError: if copier is not installed.
        ArtifactError: if the folder cannot be written.
    """
    about = _kind(kind)
    package = _package(name)
    component = _component(name, kind, component)
    target = Path(name) if folder is None else folder
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise OptionsError(
            f"{target} is there already.",
            code="folder-not-empty",
            asked=f"a new folder {target}",
            found="a folder with files in it" if target.is_dir() else "a file",
            fix="choose another name, or another folder with --folder",
        )
    camel = "".join(part[:1].upper() + part[1:] for part in component.split("-"))
    data = {
        **about,
        "kind": kind,
        "distribution": name,
        "package": package,
        "component": component,
        "cls": camel + kind.capitalize(),
        "options_cls": camel + "Options",
        "test_cls": "Test" + camel,
        "function": component.replace("-", "_") + "_row",
        "author": author,
        "usage": about["usage"].format(name=component),
        "holder": author or f"the authors of {name}",
        "dot": ".",
        "tests": "tests",
    }
    files = _render(target, kind, data)
    return Scaffolded(
        folder=target, kind=kind, distribution=name, package=package, component=component, files=tuple(files)
    )


def _kind(kind: str) -> Mapping[str, Any]:
    if kind in KINDS:
        return KINDS[kind]
    close = nearest(kind, KINDS)
    raise OptionsError(
        f"There is no template for the kind {kind!r}.",
        code="unknown-kind",
        asked=kind,
        found="known: " + ", ".join(KINDS),
        suggestions=close,
        fix=f"--kind {close[0]}" if close else "use one of the known kinds",
    )


def _package(name: str) -> str:
    """The import name of a distribution."""
    package = name.replace("-", "_")
    canonical = "-".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("0123456789-")
    if not _DISTRIBUTION.fullmatch(name):
        raise OptionsError(
            f"{name!r} cannot be the name of a plugin.",
            code="plugin-name",
            asked=name,
            found="names are lower case letters, digits and single '-' between them, and begin with a letter",
            suggestions=[canonical] if _DISTRIBUTION.fullmatch(canonical) else (),
            fix="choose a name such as acme-trivia",
        )
    if package in sys.stdlib_module_names or keyword.iskeyword(package) or package in ("tunekit", "tests"):
        raise OptionsError(
            f"{name!r} cannot be the name of a plugin: the package {package} would hide another one.",
            code="plugin-name",
            asked=name,
            suggestions=[f"acme-{name}"],
            fix="choose a name such as acme-trivia",
        )
    return package


def _component(name: str, kind: str, component: str) -> str:
    made = component or name.partition("-")[2] or name
    if component and not _DISTRIBUTION.fullmatch(component):
        raise OptionsError(
            f"{component!r} cannot be the name of a component.",
            code="component-name",
            asked=component,
            found="names are lower case letters, digits and single '-' between them, and begin with a letter",
            fix="choose a name such as trivia",
        )
    if not made[0].isalpha():
        made = name
    if kind == "step" and made in (*TRAINING_KINDS, "quantize", "export", "evaluate", "merge"):
        raise OptionsError(
            f"The step name {made!r} belongs to tunekit.",
            code="component-name",
            asked=made,
            fix="choose another with --name",
        )
    return made


def _render(target: Path, kind: str, data: Mapping[str, Any]) -> list[str]:
    """Render beside the target and move there, so that a failure leaves nothing half-written."""
    try:
        import copier
    except ImportError as error:
        raise MissingDependencyError(
            "Writing a plugin needs the package copier.",
            asked="copier",
            found=f"{type(error).__name__}: {error}",
            fix="pip install 'tunekit[testing]'",
        ) from error

    aside = target.with_name(target.name + ".partial")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        for part in ("common", kind):
            copier.run_copy(
                str(_TEMPLATES / part), aside, data=dict(data), defaults=True, quiet=True, overwrite=True, unsafe=False
            )
        if target.exists():
            target.rmdir()
        os.rename(aside, target)  # noqa: PTH104  (Path.rename would do the same)
    except OSError as error:
        raise ArtifactError(
            "The plugin cannot be written.", code="scaffold", asked=str(target), found=str(error)
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
