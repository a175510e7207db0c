"""Files in, files out: a JSONL file becomes a batch; a batch's results become JSONL files.

Reading and writing go line by line: memory does not grow with the file. A file is taken whole or
not at all, and every fault in it is reported, not only the first.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from worker.errors import DatabaseError, Fault, Faults, InvalidRequestsError
from worker.images import ImageFolder
from worker.jobs.images import Image
from worker.jobs.lines import RequestLine, check_line, is_blank
from worker.jobs.states import State
from worker.store import submission
from worker.store.engine import ConflictError, Database
from worker.store.results import Result, results
from worker.store.submission import InputFile, NewBatch, NewJob

CHUNK: Final = 2_000
CHUNK_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
CONTENT_PURGED: Final = "content_purged"
"""The error code of a result whose contents were removed."""

_HASH_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning: the first place it was met at, and at how many in all."""

    first: Fault
    count: int


@dataclass(frozen=True, slots=True)
class Submitted:
    """A batch that is in the queue. `existed`: it was already, under the same key.

    `warnings` has each message once, whatever the number of lines that it is about.
    """

    batch_id: str
    total: int
    existed: bool = False
    warnings: tuple[Warned, ...] = ()


def submit_lines(
    database: Database,
    lines: Iterable[bytes],
    new: NewBatch,
    on_progress: Callable[[int], None] = lambda _: None,
    images: ImageFolder | None = None,
) -> Submitted:
    """Store a file's requests as a batch. Rings nobody: that is the caller's.

    `on_progress` is told the bytes read so far. `images` is where paths in the requests lead;
    without it they are faults. Raises InvalidRequestsError with every fault of the file, after
    removing what was stored of it, but for images: another submission may have the same ones.
    """
    if new.key is not None and (known := _known(database, new.key)):
        return known
    intake = _Intake(database, new, images)
    try:
        for raw in lines:
            intake.take(raw)
            if intake.is_full:
                intake.flush()
                on_progress(intake.size_bytes)
        return intake.finish()
    except ConflictError:
        # The same submission was made at the same time, and was first.
        intake.drop()
        if new.key is not None and (known := _known(database, new.key)):
            return known
        raise
    except BaseException:
        intake.drop()
        raise


def _known(database: Database, key: str) -> Submitted | None:
    with database.read() as connection:
        batch_id = submission.batch_with_key(connection, key)
    return None if batch_id is None else Submitted(batch_id, 0, existed=True)


class _Intake:
    """A file on its way in: what is known of it as far as it was read, and one chunk of it."""

    def __init__(self, database: Database, new: NewBatch, images: ImageFolder | None) -> None:
        self._database = database
        self._new = new
        # The deadline is the batch's: one row has it, not each job.
        self._line_options = replace(new.options, expires_seconds=None)
        self._images = images
        with database.write() as connection:
            self._batch_id = submission.create_batch(connection, new)
        self._digest = hashlib.sha256()
        self._lines = 0
        self._total = 0
        self._faults = Faults()
        self._chunk_faults: list[Fault] = []
        self._warnings: dict[str, Warned] = {}
        self._chunk: dict[str, NewJob] = {}
        self._chunk_bytes = 0
        self.size_bytes = 0

    @property
    def is_full(self) -> bool:
        images = 0 if self._images is None else self._images.held_bytes
        lines = max(len(self._chunk), len(self._chunk_faults))
        return lines >= CHUNK or self._chunk_bytes + images >= CHUNK_BYTES

    def take(self, raw: bytes) -> None:
        """Check a line and put it in the chunk."""
        self._lines += 1
        self.size_bytes += len(raw)
        self._digest.update(raw)
        if is_blank(raw):
            return
        if len(raw) > MAX_LINE_BYTES:
            self._chunk_faults.append(
                Fault(self._lines, "", f"is longer than {MAX_LINE_BYTES} bytes")
            )
            return
        read_image = None if self._images is None else self._images.read
        found = check_line(raw, self._lines, self._line_options, read_image)
        if isinstance(found, RequestLine):
            self._accept(found)
        else:
            self._chunk_faults.extend(found)

    def _accept(self, request: RequestLine) -> None:
        self._warn(request.warnings)
        first = self._chunk.get(request.custom_id)
        if first is not None:
            self._chunk_faults.append(_double(self._lines, request.custom_id, first.line))
            return
        self._chunk[request.custom_id] = new_job(request, self._lines)
        self._chunk_bytes += len(request.body)
        self._total += 1

    def _warn(self, warnings: Iterable[Fault]) -> None:
        for one in warnings:
            met = self._warnings.get(one.message, Warned(one, 0))
            self._warnings[one.message] = Warned(met.first, met.count + 1)

    def flush(self) -> None:
        """Store the chunk. Ids that earlier chunks had are faults; the rest is stored.

        A faulty file is stored on to its end, because that is how its doubled ids are found.
        """
        images = [] if self._images is None else self._images.take()
        if self._faults or self._chunk_faults:
            images = []  # nobody will need them: the file is refused
        taken = self._store(images)
        if taken:
            for custom_id, line in taken.items():
                self._chunk_faults.append(_double(self._chunk.pop(custom_id).line, custom_id, line))
            self._store([])
        self._faults.extend(sorted(self._chunk_faults, key=_line_of))
        self._chunk_faults.clear()
        self._chunk.clear()
        self._chunk_bytes = 0

    def _store(self, images: Sequence[Image]) -> dict[str, int]:
        jobs = list(self._chunk.values())
        return submission.add_jobs(self._database, self._batch_id, self._new, jobs, images)

    def finish(self) -> Submitted:
        """Show the batch to the workers. Raises InvalidRequestsError where anything is wrong."""
        self.flush()
        if not self._total and not self._faults:
            self._faults.extend([Fault(0, "", "there is no request in it")])
        if self._faults:
            raise InvalidRequestsError(self._faults, self._new.name)
        source = InputFile(self._new.name, self.size_bytes, self._lines, self._digest.hexdigest())
        with self._database.write() as connection:
            submission.open_batch(
                connection,
                self._batch_id,
                self._total,
                source,
                self._new.key,
                expires_seconds=self._new.options.expires_seconds,
            )
        return Submitted(self._batch_id, self._total, warnings=tuple(self._warnings.values()))

    def drop(self) -> None:
        """Remove everything that was stored of it; without a database the sweep does so, later."""
        with suppress(DatabaseError):
            submission.drop_batch(self._database, self._batch_id)


