"""Batches as rows of their own in Flower: Celery task events with the batch's id as the task's.

Flower keeps tasks only in memory, so every event repeats the name and the arguments: a Flower that
was started late, or again, shows the row from the next event on. No content is ever in a row.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from worker.jobs.states import BatchState
from worker.jobs.views import Batch

NAME: Final = "chatqueue.batch"

Send = Callable[..., Any]
"""`send(event_type, **fields)` of a Celery event dispatcher."""


class BatchRows:
    """Sends the events of batch rows."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def tell(self, batch: Batch, *, is_first: bool, held: str = "") -> None:
        """Show how a batch stands; `is_first`: since it was begun, or begun again.

        `held` says what keeps its jobs waiting, if anything does.
        """
        if is_first and batch.redrives:
            # The row has ended before: only a retry leads on from an end.
            self._event("task-retried", batch, exception="its failed jobs are run again")
        self._begin(batch)
        if batch.is_finished:
            self._end(batch)
        else:
            self._event("task-progress", batch, result=row_text(batch, datetime.now(UTC), held))

    def _end(self, batch: Batch) -> None:
        text = row_text(batch, datetime.now(UTC))
        seconds = _seconds(batch, datetime.now(UTC))
        if batch.state is BatchState.CANCELLED:
            self._event("task-progress", batch, result=text)
            self._event("task-revoked", batch, terminated=False, expired=False)
        elif batch.failed or batch.expired:
            self._event("task-failed", batch, result=text, exception=text, runtime=seconds)
        else:
            self._event("task-succeeded", batch, result=text, runtime=seconds)

    def _begin(self, batch: Batch) -> None:
        """Tell when it began: to a Flower that knows, the same again."""
        received = batch.created_at.timestamp()
        started = (batch.in_progress_at or batch.created_at).timestamp()
        self._event("task-received", batch, timestamp=received)
        self._event("task-started", batch, timestamp=started)

    def _event(self, kind: str, batch: Batch, **fields: Any) -> None:
        self._send(
            kind,
            uuid=batch.id,
            name=NAME,
            args=repr((batch.name, batch.total)),
            kwargs="{}",
            retries=0,
            eta=None,
            **fields,
        )


def row_text(batch: Batch, now: datetime, held: str = "") -> str:
    """Say it in one line: `done/total · failed · tokens · ETA`; what holds it stands first.

    Flower cuts the line at its end, and nobody knows the end of what is held.
    """
    parts = [held] if held and not batch.is_finished else []
    parts += [f"{batch.done}/{batch.total}", f"{batch.failed + batch.expired} failed"]
    if batch.cancelled:
        parts.append(f"{batch.cancelled} cancelled")
    parts.append(f"{short_count(batch.prompt_tokens + batch.completion_tokens)} tokens")
    if not batch.is_finished:
        parts += [] if held else [f"ETA {eta_text(batch, now)}"]
    return " · ".join(parts)


def held_text(codes: Iterable[str]) -> str:
    """Say why keys are paused, by the codes of their refusals; empty where none is."""
    reasons = ", ".join(sorted(set(codes)))
    return f"paused: {reasons}" if reasons else ""


def eta_text(batch: Batch, now: datetime) -> str:
    """Estimate the time left from the average rate so far."""
    seconds = _seconds(batch, now)
    if not batch.done or seconds <= 0:
        return "?"
    return short_duration((batch.total - batch.done) * seconds / batch.done)


def _seconds(batch: Batch, now: datetime) -> float:
    begun = batch.in_progress_at or batch.created_at
    return ((batch.finished_at or now) - begun).total_seconds()


def short_count(count: int) -> str:
    """Write 950, 12.3k, 4.5M."""
    for limit, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        # Rounded to a tenth it must not read 1000.0 of the unit below.
        if count >= limit * 0.99995 and count >= 1_000:
            return f"{count / limit:.1f}{unit}"
    return str(count)


def short_duration(seconds: float) -> str:
    """Write 42s, 3m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"
