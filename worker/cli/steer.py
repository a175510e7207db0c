"""Commands that let work go on, wait or end: cancel, retry, settle, pause, resume."""

import json
from typing import Annotated, Any

import typer

from worker.cli import frame, render

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Ident = Annotated[str, typer.Argument(metavar="ID", help="A job or a batch.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for function in (cancel, retry, settle, pause, resume):
        frame.command(app)(function)


def cancel(ident: Ident, as_json: AsJson = False) -> None:
    """Cancel a job, or all that is still open of a batch."""
    with frame.client() as client:
        count = client.cancel(ident)
    _tell(count, "cancelled", {"id": ident, "cancelled": count}, as_json=as_json)


def retry(
    ident: Ident,
    error: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Only jobs with this error code or class; repeatable."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Ask this model instead.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=JSON",
            help="Change a field of the requests; null takes it away; repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run failed and expired jobs of a batch again, or one job; changed, if told so."""
    changes = dict(_change(text) for text in set_ or ())
    if model is not None:
        changes["model"] = model
    with frame.client() as client:
        count = client.retry(ident, errors=error or (), changes=changes)
    _tell(count, "back in the queue", {"id": ident, "retried": count}, as_json=as_json)


def settle(
    ident: Ident,
    again: Annotated[
        bool, typer.Option("--again/--fail", help="Call them again, or let them fail.")
    ],
    as_json: AsJson = False,
) -> None:
    """Decide on held jobs: their calls may have been billed, and brought no answer."""
    with frame.client() as client:
        count = client.settle(ident, again=again)
    become = "back in the queue" if again else "failed"
    _tell(count, become, {"id": ident, "settled": count}, as_json=as_json)


def pause(
    ident: Annotated[str, typer.Argument(metavar="ID", help="A batch, or bulk, or interactive.")],
    as_json: AsJson = False,
) -> None:
    """Pause a batch or a queue: nothing of it is begun; calls in flight go on."""
    with frame.client() as client:
        client.pause(ident)
    if as_json:
        render.print_json({"id": ident, "paused": True})
    else:
        render.say(f"{ident} is paused; 'chatqueue resume {ident}' lets it go on")


def resume(
    ident: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="A batch or a queue; without it, every paused key."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a paused batch or queue go on, or use refused keys again at once."""
    with frame.client() as client:
        count = client.resume() if ident is None else int(client.unpause(ident))
    if as_json:
        render.print_json({"resumed": count})
    else:
        render.say(f"{count} pause{'' if count == 1 else 's'} ended")


def _change(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise typer.BadParameter(f"--set takes FIELD=JSON, not {text!r}")
    try:
        return field, json.loads(value)
    except ValueError:
        raise typer.BadParameter(
            f"--set {field}: {value!r} is no JSON; a text is written {field}='\"text\"'"
        ) from None


def _tell(count: int, become: str, values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.print_json(values)
    else:
        render.say(f"{count} job{'' if count == 1 else 's'} {become}")