def _line_of(fault: Fault) -> int:
    return fault.line


def _double(line: int, custom_id: str, first: int) -> Fault:
    return Fault(line, "custom_id", f"{custom_id!r} is used on line {first} already")


def new_job(request: RequestLine, line: int) -> NewJob:
    """Make what is stored of a checked request."""
    return NewJob(
        line=line,
        custom_id=request.custom_id,
        body=request.body,
        model=request.model,
        multimodal=request.multimodal,
        stream=request.stream,
        endpoints=request.options.endpoints,
        reasks=request.options.reasks,
        expires_seconds=request.options.expires_seconds,
        unknown_outcome=request.options.unknown_outcome,
    )


def read_lines(handle: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of an open file; of one that is too long only enough to tell so."""
    while raw := handle.readline(MAX_LINE_BYTES + 1):
        yield raw
        while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raw = handle.readline(MAX_LINE_BYTES + 1)
            if not raw:
                return


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# --- results ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """How many lines were written, and where. `errors` is None where there were none."""

    succeeded: int
    failed: int
    results: Path | None
    errors: Path | None


def write_results(database: Database, batch_id: str, out: Path, errors: Path) -> Written:
    """Write a batch's finished jobs in the order of its input, answers and errors apart.

    Each file appears whole or not at all; no errors, no errors file. Raises OSError.
    """
    succeeded = failed = 0
    with _replacing(out) as good, _replacing(errors, keep=lambda: failed > 0) as bad:
        for one in results(database, batch_id):
            if _is_answer(one):
                succeeded += 1
                good.write(result_line(one))
            else:
                failed += 1
                bad.write(result_line(one))
    return Written(succeeded, failed, out, errors if failed else None)


def _is_answer(one: Result) -> bool:
    return one.state is State.SUCCEEDED and not one.is_emptied


def stream_results(database: Database, batch_id: str, handle: IO[str]) -> Written:
    """Write answers and errors alike to one open file, in the order of the input."""
    counts = {True: 0, False: 0}
    for one in results(database, batch_id):
        counts[_is_answer(one)] += 1
        handle.write(result_line(one))
    return Written(counts[True], counts[False], None, None)


@contextmanager
def _replacing(path: Path, keep: Callable[[], bool] = lambda: True) -> Iterator[IO[str]]:
    """Open a file that takes its place only at the end, and only if it is to be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as handle:
            yield handle
        if keep():
            partial.replace(path)
        else:
            path.unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)


def result_line(one: Result) -> str:
    """Write one finished job as a line of the batch output format."""
    response, error = "null", "null"
    if one.is_emptied and one.state in {State.SUCCEEDED, State.FAILED}:
        error = _emptied(one)
    elif one.state is State.SUCCEEDED:
        response = _response(one, one.response or "null")
    elif one.state is State.FAILED and one.status is not None and one.status >= 400:
        response = _response(one, _error_body(one))
    else:
        error = json.dumps({"code": _error_code(one), "message": _error_message(one)})
    custom_id = json.dumps(one.custom_id, ensure_ascii=False)
    request_id = one.job_id.replace("job_", "batch_req_", 1)
    return (
        f'{{"id": "{request_id}", "custom_id": {custom_id}, '
        f'"response": {response}, "error": {error}}}\n'
    )


def _emptied(one: Result) -> str:
    """What is left to say of a job whose answer, or error in full, was purged."""
    ending = one.state if one.error_code is None else f"{one.state} with {one.error_code}"
    message = f"its contents were removed by 'chatqueue purge --content-only'; it had {ending}"
    return json.dumps({"code": CONTENT_PURGED, "message": message})


def _response(one: Result, body: str) -> str:
    # Line ends in JSON text can only be white space between its values.
    flat = body.replace("\r", " ").replace("\n", " ").strip()
    return (
        f'{{"status_code": {one.status}, "request_id": {json.dumps(one.request_id or "")}, '
        f'"body": {flat}}}'
    )


def _error_body(one: Result) -> str:
    """The upstream's own words where they are JSON with an error, else the same form from ours."""
    try:
        body = json.loads(one.response or "")
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return one.response or ""
    return json.dumps({"error": {"code": one.error_code, "message": one.error_message}})


def _error_code(one: Result) -> str:
    codes = {State.CANCELLED: "batch_cancelled", State.EXPIRED: "batch_expired"}
    return codes.get(one.state) or one.error_code or "failed"


def _error_message(one: Result) -> str:
    messages = {
        State.CANCELLED: "the request was cancelled before it had an answer",
        State.EXPIRED: "the request had no answer by its deadline",
    }
    return messages.get(one.state) or one.error_message or "the request failed"
