"""Commands that hand in work and bring back answers."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from worker import stack
from worker.batches import Submitted, Written, content_hash, stream_results, write_results
from worker.cli import frame, render
from worker.client import Client
from worker.errors import Fault, InvalidRequestsError, NotFoundError
from worker.images import ImageFolder, read_image
from worker.jobs import views
from worker.jobs.durations import parse_duration
from worker.jobs.images import ImageError, data_url
from worker.jobs.options import MAX_REASKS, JobOptions
from worker.jobs.states import State
from worker.jobs.views import Batch
from worker.settings import Settings, UnknownOutcome, base_url
from worker.store import submission
from worker.store.submission import NewBatch
from worker.telemetry.flower import eta_text, held_text, row_text

STDIN: Final = "-"
POLL_SECONDS: Final = 0.2
PLAIN_EVERY_SECONDS: Final = 2.0

FilePath = Annotated[Path, typer.Argument(metavar="FILE", help="JSONL requests; - reads stdin.")]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="OUT", help="Where the answers go; - prints.")
]
Errors = Annotated[
    Path | None, typer.Option("--errors", metavar="FILE", help="Where the errors go.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Priority = Annotated[int, typer.Option(help="Higher is served first.")]


def _base_urls(urls: list[str] | None) -> list[str]:
    try:
        return [base_url(url) for url in urls or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _seconds(text: str) -> float:
    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Images = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of the images that requests name by their paths."),
]
Endpoint = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        callback=_base_urls,
        help="Where to send these jobs, in place of the settings; may be repeated.",
    ),
]
Expires = Annotated[
    float | None,
    typer.Option(
        metavar="DURATION",
        parser=_seconds,
        help="Begin no call for them after so long, such as 24h: they expire.",
    ),
]
OnUnknown = Annotated[
    UnknownOutcome | None,
    typer.Option(
        "--unknown-outcome",
        help="What becomes of a job whose call may have been billed and brought no answer.",
    ),
]
Reasks = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_REASKS,
        help="How often to ask again for an answer that matches its JSON schema.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for function in (run, submit, ask, results):
        frame.command(app)(function)


def run(
    file: FilePath,
    out: Out = None,
    errors: Errors = None,
    images: Images = None,
    priority: Priority = 0,
    endpoint: Endpoint = None,
    reasks: Reasks = 0,
    expires: Expires = None,
    unknown_outcome: OnUnknown = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run everything again, though it was run before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a file of requests: submit it, wait with a progress bar, write the results.

    Starts the embedded stack for as long as it takes, unless a broker is configured or a stack is
    up. Interrupted, the same command goes on where it stopped; nothing is paid for twice.
    """
    settings = Settings.load()
    options = JobOptions(tuple(endpoint or ()), reasks, expires, unknown_outcome)
    work = _Work(file, priority, options, images)
    with frame.client(settings) as client:
        submitted = _submit_again(client, settings, work, fresh=fresh)
        _show_warnings(submitted)
        try:
            batch = _finish(client, settings, submitted.batch_id)
        except KeyboardInterrupt:
            render.note(f"interrupted: run the same command again to go on ({submitted.batch_id})")
            sys.exit(frame.INTERRUPTED)
        written = _write(client, batch.id, *_places(file, out, errors))
        _summarize(client, batch, written, as_json=as_json)
    frame.leave(frame.JOBS_FAILED if batch.total > batch.succeeded else frame.SUCCEEDED)


