"""Why somebody voted, and thumbs on answers that stood alone.

In:  votes.
Out: two tables beside them.
Left out: votes themselves, which stay as they were.
"""

import sqlalchemy as sa
from alembic import op

revision = "align_2"
down_revision = "align_1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "reasons",
        sa.Column("vote", sa.String(64), sa.ForeignKey("votes.id"), primary_key=True),
        sa.Column("words", sa.String, nullable=False),
    )
    op.create_table(
        "thumbs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("comparison", sa.String(32), sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("up", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("rater", sa.String, nullable=False),
        sa.Column("time", sa.String, nullable=False),
    )
    op.create_index("thumbs_by_comparison", "thumbs", ["comparison", "rater"])
