"""The tables. Read by `worker.store` and by the migrations; nothing here runs a statement.

Invariants live here as constraints, so that no code path can break them: enums are checked by
value, a running job has a worker, a finished one an end. Times are aware UTC.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

from worker.jobs.states import AttemptState, BatchState, State
from worker.settings import UnknownOutcome

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = Text().with_variant(Text(collation="C"), "postgresql")
"""Ids are compared byte by byte: cheaper than a language's collation, and the same everywhere."""

Count = BigInteger().with_variant(Integer(), "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database (SQLite keeps none of the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC; a naive time is a mistake of ours."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read UTC."""
        del dialect
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _partial(condition: str) -> dict[str, Any]:
    """The arguments of an index that has only the rows of which this is true."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


def _usage() -> list[Column[int]]:
    names = ("prompt", "cached", "completion", "reasoning", "total")
    return [Column(f"{name}_tokens", Count) for name in names]


def _totals() -> list[Column[int]]:
    names = ("prompt", "cached", "completion", "reasoning")
    return [Column(f"{name}_tokens", Count, nullable=False, server_default="0") for name in names]


file = Table(
    "file",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("bytes", Count, nullable=False),
    Column("lines", Count, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""What a batch was read from: which content, not the content (that is in the jobs)."""

batch = Table(
    "batch",
    metadata,
    Column("id", Id, primary_key=True),
    Column("key", Text, unique=True),
    Column("name", Text, nullable=False),
    Column("input_file_id", Id, ForeignKey("file.id")),
    Column("queue", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("state", Text, nullable=False),
    Column("total", Count, nullable=False, server_default="0"),
    Column("succeeded", Count, nullable=False, server_default="0"),
    Column("failed", Count, nullable=False, server_default="0"),
    Column("cancelled", Count, nullable=False, server_default="0"),
    Column("expired", Count, nullable=False, server_default="0"),
    *_totals(),
    Column("created_at", UtcDateTime, nullable=False),
    Column("in_progress_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("reported_at", UtcDateTime),
    Column("redrives", Integer, nullable=False, server_default="0"),
    Column("expires_at", UtcDateTime),
    Column("halted_at", UtcDateTime),
    _one_of("state", BatchState),
    CheckConstraint(
        "state = 'validating' OR succeeded + failed + cancelled + expired <= total",
        name="counts_within_total",
    ),
    Index("ix_batch_open", "queue", "priority", **_partial("state = 'in_progress'")),
)
"""A file's worth of jobs. `key` makes a repeated submission find the first one.

`expires_at`: no call is begun for its jobs from then on. `halted_at`: since when a person has had
it paused.
"""

lane = Table(
    "lane",
    metadata,
    Column("id", Id, primary_key=True),
    Column("batch_id", Id, ForeignKey("batch.id")),
    Column("queue", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("multimodal", Boolean, nullable=False),
    Column("endpoints", Text, nullable=False),
    Index("ix_lane_batch_id", "batch_id"),
)
"""The jobs of one batch (or single ones) whose calls can go to the same places.

`endpoints`: base URLs with commas between them where the jobs name their own, else empty.
"""

pause = Table(
    "pause",
    metadata,
    Column("key", Text, primary_key=True),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("probe_at", UtcDateTime, nullable=False),
    Column("refusals", Integer, nullable=False),
)
"""A key (by its fingerprint) that was refused: no call uses it but one probe at a time."""

halt = Table(
    "halt",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("since", UtcDateTime, nullable=False),
)
"""A queue that a person has paused: nothing of it is claimed."""

worker = Table(
    "worker",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("lease_until", UtcDateTime, nullable=False),
    Column("stopped_at", UtcDateTime),
)
"""One row per worker process. Its lease is the lease of all jobs it runs: one row per heartbeat."""

job = Table(
    "job",
    metadata,
    Column("id", Id, primary_key=True),
    Column("batch_id", Id, ForeignKey("batch.id")),
    Column("lane_id", Id, nullable=False, server_default=text("''")),
    Column("line", Count, nullable=False, server_default="0"),
    Column("custom_id", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("body", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("multimodal", Boolean, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("due_at", UtcDateTime),
    Column("worker_id", Id),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("diverts", Integer, nullable=False, server_default="0"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("status", Integer),
    Column("request_id", Text),
    Column("finish_reason", Text),
    Column("content", Text),
    Column("reasoning_content", Text),
    Column("refusal", Text),
    Column("response", Text),
    Column("error_class", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    *_usage(),
    Column("reasks", Integer, nullable=False, server_default="0"),
    Column("followup", Text),
    Column("reasks_allowed", Integer, nullable=False, server_default="0"),
    Column("revision", Integer, nullable=False, server_default="0"),
    Column("expires_at", UtcDateTime),
    Column("unknown_outcome", Text),
    UniqueConstraint("batch_id", "custom_id"),
    _one_of("state", State),
    _one_of("unknown_outcome", UnknownOutcome),
    CheckConstraint("(state = 'running') = (worker_id IS NOT NULL)", name="running_has_worker"),
    CheckConstraint("state <> 'waiting' OR due_at IS NOT NULL", name="waiting_has_due"),
    CheckConstraint(
        "(state IN ('succeeded', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)",
        name="finished_has_end",
    ),
)
"""One request and what became of it. `body` and `response` are JSON text, verbatim.

In the place of an image from the submitter's disk, `body` has a reference to its row in `image`.
`reasks` is how often the job may still be asked again for an answer that matches its schema, of
`reasks_allowed`, and `followup` what to ask it with: what follows the messages of `body` in the
next call, if anything. `revision` counts how often a person's retry changed what is asked.
`expires_at`: no call is begun from then on. `unknown_outcome`: its own policy, if it has one.
"""

# The claim reads a lane's head from here, however long the lane is.
Index(
    "ix_job_ready",
    job.c.lane_id,
    job.c.priority.desc(),
    job.c.id,
    **_partial("state = 'queued'"),
)
Index("ix_job_due", job.c.lane_id, job.c.due_at, **_partial("state = 'waiting'"))
Index("ix_job_running", job.c.worker_id, **_partial("state = 'running'"))
# What a person has to decide on, and what time ends, are found without looking at the rest.
Index("ix_job_held", job.c.batch_id, job.c.id, **_partial("state = 'held'"))
Index(
    "ix_job_expires",
    job.c.expires_at,
    **_partial("expires_at IS NOT NULL AND state IN ('queued', 'waiting', 'held')"),
)
# Results leave in the order of the input.
Index("ix_job_batch", job.c.batch_id, job.c.id)

image = Table(
    "image",
    metadata,
    Column("sha256", Id, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("bytes", Count, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
"""A picture that jobs refer to by the SHA-256 of its content: once, however many jobs do."""

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("fence", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("worker_id", Id, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("prepared_at", UtcDateTime, nullable=False),
    Column("answered_at", UtcDateTime),
    Column("seconds", Float),
    Column("first_token_seconds", Float),
    Column("status", Integer),
    Column("request_id", Text),
    Column("error_class", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("maybe_billed", Boolean, nullable=False, server_default=text("false")),
    *_usage(),
    _one_of("state", AttemptState),
    Index("ix_attempt_maybe_billed", "job_id", **_partial("maybe_billed")),
)
"""The ledger: one row per call, written before it is made. `fence` numbers a job's claims."""

tool_call = Table(
    "tool_call",
    metadata,
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("call_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("arguments_valid", Boolean, nullable=False),
)
"""One function call the model asked for, in the order of its index."""
