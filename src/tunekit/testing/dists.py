"""Real distributions on disk, and a fresh interpreter that has them installed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

__all__ = ["Kind", "fake_dist", "run_with"]

Kind = Literal["good", "broken-import", "future-api", "name-clash"]

GOOD = '''\
"""What {name} offers."""

from tunekit.plugins import TrainerSpec, hookimpl

api_version = {api}


@hookimpl
def tunekit_trainers():
    return [
        TrainerSpec(
            name="{component}",
            stage="align",
            target="{package}.component:Trainer",
            summary="Does nothing, for tests",
            data=("preference",),
        )
    ]
'''

COMPONENT = '''\
"""The component: imported only when a step runs."""


class Trainer:
    """A trainer that cannot train."""

    def run(self, ctx):
        raise NotImplementedError("a distribution for tests")
'''

BROKEN = '''\
"""A plugin whose import fails."""

raise RuntimeError("the import of {name} fails")
'''

CLASHING = "dpo"
"""The name that the kind ``name-clash`` shares with another distribution."""


def fake_dist(
    site: str | Path,
    name: str,
    version: str = "1.0",
    *,
    source: str | None = None,
    kind: Kind = "good",
    component: str = "toy",
    files: Mapping[str, str] | None = None,
    requires: tuple[str, ...] = (),
) -> Path:
    """Write a plugin distribution as pip leaves it: a package, and a ``.dist-info`` folder with its entry point.

    The package is called as the distribution, with underscores. It has ``plugin.py`` (the record module that the entry
    point names) and ``component.py``.

    Args:
        site: folder that stands for ``site-packages``; put it on ``sys.path``, or use :func:`run_with`.
        name: name of the distribution.
        version: its version.
        source: text of ``plugin.py``, if it should be another than that of ``kind``.
        kind: ``good``: one trainer for ``align``. ``broken-import``: importing it raises ``RuntimeError``.
            ``future-api``: written for a plugin API that does not exist yet. ``name-clash``: its trainer is called
            ``dpo``, as that of tunekit-trl.
        component: name of the trainer.
        files: further files of the package, by path in it.
        requires: requirements for its metadata.

    Returns:
        The ``.dist-info`` folder; :func:`shutil.rmtree` of it and of the package uninstalls the distribution.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"{kind!r} is no kind of distribution; known: {', '.join(get_args(Kind))}")
    package = name.replace("-", "_").replace(".", "_")
    if source is None:
        text = BROKEN if kind == "broken-import" else GOOD
        shown = CLASHING if kind == "name-clash" else component
        source = text.format(name=name, api=99 if kind == "future-api" else 1, component=shown, package=package)
    folder = Path(site)
    written = {
        f"{package}/__init__.py": "",
        f"{package}/plugin.py": textwrap.dedent(source),
        f"{package}/component.py": COMPONENT,
        **{f"{package}/{path}": textwrap.dedent(text) for path, text in (files or {}).items()},
    }
    info = f"{package}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    metadata += [f"Requires-Dist: {requirement}\n" for requirement in requires]
    written |= {
        f"{info}/METADATA": "".join(metadata),
        f"{info}/entry_points.txt": f"[tunekit]\n{name} = {package}.plugin\n",
        f"{info}/INSTALLER": "pip\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in written.items()]
    written[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    for path, text in written.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode())
    return folder / info


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def run_with(site: str | Path, code: str, *, timeout: float = 120.0, **env: str) -> Any:
    """Run ``code`` in a fresh interpreter that has the distributions of ``site``, and return the JSON that it prints.

    Args:
        site: folder that :func:`fake_dist` filled.
        code: Python, indented as it may be.
        timeout: seconds.
        env: further environment variables.

    Raises:
        RuntimeError: if the interpreter fails, with what it wrote to standard error.
    """
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the interpreter ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)
