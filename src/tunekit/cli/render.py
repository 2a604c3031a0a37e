"""What the command line prints: errors, findings, plugins, and JSON documents."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tunekit.errors import CheckFailed, TunekitError

if TYPE_CHECKING:
    from tunekit._registry import Entry, PluginRecord
    from tunekit.plugins.protocols import Finding
    from tunekit.results import RunResult, StepResult

__all__ = [
    "error_data",
    "error_view",
    "findings_view",
    "only_json_on_stdout",
    "plain",
    "plugins_data",
    "plugins_view",
    "result_data",
    "write_json",
]

_LEVEL_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


def plain(value: Any) -> Any:
    """JSON types for ``value``: tuples become lists, paths text, and numbers that are not finite null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def write_json(data: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def only_json_on_stdout(active: bool) -> Iterator[None]:
    """Inside the block, whatever writes to standard output (libraries, child processes) writes to standard error."""
    if not active:
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):
            if sys.stdout.fileno() == 1:
                sys.stdout.flush()
                kept = os.dup(1)
                os.dup2(2, 1)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, 1)
                stack.callback(sys.stdout.flush)
        with contextlib.redirect_stdout(sys.stderr):
            yield


def error_data(error: BaseException, code: int) -> dict[str, Any]:
    """An error as a JSON document."""
    document: dict[str, Any] = {"ok": False, "exit_code": int(code)}
    if isinstance(error, TunekitError):
        fields = error.fields()
        fields["details"] = {key: value for key, value in error.details.items() if key != "traceback"}
        document["error"] = {"type": type(error).__name__, "message": error.message, **fields}
    else:
        document["error"] = {"type": type(error).__name__, "message": str(error)}
    return document


def error_view(error: TunekitError, console: Console) -> RenderableType:
    """An error for people: a panel in a terminal, plain lines elsewhere."""
    findings = error.details.get("findings") if isinstance(error, CheckFailed) else None
    if findings:
        return Group(Text(error.message, style="bold red"), findings_table(findings))
    if not console.is_terminal:
        return Text(f"error: {error}")
    rows = Table.grid(padding=(0, 1))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    for label, value in (
        ("asked", error.asked),
        ("found", error.found),
        ("did you mean", ", ".join(error.suggestions)),
        ("fix", error.fix),
    ):
        if value:
            rows.add_row(label, Text(value, style="green" if label == "fix" else ""))
    body: list[RenderableType] = [Text(error.message)]
    if rows.row_count:
        body.append(rows)
    return Panel(Group(*body), title=error.code, title_align="left", border_style="red", expand=False)


def findings_table(findings: Iterable[Mapping[str, Any]]) -> Table:
    """Findings as plain data, one a row."""
    table = Table(show_lines=True, expand=False)
    table.add_column("level", no_wrap=True)
    table.add_column("step", no_wrap=True, style="bold")
    table.add_column("problem", overflow="fold")
    for finding in findings:
        body = Text(str(finding["message"]))
        if finding.get("fix"):
            body.append(f"\nfix: {finding['fix']}", style="green")
        body.append(f"\n{finding['code']}", style="dim")
        level = str(finding["level"])
        table.add_row(Text(level, style=_LEVEL_STYLES.get(level, "")), Text(str(finding.get("step") or "-")), body)
    return table


def findings_view(findings: Sequence[Finding]) -> RenderableType:
    """What ``check`` found, and the count."""
    counts = {level: sum(finding.level == level for finding in findings) for level in _LEVEL_STYLES}
    words = [f"{number} {level}{'s' if number != 1 else ''}" for level, number in counts.items() if number]
    if not findings:
        return Text("The plan can run.", style="green")
    summary = Text(", ".join(words), style="bold red")
    if not counts["error"]:
        summary = Text(f"The plan can run ({', '.join(words)}).", style="green")
    return Group(findings_table(asdict(finding) for finding in findings), summary)


def plugins_data(records: Sequence[PluginRecord], entries: Sequence[Entry]) -> dict[str, Any]:
    """Plugins and components as a JSON document."""
    return {
        "ok": True,
        "exit_code": 0,
        "plugins": [asdict(record) for record in records],
        "components": [
            {"id": entry.component.id, **asdict(entry.component), "summary": entry.spec.summary, "plugin": entry.plugin}
            for entry in entries
        ],
    }


def plugins_view(records: Sequence[PluginRecord], entries: Sequence[Entry]) -> RenderableType:
    """Plugins with their state, then what they offer. Names that several offer are marked."""
    states = {"loaded": "green", "broken": "red", "incompatible": "yellow", "disabled": "dim"}
    plugins = Table(title="Plugins", title_justify="left", expand=False)
    for column in ("plugin", "provider", "version", "api", "state"):
        plugins.add_column(column, overflow="fold")
    remarks: list[RenderableType] = []
    for record in records:
        style = states.get(record.state, "")
        plugins.add_row(
            Text(record.name, style="bold"),
            Text(record.provider),
            Text(record.version or "-"),
            "-" if record.api_version is None else str(record.api_version),
            Text(record.state, style=style),
        )
        if record.reason:
            remarks.append(Text.assemble((record.label, "bold"), " is ", (record.state, style), f": {record.reason}"))
        remarks += [Text.assemble((record.label, "bold"), f": {problem}") for problem in record.problems]
    offers: dict[tuple[str, str, str], int] = {}
    for entry in entries:
        key = (entry.component.kind, entry.component.stage, entry.component.name)
        offers[key] = offers.get(key, 0) + 1
    components = Table(title="Components", title_justify="left", expand=False)
    for column in ("kind", "name", "provider", "version"):
        components.add_column(column, overflow="fold")
    components.add_column("what", overflow="fold")
    for entry in entries:
        component = entry.component
        summary = Text(entry.spec.summary)
        if offers[component.kind, component.stage, component.name] > 1:
            summary.append(f" (several offer {component.name}: write {component.id})", style="yellow")
        components.add_row(
            f"{component.kind} {component.stage}".strip(),
            Text(component.name, style="bold"),
            Text(component.provider),
            Text(component.version or "-"),
            summary,
        )
    return Group(plugins, *remarks, components) if entries else Group(plugins, *remarks)


def _step_data(step: StepResult) -> dict[str, Any]:
    artifact = step.artifact
    model = None
    if artifact.model is not None:
        model = {**asdict(artifact.model), "path": step.folder / artifact.model.path}
    return {
        "name": step.name,
        "kind": step.kind,
        "component": step.component,
        "folder": step.folder,
        "reused": step.reused,
        "seconds": step.seconds,
        "trained": artifact.trained,
        "trained_parameters": artifact.trained_parameters,
        "model": model,
        "adapter": None if artifact.adapter_path is None else step.folder / artifact.adapter_path,
        "metrics": artifact.metrics,
        "details": artifact.details,
        "scores": {name: asdict(score) for name, score in step.scores.items()},
    }


def result_data(result: RunResult) -> dict[str, Any]:
    """A finished run as a JSON document."""
    return {
        "ok": True,
        "exit_code": 0,
        "run_id": result.run_id,
        "status": result.status,
        "seed": result.seed,
        "workdir": result.workdir,
        "report": Path(result.workdir) / "report.html",
        "steps": [_step_data(step) for step in result.steps],
        "scores": {name: asdict(score) for name, score in result.scores.items()},
        "notices": list(result.notices),
    }
