"""The first schema: files, batches, jobs, their calls, and the workers that make them."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def _where(condition: str) -> dict[str, Any]:
    clause = sa.text(condition)
    return {"postgresql_where": clause, "sqlite_where": clause}


def upgrade() -> None:
    """Move to this schema."""
    op.create_table(
        "file",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("bytes", COUNT, nullable=False),
        sa.Column("lines", COUNT, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file")),
    )
    op.create_table(
        "worker",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("lease_until", TIME, nullable=False),
        sa.Column("stopped_at", TIME),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_table(
        "batch",
        sa.Column("id", ID, nullable=False),
        sa.Column("key", sa.Text()),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("input_file_id", ID),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("total", COUNT, server_default="0", nullable=False),
        sa.Column("succeeded", COUNT, server_default="0", nullable=False),
        sa.Column("failed", COUNT, server_default="0", nullable=False),
        sa.Column("cancelled", COUNT, server_default="0", nullable=False),
        sa.Column("expired", COUNT, server_default="0", nullable=False),
        sa.Column("prompt_tokens", COUNT, server_default="0", nullable=False),
        sa.Column("cached_tokens", COUNT, server_default="0", nullable=False),
        sa.Column("completion_tokens", COUNT, server_default="0", nullable=False),
        sa.Column("reasoning_tokens", COUNT, server_default="0", nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("in_progress_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("reported_at", TIME),
        sa.Column("redrives", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "state = 'validating' OR succeeded + failed + cancelled + expired <= total",
            name=op.f("ck_batch_counts_within_total"),
        ),
        sa.CheckConstraint(
            "state IN ('validating', 'in_progress', 'cancelling', 'completed', 'cancelled')",
            name=op.f("ck_batch_state_known"),
        ),
        sa.ForeignKeyConstraint(
            ["input_file_id"], ["file.id"], name=op.f("fk_batch_input_file_id_file")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
        sa.UniqueConstraint("key", name=op.f("uq_batch_key")),
    )
    op.create_index(
        "ix_batch_open", "batch", ["queue", "priority"], **_where("state = 'in_progress'")
    )

    op.create_table(
        "job",
        sa.Column("id", ID, nullable=False),
        sa.Column("batch_id", ID),
        sa.Column("line", COUNT, server_default="0", nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("multimodal", sa.Boolean(), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("due_at", TIME),
        sa.Column("worker_id", ID),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("diverts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("status", sa.Integer()),
        sa.Column("request_id", sa.Text()),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("content", sa.Text()),
        sa.Column("reasoning_content", sa.Text()),
        sa.Column("refusal", sa.Text()),
        sa.Column("response", sa.Text()),
        sa.Column("error_class", sa.Text()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("prompt_tokens", COUNT),
        sa.Column("cached_tokens", COUNT),
        sa.Column("completion_tokens", COUNT),
        sa.Column("reasoning_tokens", COUNT),
        sa.Column("total_tokens", COUNT),
        sa.CheckConstraint(
            "(state = 'running') = (worker_id IS NOT NULL)", name=op.f("ck_job_running_has_worker")
        ),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled', 'expired'))"
            " = (finished_at IS NOT NULL)",
            name=op.f("ck_job_finished_has_end"),
        ),
        sa.CheckConstraint(
            "state <> 'waiting' OR due_at IS NOT NULL", name=op.f("ck_job_waiting_has_due")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'waiting',"
            " 'succeeded', 'failed', 'cancelled', 'expired')",
            name=op.f("ck_job_state_known"),
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name=op.f("fk_job_batch_id_batch")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("batch_id", "custom_id", name=op.f("uq_job_batch_id_custom_id")),
    )
    op.create_index("ix_job_batch", "job", ["batch_id", "id"])
    op.create_index("ix_job_due", "job", ["due_at"], **_where("state = 'waiting'"))
    op.create_index(
        "ix_job_ready",
        "job",
        ["batch_id", sa.literal_column("priority DESC"), "id"],
        **_where("state = 'queued'"),
    )
    op.create_index("ix_job_running", "job", ["worker_id"], **_where("state = 'running'"))

    op.create_table(
        "attempt",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("worker_id", ID, nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("prepared_at", TIME, nullable=False),
        sa.Column("answered_at", TIME),
        sa.Column("seconds", sa.Float()),
        sa.Column("first_token_seconds", sa.Float()),
        sa.Column("status", sa.Integer()),
        sa.Column("request_id", sa.Text()),
        sa.Column("error_class", sa.Text()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("maybe_billed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("prompt_tokens", COUNT),
        sa.Column("cached_tokens", COUNT),
        sa.Column("completion_tokens", COUNT),
        sa.Column("reasoning_tokens", COUNT),
        sa.Column("total_tokens", COUNT),
        sa.CheckConstraint(
            "state IN ('prepared', 'sent', 'answered', 'unknown')",
            name=op.f("ck_attempt_state_known"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_attempt_job_id_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "fence", name=op.f("pk_attempt")),
    )
    op.create_index("ix_attempt_unknown", "attempt", ["job_id"], **_where("state = 'unknown'"))

    op.create_table(
        "tool_call",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("arguments_valid", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_tool_call_job_id_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("pk_tool_call")),
    )


def downgrade() -> None:
    """Remove everything."""
    for table in ("tool_call", "attempt", "job", "batch", "worker", "file"):
        op.drop_table(table)
