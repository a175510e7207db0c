"""Lanes, by which jobs are claimed and limited together; pauses of keys that were refused."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from worker.jobs.ids import lane_id

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def _where(condition: str) -> dict[str, Any]:
    clause = sa.text(condition)
    return {"postgresql_where": clause, "sqlite_where": clause}


def upgrade() -> None:
    """Move to this schema."""
    op.create_table(
        "lane",
        sa.Column("id", ID, nullable=False),
        sa.Column("batch_id", ID),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("multimodal", sa.Boolean(), nullable=False),
        sa.Column("endpoints", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lane")),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_lane_batch_id_batch")),
    )
    op.create_index("ix_lane_batch_id", "lane", ["batch_id"])
    op.create_table(
        "pause",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("probe_at", TIME, nullable=False),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_pause")),
    )
    op.add_column("job", sa.Column("lane_id", ID, nullable=False, server_default=sa.text("''")))
    _put_jobs_in_lanes()
    op.drop_index("ix_job_ready", table_name="job")
    op.drop_index("ix_job_due", table_name="job")
    op.create_index(
        "ix_job_ready",
        "job",
        ["lane_id", sa.text("priority DESC"), "id"],
        **_where("state = 'queued'"),
    )
    op.create_index("ix_job_due", "job", ["lane_id", "due_at"], **_where("state = 'waiting'"))


def _put_jobs_in_lanes() -> None:
    """Give the jobs that are there their lanes."""
    connection = op.get_bind()
    kinds = connection.execute(
        sa.text("SELECT DISTINCT batch_id, queue, priority, model, multimodal FROM job")
    ).all()
    insert = sa.text(
        "INSERT INTO lane (id, batch_id, queue, priority, model, multimodal, endpoints) "
        "VALUES (:id, :batch_id, :queue, :priority, :model, :multimodal, '')"
    )
    update = sa.text(
        "UPDATE job SET lane_id = :id WHERE (batch_id = :batch_id OR (batch_id IS NULL AND "
        "CAST(:batch_id AS TEXT) IS NULL)) AND queue = :queue AND priority = :priority "
        "AND model = :model AND multimodal = :multimodal"
    )
    for batch_id, queue, priority, model, multimodal in kinds:
        row = {
            "batch_id": batch_id,
            "queue": queue,
            "priority": priority,
            "model": model,
            "multimodal": bool(multimodal),
        }
        row["id"] = lane_id(batch_id, queue, priority, model, bool(multimodal))
        connection.execute(insert, row)
        connection.execute(update, row)


def downgrade() -> None:
    """Go back to the first schema; what is paused goes on."""
    op.drop_index("ix_job_ready", table_name="job")
    op.drop_index("ix_job_due", table_name="job")
    op.create_index(
        "ix_job_ready",
        "job",
        ["batch_id", sa.text("priority DESC"), "id"],
        **_where("state = 'queued'"),
    )
    op.create_index("ix_job_due", "job", ["due_at"], **_where("state = 'waiting'"))
    op.drop_column("job", "lane_id")
    op.drop_table("pause")
    op.drop_table("lane")
