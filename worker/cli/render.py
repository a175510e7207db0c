"""Printing: rich on a terminal, plain when piped, JSON when asked. The only room that prints.

What is to be read goes to standard output; progress, notes and errors go to standard error.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from worker.jobs.states import State
from worker.jobs.views import Attempt, Batch, Job, as_json
from worker.store.halts import Halt
from worker.store.pauses import Pause
from worker.telemetry.flower import short_count

out: Final = Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

_COLOURS: Final = {
    "succeeded": "green",
    "completed": "green",
    "failed": "red",
    "expired": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "waiting": "yellow",
    "held": "magenta",
    "paused": "yellow",
    "running": "cyan",
    "in_progress": "cyan",
    "unknown": "magenta",
}


def print_json(value: Any) -> None:
    """Print one JSON value on a line of its own."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def say(text: str = "", style: str | None = None) -> None:
    """Print a line for a person, as it is: no markup is read in it."""
    out.print(Text(text, style=style or ""))


def note(text: str, style: str = "dim") -> None:
    """Print a note beside the output."""
    err.print(Text(text, style=style))


def warn(text: str) -> None:
    """Print a warning."""
    err.print(Text(f"warning: {text}", style="yellow"))


def pauses(found: Sequence[Pause]) -> None:
    """Warn of the keys that are paused: why, where, and what to do."""
    for one in found:
        again = max(0, round(one.probe_seconds))
        warn(
            f"paused since {when(one.since)}: {one.code} at {one.endpoint}: {one.message}; jobs "
            f"wait unharmed, one tries again in {again} s, 'chatqueue resume' goes on at once"
        )


def halts(found: Sequence[Halt]) -> None:
    """Warn of the queues that a person has paused."""
    for one in found:
        warn(
            f"queue {one.queue} is paused since {when(one.since)}: 'chatqueue resume {one.queue}' "
            "lets it go on"
        )


def held(count: int, ident: str = "ID") -> None:
    """Warn of jobs that a person must decide on."""
    if count:
        warn(
            f"{count} jobs are held: their calls may have been billed and brought no answer; "
            f"'chatqueue settle {ident} --again' calls again, '--fail' gives them up"
        )


def fail(text: str) -> None:
    """Print an error."""
    if err.is_terminal:
        err.print(Text(text, style="red"))
    else:
        sys.stderr.write(f"{text}\n")  # there may be a million of them


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_COLOURS.get(state, ""))


def mark(*, holds: bool) -> Text:
    """Whether a promise held."""
    return Text("ok", style="green") if holds else Text("BREACH", style="bold red")


def when(moment: datetime | None) -> str:
    """A time as ISO 8601, to the second, UTC."""
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table: drawn on a terminal, tab-separated when piped."""
    if not out.is_terminal:
        for row in (columns, *rows):
            sys.stdout.write("\t".join(str(cell) for cell in row) + "\n")
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        # A string would be read as markup: an error's words in brackets would be gone.
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    out.print(drawn)


def batches(found: Sequence[Batch]) -> None:
    """Print batches, a line each."""
    rows = [
        (
            batch.id,
            state_text("paused" if batch.halted_at else batch.state),
            f"{batch.done}/{batch.total}",
            str(batch.failed + batch.expired),
            short_count(batch.prompt_tokens + batch.completion_tokens),
            when(batch.created_at),
            batch.name,
        )
        for batch in found
    ]
    table(("BATCH", "STATE", "DONE", "FAILED", "TOKENS", "CREATED", "NAME"), rows)


def jobs(found: Sequence[Job]) -> None:
    """Print jobs, a line each."""
    rows = [
        (
            job.id,
            state_text(job.state),
            str(job.attempts),
            job.model,
            job.custom_id,
            job.error_code or job.finish_reason or "",
            when(job.created_at),
        )
        for job in found
    ]
    table(("JOB", "STATE", "ATTEMPTS", "MODEL", "CUSTOM_ID", "OUTCOME", "CREATED"), rows)


def pairs(values: Mapping[str, Any]) -> None:
    """Print what is known of one thing, a line for each name that has a value."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        if value not in (None, ""):
            say(f"{name:<{width}}  {value}")


def attempts(found: Sequence[Attempt]) -> None:
    """Print a job's ledger, a line for each call."""
    rows = [
        (
            str(one.number),
            state_text(one.state),
            one.endpoint,
            str(one.status or ""),
            "" if one.seconds is None else f"{one.seconds:.2f}s",
            when(one.prepared_at),
            f"{one.error_code or ''}{' (maybe billed)' if one.maybe_billed else ''}",
            one.error_message or "",
        )
        for one in found
    ]
    table(("CALL", "STATE", "ENDPOINT", "STATUS", "TIME", "AT", "ERROR", "MESSAGE"), rows)


def seconds_taken(batch: Batch) -> float:
    """How long a batch has taken, or took."""
    end = batch.finished_at or datetime.now(UTC)
    return (end - (batch.in_progress_at or batch.created_at)).total_seconds()


def rate(batch: Batch) -> float:
    """Jobs done in a second, on average."""
    seconds = seconds_taken(batch)
    return batch.done / seconds if seconds > 0 else 0.0


def batch_json(batch: Batch) -> dict[str, Any]:
    """A batch for a program to read."""
    return as_json(batch) | {"done": batch.done}


def summary(batch: Batch, counts: Mapping[State, int], unknown: int) -> None:
    """Print what a batch came to."""
    waiting = sum(counts.get(state, 0) for state in (State.QUEUED, State.RUNNING, State.WAITING))
    held_now = counts.get(State.HELD, 0)
    line = Text.assemble(
        (f"{batch.succeeded} succeeded", "green"),
        ", ",
        (f"{batch.failed + batch.expired} failed", "red" if batch.failed else ""),
        f", {waiting} waiting",
        f", {held_now} held" if held_now else "",
        f", {batch.cancelled} cancelled" if batch.cancelled else "",
    )
    out.print(line)
    say(
        f"tokens: {batch.prompt_tokens} in, {batch.cached_tokens} of them cached, "
        f"{batch.completion_tokens} out, {batch.reasoning_tokens} of them reasoning"
    )
    say(f"time: {seconds_taken(batch):.1f} s, {rate(batch):.1f} jobs/s")
    if unknown:
        warn(
            f"{unknown} calls of unknown outcome: they may have been billed ('chatqueue show JOB')"
        )


class Bar:
    """The progress of a batch: a bar on a terminal, a line every few seconds when piped."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress = progress
        self._task = task
        self._last = ""

    def show(self, batch: Batch, text: str) -> None:
        """Show how far the batch has come."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=batch.done, total=batch.total, note=text)
        elif text != self._last:
            note(text)
        self._last = text

    @property
    def is_live(self) -> bool:
        """Whether it is drawn on a terminal."""
        return self._progress is not None


@contextmanager
def progress_bar(total: int) -> Iterator[Bar]:
    """Show a batch's progress for the time of the block."""
    if not err.is_terminal:
        yield Bar(None, None)
        return
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, expand=True) as progress:
        yield Bar(progress, progress.add_task("", total=total, note=""))
