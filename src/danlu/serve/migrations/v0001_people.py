"""Users, keys, sessions, conversations with their messages, moderation, audit.

In:  a database without any of them.
Out: these tables, empty.
Left out: comparisons and votes (``danlu.align.migrations``).
"""

import sqlalchemy as sa
from alembic import op

revision = "serve_1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _people()
    _talk()
    _oversight()


def _text(name: str, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=nullable)


def _people() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(64), primary_key=True),
        _text("password"),
        _text("scopes"),
        _text("created"),
        _text("removed", nullable=True),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), nullable=False),
        _text("label"),
        _text("scopes"),
        sa.Column("requests", sa.Integer),
        sa.Column("tokens", sa.Integer),
        _text("created"),
        _text("revoked", nullable=True),
    )
    op.create_index("ix_api_keys_owner", "api_keys", ["owner"])
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("user", sa.String(64), sa.ForeignKey("users.name")),
        sa.Column("key", sa.String(16), sa.ForeignKey("api_keys.id")),
        _text("expires"),
    )


def _talk() -> None:
    op.create_table(
        "dialogues",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        _text("title"),
        _text("system"),
        _text("created"),
        _text("updated"),
    )
    op.create_index("dialogues_by_owner", "dialogues", ["owner", "updated"])
    op.create_table(
        "messages",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("dialogue", sa.String(32), sa.ForeignKey("dialogues.id"), nullable=False),
        sa.Column("parent", sa.String(32), sa.ForeignKey("messages.id")),
        _text("role"),
        _text("content"),
        _text("created"),
    )
    op.create_index("ix_messages_dialogue", "messages", ["dialogue"])
    op.create_table(
        "generations",
        sa.Column("message", sa.String(32), sa.ForeignKey("messages.id"), primary_key=True),
        _text("model"),
        _text("model_hash"),
        sa.Column("sampling", sa.JSON, nullable=False),
        _text("seed"),
        _text("finish_reason"),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )


def _oversight() -> None:
    op.create_table(
        "moderation_events",
        sa.Column("id", sa.String(32), primary_key=True),
        *map(_text, ("time", "stage", "action", "category", "scanner")),
        sa.Column("score", sa.Double, nullable=False),
        _text("text"),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("conversation", sa.String(32), nullable=False),
        *map(_text, ("model", "status", "label", "operator")),
        _text("decided", nullable=True),
    )
    op.create_index("ix_moderation_events_conversation", "moderation_events", ["conversation"])
    op.create_index("moderation_by_status", "moderation_events", ["status", "time"])
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        *map(_text, ("time", "actor", "action", "target")),
    )