def submit(
    file: FilePath,
    images: Images = None,
    priority: Priority = 0,
    endpoint: Endpoint = None,
    reasks: Reasks = 0,
    expires: Expires = None,
    unknown_outcome: OnUnknown = None,
    key: Annotated[
        str | None, typer.Option(help="Submitting under the same key again enqueues nothing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Enqueue a file of requests and print the batch's id."""
    options = JobOptions(tuple(endpoint or ()), reasks, expires, unknown_outcome)
    work = _Work(file, priority, options, images)
    with frame.client() as client:
        submitted = _submit(client, work, key)
        _show_warnings(submitted)
        if as_json:
            render.print_json(render.batch_json(client.batch(submitted.batch_id)))
        else:
            render.say(submitted.batch_id)


def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The question; - reads stdin.")],
    model: Annotated[str, typer.Option(help="The model.")] = "gpt-5.1",
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="An image's path or https URL; may be repeated.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.")
    ] = None,
    endpoint: Endpoint = None,
    reasks: Reasks = 0,
    expires: Expires = None,
    unknown_outcome: OnUnknown = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question, wait, and print the answer."""
    question = sys.stdin.read() if text == STDIN else text
    body = _question(question, model, system, image or [], max_tokens)
    options = JobOptions(tuple(endpoint or ()), reasks, expires, unknown_outcome)
    with (
        _stack(Settings.load(), workers=1, flower=False) as (connected, _),
        frame.client(connected) as client,
    ):
        job = client.wait(client.submit(body, options=options).id)
        if as_json:
            render.print_json(views.as_json(job))
        elif job.state is State.SUCCEEDED:
            render.say(job.content or job.refusal or "")
            for call in job.tool_calls:
                render.say(f"{call.name}({call.arguments})")
        else:
            render.fail(f"{job.state}: {job.error_code}: {job.error_message} ({job.id})")
    frame.leave(frame.SUCCEEDED if job.state is State.SUCCEEDED else frame.JOBS_FAILED)


def results(
    batch: Annotated[str, typer.Argument(metavar="BATCH")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="Where the answers go; - prints.")
    ] = Path(STDIN),
    errors: Errors = None,
    as_json: AsJson = False,
) -> None:
    """Write a batch's results, complete or so far, in the order of its input."""
    with frame.client() as client:
        found = client.batch(batch)
        place = errors or _errors_of(out)
        written = _write(client, found.id, out, place)
        if as_json:
            render.print_json(render.batch_json(found) | _places_json(written))
        elif not found.is_finished:
            render.note(f"not complete yet: {found.done} of {found.total}")
    frame.leave(frame.JOBS_FAILED if written.failed else frame.SUCCEEDED)


# --- the embedded stack -------------------------------------------------------------------------


@contextmanager
def _stack(
    settings: Settings, *, workers: int | None = None, flower: bool = True
) -> Iterator[tuple[Settings, Callable[[], None]]]:
    """Have a stack for the time of a command.

    Yields the settings that reach it, and a check that raises StackError once it is gone.
    """
    if settings.broker_url is not None:
        yield settings, lambda: None
        return
    if stack.needs_simulator(settings) and stack.running(settings) is None:
        render.note("EVOLINK_API_KEY is not set: the local simulator answers, nothing is paid")
    with stack.EmbeddedStack(settings, workers=workers, flower=flower) as embedded:
        if embedded.info.flower_url and flower:
            render.note(f"Flower: {embedded.info.flower_url}")
        yield embedded.settings, embedded.check


# --- submitting ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Work:
    """What `run` and `submit` were told to hand in."""

    file: Path
    priority: int
    options: JobOptions
    images: Path | None


def _submit(client: Client, work: _Work, key: str | None) -> Submitted:
    if str(work.file) == STDIN:
        new = NewBatch("stdin", "bulk", work.priority, key, work.options)
        return client.submit_lines(sys.stdin.buffer, new, images=work.images)
    return client.submit_file(
        work.file, key=key, priority=work.priority, options=work.options, images=work.images
    )


def _submit_again(client: Client, settings: Settings, work: _Work, *, fresh: bool) -> Submitted:
    """Submit a file, or find the batch that an earlier `run` made of the same content."""
    key = None if str(work.file) == STDIN else _run_key(work, settings)
    if key is not None and fresh:
        with client.database.write() as connection:
            submission.release_key(connection, key)
    submitted = _submit(client, work, key)
    if submitted.existed:
        batch = client.batch(submitted.batch_id)
        if client.is_emptied(batch.id):
            raise NotFoundError(
                f"{work.file} was run before, and 'chatqueue purge --content-only' has removed its "
                f"answers ({batch.id}): --fresh runs it again, and pays for it again"
            )
        if batch.is_finished:
            render.note("this file was run before: no call is made (--fresh runs it again)")
        else:
            render.note(f"going on with {batch.id}: {batch.done} of {batch.total} are done")
            client.ring()
    return submitted


def _run_key(work: _Work, settings: Settings) -> str:
    """Name a file's content, how it is run and who answers it.

    Answers of a simulator are not the API's. Of an images' folder every image counts, named in the
    file or not, by its path, size and last change: to find out which are named would be to read
    the whole file. So an image that changed makes a new run.
    """
    simulated = stack.needs_simulator(settings)
    who = ("simulator",) if simulated else settings.text_endpoints + settings.multimodal_endpoints
    parts = [content_hash(work.file), *sorted(set(who))]
    parts += [f"endpoint {url}" for url in work.options.endpoints]
    if work.options.reasks:
        parts.append(f"reasks {work.options.reasks}")
    if work.options.expires_seconds is not None:
        parts.append(f"expires {work.options.expires_seconds:g}")
    if work.options.unknown_outcome is not None:
        parts.append(f"unknown outcome {work.options.unknown_outcome}")
    if work.images is not None:
        parts.append(f"images {ImageFolder(work.images).fingerprint()}")
    digest = hashlib.sha256("\n".join(parts).encode())
    return f"run:{digest.hexdigest()}"


def _show_warnings(submitted: Submitted) -> None:
    for one in submitted.warnings:
        more = f" (and {one.count - 1} more like it)" if one.count > 1 else ""
        render.warn(f"{one.first}{more}")


def _question(
    text: str, model: str, system: str | None, images: list[str], max_tokens: int | None
) -> dict[str, Any]:
    content: Any = text
    if images:
        parts = [{"type": "image_url", "image_url": {"url": _image_url(one)}} for one in images]
        content = [{"type": "text", "text": text}, *parts]
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": content}],
    }
    return body if max_tokens is None else body | {"max_tokens": max_tokens}


