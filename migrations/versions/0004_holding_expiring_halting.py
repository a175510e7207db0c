"""Jobs held for a person's decision, deadlines, batches and queues that a person pauses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
JOB_STATES = ("queued", "running", "waiting", "succeeded", "failed", "cancelled", "expired")
BATCH_STATES = ("validating", "in_progress", "cancelling", "completed", "cancelled")
POLICIES = ("retry", "hold", "fail")


def _one_of(column: str, values: Sequence[str]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": sa.text(condition), "sqlite_where": sa.text(condition)}


@contextmanager
def _changing(table: str, states: str) -> Iterator[Any]:
    """Change a table and the states it knows. SQLite makes it anew."""
    name = op.f(f"ck_{table}_state_known")
    with op.batch_alter_table(table) as changed:
        changed.drop_constraint(name, type_="check")
        changed.create_check_constraint(name, states)
        yield changed


def upgrade() -> None:
    """Move to this schema."""
    op.create_table(
        "halt",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_halt")),
    )
    with _changing("batch", _one_of("state", (*BATCH_STATES, "expired"))) as batch:
        batch.add_column(sa.Column("expires_at", TIME))
        batch.add_column(sa.Column("halted_at", TIME))
    op.drop_index("ix_job_ready", table_name="job")
    states = (*JOB_STATES[:3], "held", *JOB_STATES[3:])
    with _changing("job", _one_of("state", states)) as job:
        job.add_column(
            sa.Column("reasks_allowed", sa.Integer(), server_default="0", nullable=False)
        )
        job.add_column(sa.Column("revision", sa.Integer(), server_default="0", nullable=False))
        job.add_column(sa.Column("expires_at", TIME))
        job.add_column(sa.Column("unknown_outcome", sa.Text()))
        job.create_check_constraint(
            op.f("ck_job_unknown_outcome_known"), _one_of("unknown_outcome", POLICIES)
        )
    op.execute("UPDATE job SET reasks_allowed = reasks")
    _index_ready()
    op.create_index("ix_job_held", "job", ["batch_id", "id"], **_where("state = 'held'"))
    op.create_index(
        "ix_job_expires",
        "job",
        ["expires_at"],
        **_where("expires_at IS NOT NULL AND state IN ('queued', 'waiting', 'held')"),
    )
    op.drop_index("ix_attempt_unknown", table_name="attempt")
    op.create_index("ix_attempt_maybe_billed", "attempt", ["job_id"], **_where("maybe_billed"))
    _write_leases_in_full()


def _write_leases_in_full() -> None:
    """SQLite's own clock wrote milliseconds where the driver writes microseconds: never equal."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "UPDATE worker SET lease_until = lease_until || '000' WHERE length(lease_until) = 23"
        )


def _index_ready() -> None:
    op.create_index(
        "ix_job_ready",
        "job",
        ["lane_id", sa.text("priority DESC"), "id"],
        **_where("state = 'queued'"),
    )


def downgrade() -> None:
    """Move back: what is held is called again, what was paused or to expire goes on."""
    op.execute("UPDATE job SET state = 'queued' WHERE state = 'held'")
    op.execute("UPDATE batch SET state = 'completed' WHERE state = 'expired'")
    op.drop_index("ix_attempt_maybe_billed", table_name="attempt")
    op.create_index("ix_attempt_unknown", "attempt", ["job_id"], **_where("state = 'unknown'"))
    for name in ("ix_job_expires", "ix_job_held", "ix_job_ready"):
        op.drop_index(name, table_name="job")
    with _changing("job", _one_of("state", JOB_STATES)) as job:
        job.drop_constraint(op.f("ck_job_unknown_outcome_known"), type_="check")
        for name in ("unknown_outcome", "expires_at", "revision", "reasks_allowed"):
            job.drop_column(name)
    _index_ready()
    with _changing("batch", _one_of("state", BATCH_STATES)) as batch:
        batch.drop_column("halted_at")
        batch.drop_column("expires_at")
    op.drop_table("halt")
