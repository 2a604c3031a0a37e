"""The argument PLAN: a plan file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit._secrets import masked
from tunekit.errors import nearest

if TYPE_CHECKING:
    from tunekit.pipeline import Pipeline

__all__ = ["PlanFile", "read_pipeline"]

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file, YAML or JSON.", show_default=False)]


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline of a plan file.

    Raises:
        typer.BadParameter: if there is no such file; names the nearest ones.
    """
    from tunekit.pipeline import Pipeline
    from tunekit.planfile import read_plan

    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        plans = [file for suffix in ("yaml", "yml", "json") for file in sorted(folder.glob(f"*.{suffix}"))]
        close = nearest(path.name, [file.name for file in plans]) or tuple(file.name for file in plans[:3])
        hint = f" Did you mean {' or '.join(str(folder / name) for name in close)}?" if close else ""
        kind = "is a folder, not a plan file" if path.is_dir() else "does not exist"
        raise typer.BadParameter(f"{masked(str(path))} {kind}.{hint}", param_hint="PLAN")
    return Pipeline.from_plan(read_plan(path))