def _image_url(image: str) -> str:
    """Return an https URL as it is, and a file as a data URL."""
    if image.startswith(("https://", "data:")):
        return image
    try:
        read = read_image(Path(image))
    except ImageError as error:
        raise InvalidRequestsError([Fault(0, "image", f"{image} {error}")]) from None
    return data_url(read.media_type, read.data)


# --- waiting and writing ------------------------------------------------------------------------


def _finish(client: Client, settings: Settings, batch_id: str) -> Batch:
    """Wait for a batch, with a stack to run it; one that is finished needs none."""
    batch = client.batch(batch_id)
    if batch.is_finished:
        return batch
    with _stack(settings) as (_, check):
        return _wait(client, batch, check)


def _wait(client: Client, batch: Batch, check: Callable[[], None]) -> Batch:
    with render.progress_bar(batch.total) as bar:
        pause = POLL_SECONDS if bar.is_live else PLAIN_EVERY_SECONDS
        shown = 0.0
        paused: set[str] = set()
        while not batch.is_finished and not _waits_for_a_person(client, batch):
            if time.monotonic() - shown >= pause:
                held = client.pauses()
                render.pauses([one for one in held if one.key not in paused])
                paused = {one.key for one in held}
                why = held_text(one.code for one in held)
                bar.show(batch, _progress_text(batch, live=bar.is_live, held=why))
                shown = time.monotonic()
            time.sleep(POLL_SECONDS)
            check()
            batch = client.batch(batch.id)
        bar.show(batch, _progress_text(batch, live=bar.is_live))
    return batch


def _waits_for_a_person(client: Client, batch: Batch) -> bool:
    """Whether nothing is left of a batch but jobs that are held for a decision."""
    left = batch.total - batch.done
    return left > 0 and client.held(batch.id) == left


def _progress_text(batch: Batch, *, live: bool, held: str = "") -> str:
    now = datetime.now(UTC)
    if not live:
        return row_text(batch, now, held)
    failed = f"{batch.failed} failed · " if batch.failed else ""
    ending = held or f"ETA {eta_text(batch, now)}"
    return f"{failed}{render.rate(batch):.0f}/s · {ending}"


def _places(file: Path, out: Path | None, errors: Path | None) -> tuple[Path, Path]:
    """Where a run writes: unless told, beside the current folder's other files, by the name."""
    stem = "stdin" if str(file) == STDIN else file.stem
    good = out or Path(f"{stem}.results.jsonl")
    return good, errors or (_errors_of(good) if out else Path(f"{stem}.errors.jsonl"))


def _errors_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}.errors.jsonl")


def _write(client: Client, batch_id: str, out: Path, errors: Path) -> Written:
    if str(out) == STDIN:
        return stream_results(client.database, batch_id, sys.stdout)
    return write_results(client.database, batch_id, out, errors)


def _summarize(client: Client, batch: Batch, written: Written, *, as_json: bool) -> None:
    unknown = client.unknown_outcomes(batch.id)
    if as_json:
        extra = {"unknown_outcomes": unknown, **_places_json(written)}
        render.print_json(render.batch_json(batch) | extra)
        return
    render.summary(batch, client.count(batch.id), unknown)
    render.held(client.held(batch.id), batch.id)
    if written.results:
        render.say(f"results: {written.results}")
    if written.errors:
        render.say(f"errors: {written.errors}")
    if batch.failed:
        for group in client.failures(batch.id):
            render.fail(f"  {group.count} x {group.code}: {group.message}")
        render.note(f"'chatqueue retry {batch.id}' runs the failed ones again")


def _places_json(written: Written) -> dict[str, str | None]:
    return {
        "results": str(written.results) if written.results else None,
        "errors": str(written.errors) if written.errors else None,
    }
