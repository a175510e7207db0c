"""Reading a batch's finished jobs in the order of the input, a page at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from worker.jobs.states import TERMINAL, State
from worker.models import job
from worker.store.engine import Database

PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one line. `is_emptied`: a purge has removed its contents."""

    job_id: str
    custom_id: str
    state: State
    status: int | None
    request_id: str | None
    response: str | None
    error_code: str | None
    error_message: str | None
    is_emptied: bool = False


def results(database: Database, batch_id: str) -> Iterator[Result]:
    """Yield the batch's finished jobs, in the order of their lines.

    Each page is a short read of its own, so that an export of a million lines blocks nobody.
    """
    columns = (
        job.c.id,
        job.c.custom_id,
        job.c.state,
        job.c.status,
        job.c.request_id,
        job.c.response,
        job.c.error_code,
        job.c.error_message,
        job.c.body == "",
    )
    statement = select(*columns).where(job.c.batch_id == batch_id).order_by(job.c.id).limit(PAGE)
    last = ""
    while True:
        with database.read() as connection:
            rows = connection.execute(statement.where(job.c.id > last)).all()
        for row in rows:
            if row.state in TERMINAL:
                yield Result(row.id, row.custom_id, State(row.state), *row[3:])
        if len(rows) < PAGE:
            return
        last = rows[-1].id
