"""``tunekit template check``: whether a model's chat template can be trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from tunekit.cli.command import Command, Debug, Json
from tunekit.cli.exits import HELP, ExitCode

__all__ = ["template_app"]

template_app = typer.Typer(
    help="Look at a model's chat template.",
    epilog=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@template_app.callback()
def _template() -> None:
    """Look at a model's chat template."""


@template_app.command(epilog=HELP)
def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, hub id or short name.", show_default=False)
    ],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at what a model's chat template writes, and what is learned of it, without loading the model.

    Exit code 1 if training on it would do harm.
    """
    command = Command(json=json, debug=debug)
    with command.errors():
        from tunekit.cli import render
        from tunekit.template import check_template

        with render.only_json_on_stdout(json):
            report = check_template(model)
        code = ExitCode.OK if report.ok else ExitCode.PLAN
        if json:
            render.write_json({**report.to_dict(), "exit_code": int(code)})
        else:
            command.out.print(report, highlight=False)
        raise typer.Exit(int(code))
