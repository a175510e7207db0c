"""The Python API: enqueue chat completions from any program, and read what became of them.

    from worker import Client

    with Client() as client:
        job = client.submit({"model": "gpt-5.1", "messages": [{"role": "user", "content": "Hi"}]})
        print(client.wait(job.id).content)

It needs a database and a broker, not a Celery app of the program's own, and leaves that alone.
Safe to use from any thread. The commands are built on it.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from worker import stack
from worker.batches import Submitted, new_job, read_lines, submit_lines
from worker.errors import InvalidRequestsError, NotFoundError, WaitTimeoutError
from worker.images import ImageFolder
from worker.jobs.changes import changed, check_changes
from worker.jobs.lines import RequestLine, check_single
from worker.jobs.options import NO_OPTIONS, JobOptions
from worker.jobs.queues import BULK, INTERACTIVE, QUEUES
from worker.jobs.states import State
from worker.jobs.views import Attempt, Batch, Job
from worker.queue.app import create_app
from worker.queue.bell import Bell
from worker.settings import Settings, settings
from worker.spending import Spent, spent
from worker.store import (
    endings,
    halts,
    lost,
    pauses,
    queries,
    redrive,
    retention,
    schema,
    submission,
    usage,
)
from worker.store import images as store_images
from worker.store.engine import Database, Transaction
from worker.store.halts import Halt
from worker.store.pauses import Pause
from worker.store.queries import FailureGroup, JobFilter
from worker.store.redrive import Again, Change, Changed
from worker.store.retention import Purged
from worker.store.submission import NewBatch
from worker.store.usage import By

Body = Mapping[str, Any] | str | bytes
"""A chat-completion request: an object, or its JSON text, which is then sent verbatim."""

T = TypeVar("T", Job, Batch)

_POLL_FIRST_SECONDS: Final = 0.01
_POLL_LAST_SECONDS: Final = 0.25


class Client:
    """A producer's connection to the queue. Raises SettingsError, DatabaseError, SchemaError.

    Without settings it reads the environment. Without a broker set it uses the embedded stack of
    `CHATQUEUE_HOME` if that is up; otherwise jobs are stored, and run when a stack comes up.
    """

    def __init__(self, given: Settings | None = None) -> None:
        self.settings = reach(given or settings())
        self.database = Database(self.settings.sqlalchemy_url)
        if self.settings.database_url is None:
            schema.migrate(self.database)  # the embedded database is ours to make
        schema.verify(self.database)
        has_broker = self.settings.broker_url is not None
        self._bell = Bell(create_app(self.settings)) if has_broker else None

    # --- handing in -----------------------------------------------------------------------------

    def submit(
        self,
        body: Body,
        *,
        priority: int = 0,
        options: JobOptions = NO_OPTIONS,
        images: Path | None = None,
    ) -> Job:
        """Enqueue one request on the interactive queue. Raises InvalidRequestsError.

        Here and below, `images` is a folder: in it, and only there, a request may name an image by
        its path, absolute or from that folder. It raises OSError where it is none.
        """
        folder = ImageFolder(images) if images else None
        request = _checked(body, options, folder)
        new = NewBatch("", INTERACTIVE, priority)
        with self.database.write() as connection:
            store_images.put(connection, folder.take() if folder else ())
            (job_id,) = submission.insert_jobs(connection, None, new, [new_job(request, 0)])
        if self._bell is not None:
            self._bell.ring_job(job_id)
        return self.get(job_id)

    def submit_many(  # noqa: PLR0913  # each is named where it is given
        self,
        bodies: Iterable[Body],
        *,
        name: str = "submit_many",
        key: str | None = None,
        priority: int = 0,
        options: JobOptions = NO_OPTIONS,
        images: Path | None = None,
    ) -> Batch:
        """Enqueue requests as one batch: all or none. Raises InvalidRequestsError.

        Each is a request body or a whole line of the batch format (with `custom_id` and `body`).
        `options` hold where a line has none of its own, key by key. `key` makes a repeated
        submission return the first batch instead of a second one.
        """
        lines = (_text(body) for body in bodies)
        new = NewBatch(name, BULK, priority, key, options)
        submitted = self.submit_lines(lines, new, images=images)
        return self.batch(submitted.batch_id)

    def submit_file(  # noqa: PLR0913  # each is named where it is given
        self,
        path: Path,
        *,
        key: str | None = None,
        priority: int = 0,
        options: JobOptions = NO_OPTIONS,
        images: Path | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Submitted:
        """Enqueue a JSONL file as a batch: all of it or nothing. Raises InvalidRequestsError."""
        with path.open("rb") as handle:
            new = NewBatch(path.name, BULK, priority, key, options)
            return self.submit_lines(read_lines(handle), new, on_progress, images)

    def submit_lines(
        self,
        lines: Iterable[bytes],
        new: NewBatch,
        on_progress: Callable[[int], None] = lambda _: None,
        images: Path | None = None,
    ) -> Submitted:
        """Enqueue JSONL lines as a batch. Raises InvalidRequestsError."""
        folder = ImageFolder(images) if images else None
        submitted = submit_lines(self.database, lines, new, on_progress, folder)
        self.ring()
        return submitted

    def ring(self) -> None:
        """Invite a worker to look for work; without it they look by themselves, a second later."""
        if self._bell is not None:
            self._bell.ring_shift()

    # --- looking --------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Read a job. Raises NotFoundError."""
        with self.database.read() as connection:
            found = queries.get_job(connection, job_id)
        if found is None:
            raise NotFoundError(f"there is no job {job_id!r}")
        return found

    def batch(self, batch_id: str) -> Batch:
        """Read a batch. Raises NotFoundError."""
        with self.database.read() as connection:
            found = queries.get_batch(connection, batch_id)
        if found is None:
            raise NotFoundError(f"there is no batch {batch_id!r}")
        return found

    def batches(self, limit: int = 20) -> list[Batch]:
        """List the newest batches."""
        with self.database.read() as connection:
            return queries.list_batches(connection, limit)

    def jobs(
        self, *, batch_id: str | None = None, state: State | None = None, limit: int = 20
    ) -> list[Job]:
        """List the newest jobs, without their tool calls."""
        with self.database.read() as connection:
            return queries.list_jobs(connection, JobFilter(batch_id, state), limit)

    def attempts(self, job_id: str) -> list[Attempt]:
        """List every call made for a job, in order."""
        with self.database.read() as connection:
            return queries.list_attempts(connection, job_id)

    def is_emptied(self, batch_id: str) -> bool:
        """Whether a purge has begun to remove a batch's contents."""
        with self.database.read() as connection:
            return retention.is_emptied(connection, batch_id)

    def count(self, batch_id: str | None = None) -> dict[State, int]:
        """Count jobs by state, of one batch or of all."""
        with self.database.read() as connection:
            return queries.count_states(connection, batch_id)

    def unknown_outcomes(self, batch_id: str | None = None) -> int:
        """Count the calls whose outcome nobody knows: they may have been billed."""
        with self.database.read() as connection:
            return queries.count_unknown(connection, batch_id)

    def failures(self, batch_id: str) -> list[FailureGroup]:
        """Group a batch's failed and waiting jobs by their error."""
        with self.database.read() as connection:
            return queries.failure_groups(connection, batch_id)

    def usage(
        self, by: By = By.DAY, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[Spent]:
        """Sum calls, tokens and cost by day, model, batch or endpoint, of calls between two times.

        What a purge has removed is in no sum. Costs are by the setting `prices`.
        """
        with self.database.read() as connection:
            used = usage.usage(connection, by, since=since, until=until)
        return spent(used, self.settings.prices)

    def results(self, batch_id: str) -> Iterator[Job]:
        """Yield the batch's finished jobs in the order of its input."""
        last = ""
        while True:
            with self.database.read() as connection:
                page = queries.page_of_jobs(connection, batch_id, last)
            yield from (job for job in page if job.is_finished)
            if not page:
                return
            last = page[-1].id

    # --- waiting --------------------------------------------------------------------------------

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> Job:
        """Wait until a job is finished, however it ends. Raises NotFoundError, WaitTimeoutError."""
        return _wait(lambda: self.get(job_id), job_id, timeout_seconds)

    def wait_batch(self, batch_id: str, timeout_seconds: float | None = None) -> Batch:
        """Wait until a batch is finished. Raises NotFoundError, WaitTimeoutError."""
        return _wait(lambda: self.batch(batch_id), batch_id, timeout_seconds)

    # --- changing -------------------------------------------------------------------------------

    def cancel(self, ident: str) -> int:
        """Cancel a job, or all that is still open of a batch; return how many jobs it ended.

        From the first moment on nothing of it is begun; a call in flight is cut off within seconds
        and may have been billed. Raises NotFoundError.
        """
        if not self._is_batch(ident):
            with self.database.write() as connection:
                return endings.cancel_job(connection, ident)
        with self.database.write() as connection:
            endings.begin_cancelling(connection, ident)
        count = self._cancel(endings.cancel_calls, ident)
        while step := self._cancel(endings.cancel_step, ident):
            count += step
        return count

    def _cancel(self, step: Callable[[Transaction, str], int], batch_id: str) -> int:
        with self.database.write() as connection:
            return step(connection, batch_id)

    def retry(
        self,
        ident: str,
        *,
        errors: Sequence[str] = (),
        changes: Mapping[str, Any] | None = None,
    ) -> int:
        """Run a batch's failed and expired jobs again, or one finished job; return how many.

        `errors`: only those that ended with one of these codes (`server_error`) or classes
        (`divert`). `changes`: fields of the request to replace, None to take one away; all requests
        are changed or, if one would not be valid, none. Raises NotFoundError, InvalidRequestsError.
        """
        is_batch = self._is_batch(ident)
        which = Again(ident if is_batch else None, None if is_batch else ident, tuple(errors))
        change = None if not changes else _change(changes)
        with self.database.write() as connection:
            count = redrive.run_again(connection, which, change)
        if count:
            self.ring()
        return count

    def settle(self, ident: str, *, again: bool) -> int:
        """Decide on the held jobs of a batch, or on one: call again, or fail; return how many.

        Held is a job whose call may have been billed and brought no answer, where the policy
        `unknown_outcome` says so. Raises NotFoundError.
        """
        is_batch = self._is_batch(ident)
        with self.database.write() as connection:
            count = (
                lost.settle(connection, again=again, batch_id=ident)
                if is_batch
                else lost.settle(connection, again=again, job_id=ident)
            )
        if again and count:
            self.ring()
        return count

    def held(self, batch_id: str | None = None) -> int:
        """Count the jobs that wait for a person's decision, of one batch or of all."""
        with self.database.read() as connection:
            return queries.count_held(connection, batch_id)

    def pause(self, ident: str) -> None:
        """Pause a batch, or a queue (`bulk`, `interactive`): nothing of it is begun any more.

        Calls in flight go on. Raises NotFoundError.
        """
        self._check_stoppable(ident)
        with self.database.write() as connection:
            if ident in QUEUES:
                halts.halt_queue(connection, ident)
            else:
                halts.halt_batch(connection, ident)

    def unpause(self, ident: str) -> bool:
        """Let a paused batch or queue go on; return whether it was paused. Raises NotFoundError."""
        self._check_stoppable(ident)
        with self.database.write() as connection:
            freed = (
                halts.free_queue(connection, ident)
                if ident in QUEUES
                else halts.free_batch(connection, ident)
            )
        self.ring()
        return freed

    def halted_queues(self) -> list[Halt]:
        """List the queues that a person has paused."""
        with self.database.read() as connection:
            return halts.halted_queues(connection)

    def _is_batch(self, ident: str) -> bool:
        """Tell a batch's id from a job's. Raises NotFoundError where there is neither."""
        if ident.startswith("batch_"):
            self.batch(ident)
            return True
        self.get(ident)
        return False

    def _check_stoppable(self, ident: str) -> None:
        if ident in QUEUES:
            return
        if not ident.startswith("batch_"):
            raise NotFoundError(f"{ident!r} is neither a batch nor a queue ({', '.join(QUEUES)})")
        self.batch(ident)

    def purge(
        self,
        older_than: timedelta,
        *,
        content_only: bool = False,
        on_step: Callable[[Purged], None] = lambda _: None,
    ) -> Purged:
        """Remove the batches and single jobs that finished longer ago than that, and their images.

        With `content_only` their rows, counts and usage stay, and what was said goes: prompts,
        answers, arguments of tool calls, the words of errors. It runs in short steps beside running
        work, touches nothing unfinished, and may be ended and run again at any time. `on_step` is
        told the sum so far. Raises DatabaseError.
        """
        return retention.purge(
            self.database, older_than.total_seconds(), content_only=content_only, on_step=on_step
        )

    def pauses(self) -> list[Pause]:
        """List the keys that are paused, with the reason; keys are named by fingerprints."""
        with self.database.read() as connection:
            return pauses.active(connection)

    def resume(self) -> int:
        """End every pause: the keys are used again at once. Return how many there were."""
        with self.database.write() as connection:
            ended = pauses.end_all(connection)
        self.ring()
        return len(ended)

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def reach(given: Settings) -> Settings:
    """Fill in the embedded stack's broker, where none is set and that stack is up."""
    if given.broker_url is not None:
        return given
    info = stack.running(given)
    return given if info is None else stack.connected(given, info.broker_url, info.simulator_url)


def _text(body: Body) -> bytes:
    if isinstance(body, bytes):
        return body
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return text.encode()


def _checked(body: Body, options: JobOptions, folder: ImageFolder | None) -> RequestLine:
    found = check_single(_text(body), options, folder.read if folder else None)
    if isinstance(found, tuple):
        raise InvalidRequestsError(found)
    return found


def _change(changes: Mapping[str, Any]) -> Change:
    check_changes(changes)

    def change(body: str, line: int, custom_id: str) -> Changed:
        request = changed(body, changes, line, custom_id)
        text = json.dumps(request, ensure_ascii=False)
        return Changed(text, request["model"], bool(request.get("stream")))

    return change


def _wait(read: Callable[[], T], ident: str, timeout_seconds: float | None) -> T:
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    pause = _POLL_FIRST_SECONDS
    while not (found := read()).is_finished:
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeoutError(f"{ident} is not finished after {timeout_seconds} s; it goes on")
        time.sleep(pause)
        pause = min(pause * 1.3, _POLL_LAST_SECONDS)
    return found
