"""Notes on what no longer fits, what an answer's model read of its conversation, and where its thumbs are.

In:  a database of the first migration; answers in it are older than notes, and nobody knows their tokens any more.
Out: the table of notes, empty; new columns of messages and generations.
Left out: comparisons and votes (``danlu.align.migrations``).
"""

import sqlalchemy as sa
from alembic import op

revision = "serve_2"
down_revision = "serve_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the columns."""
    op.create_table(
        "notes",
        sa.Column("message", sa.String(32), sa.ForeignKey("messages.id"), primary_key=True),
        sa.Column("model_hash", sa.String(128), primary_key=True),
        sa.Column("words", sa.String, nullable=False),
        sa.Column("messages", sa.Integer, nullable=False),
        sa.Column("left_out", sa.Integer, nullable=False),
        sa.Column("created", sa.String, nullable=False),
    )
    op.add_column("messages", sa.Column("comparison", sa.String(32)))
    op.add_column("generations", sa.Column("tokens", sa.JSON))
    op.add_column("generations", sa.Column("system", sa.String))
    op.add_column("generations", sa.Column("left_out", sa.Integer, nullable=False, server_default="0"))
    op.add_column("generations", sa.Column("note", sa.String(32)))
