"""The `chatqueue` command: parse, call, render. Nothing is decided here."""

from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli import check, keep, look, processes, prove, steer, usage, work


def _version(asked: bool) -> None:  # a flag's callback
    if asked:
        typer.echo(version("chatqueue"))
        raise typer.Exit


def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """A durable job queue for chat completions."""


def build() -> typer.Typer:
    """Assemble the commands."""
    app = typer.Typer(
        name="chatqueue",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for group in (work, steer, look, usage, keep, processes, check, prove):
        group.register(app)
    return app


def main() -> None:
    """Run the command line. Exit status: 0 all succeeded, 1 some jobs failed, 2 bad input."""
    build()(prog_name="chatqueue")
