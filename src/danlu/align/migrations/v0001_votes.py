"""Conversations, comparisons, answers, votes.

In:  an empty database; those made before there were migrations have these tables and are only marked.
Out: the tables as they were made until then.
Left out: what came later.
"""

import sqlalchemy as sa
from alembic import op

revision = "align_1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("rater", sa.String, nullable=False),
        sa.Column("time", sa.String, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("conversation", sa.String(32), sa.ForeignKey("conversations.id")),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("display_order", sa.JSON, nullable=False),
        sa.Column("split", sa.String, nullable=False),
        sa.Column("time", sa.String, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    op.create_index("ix_comparisons_conversation", "comparisons", ["conversation"])
    op.create_table(
        "answers",
        sa.Column("comparison", sa.String(32), sa.ForeignKey("comparisons.id"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("token_ids", sa.JSON, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("seed", sa.String, nullable=False),
    )
    op.create_table(
        "votes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("comparison", sa.String(32), sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("ranks", sa.JSON, nullable=False),
        sa.Column("rater", sa.String, nullable=False),
        sa.Column("time", sa.String, nullable=False),
    )
    op.create_index("votes_by_comparison", "votes", ["comparison", "rater"])
