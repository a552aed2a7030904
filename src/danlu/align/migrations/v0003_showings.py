"""Comparisons that are shown once more, and held-out raters.

In:  votes and thumbs.
Out: a table of such showings, which votes may name; a split of a vote's own, as its rater may be held out where the
prompt is not.
Left out: votes and thumbs of before, which keep the split of their comparison: theirs is null.
"""

import sqlalchemy as sa
from alembic import op

revision = "align_3"
down_revision = "align_2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the columns."""
    op.create_table(
        "showings",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("comparison", sa.String(32), sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("conversation", sa.String(32), sa.ForeignKey("conversations.id")),
        sa.Column("rater", sa.String, nullable=False),
        sa.Column("display_order", sa.JSON, nullable=False),
        sa.Column("own", sa.Boolean, nullable=False),
        sa.Column("time", sa.String, nullable=False),
    )
    op.create_index("showings_by_comparison", "showings", ["comparison", "rater"])
    op.create_index("ix_showings_conversation", "showings", ["conversation"])
    op.add_column("votes", sa.Column("showing", sa.String(32)))  # SQLite adds no column with a foreign key
    op.add_column("votes", sa.Column("split", sa.String))
    op.add_column("thumbs", sa.Column("split", sa.String))
