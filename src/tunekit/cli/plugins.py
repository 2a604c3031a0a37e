"""``tunekit plugins`` and ``tunekit plugin``: what is installed, what it takes, and the start of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit.cli.command import Command, Debug, Json
from tunekit.cli.exits import HELP, ExitCode
from tunekit.errors import TunekitError

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.session import Session

__all__ = ["plugin_app", "plugins_app"]

_SETTINGS = {"help_option_names": ["-h", "--help"]}

plugins_app = typer.Typer(
    help="List the installed plugins, what they offer, and why one is not loaded.",
    epilog=HELP,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)
plugin_app = typer.Typer(
    help="Begin a plugin of one's own.",
    epilog=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)


@plugins_app.callback()
def _list(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """List the installed plugins, what they offer, and why one is not loaded."""
    if context.invoked_subcommand is not None:
        return
    command = Command(json=json, debug=debug)
    with command.errors():
        from tunekit.cli import render
        from tunekit.session import default_session

        session = default_session()
        records, entries = session.plugins(), session.components()
        if json:
            render.write_json(render.plugins_data(records, entries))
        else:
            command.out.print(render.plugins_view(records, entries), highlight=False)


@plugins_app.command(epilog=HELP)
def show(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Such as trainer, adapter or benchmark.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME or DIST/NAME; of a trainer also STAGE/NAME.")],
    stage: Annotated[str, typer.Option(help="Stage of a trainer, such as align.", show_default=False)] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show one component: every option with its type, default and meaning, and whether it can run here."""
    command = Command(json=json, debug=debug)
    with command.errors():
        from tunekit.cli import component, render
        from tunekit.session import default_session

        session = default_session()
        entry = _find(command, session, kind, name, stage)
        with render.only_json_on_stdout(json):
            data = component.component_data(session, entry)
        if json:
            render.write_json(data)
        else:
            command.out.print(component.component_view(data), highlight=False)


@plugins_app.command(epilog=HELP)
def check(
    dist: Annotated[str, typer.Argument(metavar="DIST", help="Installed distribution, such as tunekit-trl.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check an installed plugin: import, hooks, specs, options and targets, each in a fresh interpreter."""
    command = Command(json=json, debug=debug)
    with command.errors():
        from tunekit.cli import render
        from tunekit.errors import UnknownNameError
        from tunekit.testing.checks import check_plugin

        try:
            checks = check_plugin(dist)
        except UnknownNameError as error:
            command.fail(error, ExitCode.USAGE)
        failed = [each for each in checks if each.problem]
        code = ExitCode.PLAN if failed else ExitCode.OK
        if json:
            rows = [{"name": each.name, "problem": each.problem, "skipped": each.skipped} for each in checks]
            render.write_json({"ok": not failed, "exit_code": int(code), "distribution": dist, "checks": rows})
        else:
            for each in checks:
                mark = "[red]failed[/]" if each.problem else "[yellow]skipped[/]" if each.skipped else "[green]ok[/]"
                command.out.print(f"{mark} {each.name.replace('_', ' ')}", highlight=False)
                for line in (each.problem or each.skipped).splitlines():
                    command.out.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
            said = f"{len(failed)} of {len(checks)} checks failed" if failed else f"{len(checks)} checks passed"
            command.out.print(f"{dist}: {said}", markup=False, highlight=False)
        raise typer.Exit(int(code))


def _find(command: Command, session: Session, kind: str, name: str, stage: str) -> Entry:
    from tunekit.cli import component

    try:
        return component.find(session, kind, name, stage)
    except TunekitError as error:
        command.fail(error, ExitCode.USAGE)


@plugin_app.command(epilog=HELP)
@plugins_app.command(epilog=HELP)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the distribution, such as acme-trivia.")],
    kind: Annotated[str, typer.Option(help="What it offers: benchmark, trainer, adapter, ...")],
    component: Annotated[
        str, typer.Option("--name", help="Name of the component; default: the last part of NAME.", show_default=False)
    ] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Folder to write; default: NAME in this folder.", show_default=False)
    ] = None,
    author: Annotated[str, typer.Option(help="Name for the licence and the package.", show_default=False)] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a new plugin: a package with one small component that works, its options, its tests and a CI workflow."""
    command = Command(json=json, debug=debug)
    with command.errors():
        from tunekit import _scaffold
        from tunekit.cli import render
        from tunekit.errors import OptionsError

        try:
            made = _scaffold.scaffold(name, kind, component=component, folder=folder, author=author)
        except OptionsError as error:
            command.fail(error, ExitCode.USAGE)
        if json:
            render.write_json(
                {
                    "ok": True,
                    "exit_code": 0,
                    "folder": made.folder,
                    "kind": made.kind,
                    "distribution": made.distribution,
                    "package": made.package,
                    "component": made.component,
                    "files": made.files,
                }
            )
            return
        lines = [f"{made.folder}: the {made.kind} {made.component!r}, in {len(made.files)} files", ""]
        lines += [f"  {file}" for file in made.files]
        lines += ["", "Next:", f"  cd {made.folder}", "  pip install -e '.[test]'", "  pytest"]
        command.out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
