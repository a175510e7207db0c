"""Images that requests refer to, each content once; how often a job is asked again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Move to this schema."""
    op.create_table(
        "image",
        sa.Column("sha256", ID, nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("bytes", COUNT, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_image")),
    )
    op.add_column("job", sa.Column("reasks", sa.Integer(), server_default="0", nullable=False))
    op.add_column("job", sa.Column("followup", sa.Text()))


def downgrade() -> None:
    """Move back: the requests with images lose them."""
    op.drop_column("job", "followup")
    op.drop_column("job", "reasks")
    op.drop_table("image")
