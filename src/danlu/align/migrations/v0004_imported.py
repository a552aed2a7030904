"""Which votes were cast elsewhere and came in by a file: nobody can say how blind they were.

In:  votes.
Out: a column that says it.
Left out: votes that are written by a danlu of before while this one is at work: they are cast here.

Of votes of before it is told by their times: what came out of a file stands in no conversation, and was shown and
judged at one moment; a person takes longer.
"""

import sqlalchemy as sa
from alembic import op

revision = "align_4"
down_revision = "align_3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, and mark what is there."""
    op.add_column("votes", sa.Column("imported", sa.Boolean, nullable=False, server_default=sa.false()))
    votes = sa.table("votes", sa.column("comparison"), sa.column("time"), sa.column("imported"))
    shown = sa.table("comparisons", sa.column("id"), sa.column("conversation"), sa.column("time"))
    at_once = sa.exists().where(
        shown.c.id == votes.c.comparison, shown.c.conversation.is_(None), shown.c.time == votes.c.time
    )
    op.execute(votes.update().where(at_once).values(imported=sa.true()))
