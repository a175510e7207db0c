"""Commands about how long things are kept: purge."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from worker.cli import frame, render
from worker.jobs.durations import parse_duration
from worker.store.retention import Purged

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    frame.command(app)(purge)


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def purge(
    older_than: Annotated[
        timedelta,
        typer.Option(parser=_duration, metavar="AGE", help="45s, 90m, 12h, 30d: since its end."),
    ],
    content_only: Annotated[
        bool, typer.Option("--content-only", help="Keep rows, counts and usage; remove the words.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what finished long ago: batches, single jobs, their calls and images.

    Runs beside working workers, touches nothing unfinished, and goes on where an earlier one ended.
    """
    with frame.client() as client:
        purged = client.purge(older_than, content_only=content_only)
        on_sqlite = client.database.is_sqlite
    if as_json:
        render.print_json(asdict(purged))
        return
    render.say(_text(purged, "emptied" if content_only else "removed"))
    if on_sqlite:
        render.note("the database's file keeps its size; the space is used again")


def _text(purged: Purged, done: str) -> str:
    return (
        f"{done}: {_counted(purged.batches, 'batch', 'batches')}, {_counted(purged.jobs, 'job')}\n"
        f"removed: {_counted(purged.calls, 'call')} of the ledger, "
        f"{_counted(purged.images, 'image')}, {_counted(purged.workers, 'row')} of workers"
    )


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
