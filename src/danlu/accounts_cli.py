"""``danlu keys`` and ``danlu users``: who may use a server that others can reach.

In:  a command line; a password from the terminal, or the first line of standard input.
Out: rows of the server's store; a new key, shown once.
Left out: what keys and passwords are (``danlu.serve.people``); the same over HTTP (``danlu.serve.keys``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danlu.errors import UserError

if TYPE_CHECKING:
    from danlu.serve.store import ServeStore

keys = typer.Typer(help="API keys of a server that others can reach.", no_args_is_help=True)
users = typer.Typer(help="People who log in to the page of a server that others can reach.", no_args_is_help=True)

_ACTOR = "command line"
Run = Annotated[Path, typer.Option("--run", help="What is served: a run, a model directory, a name.")]
Store = Annotated[str | None, typer.Option("--store", "--db", help="Its store, if it was named when serving.")]
Operator = Annotated[bool, typer.Option("--operator", help="May also see runs, votes and keys, and change keys.")]
Limit = Annotated[int | None, typer.Option(min=0, help="A minute; 0 is no limit; the server's own if not given.")]
Adopt = Annotated[bool, typer.Option("--adopt", help="Give the conversations from before there were accounts to NAME.")]
_TANG = Path("runs/tang")


@keys.command("add")
def keys_add(
    owner: Annotated[str, typer.Argument(help="Whose conversations it opens: a user's, or a program's own name.")],
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    operator: Operator = False,
    requests: Limit = None,
    tokens: Limit = None,
    adopt: Adopt = False,
    run: Run = _TANG,
    store: Store = None,
) -> None:
    """Make a key and show it, once."""
    with opened(run, store) as kept:
        identity, key = kept.people.add_key(owner, label, _scopes(operator), requests, tokens)
        kept.audit(_ACTOR, "key.add", identity)
        _adopt(kept, owner, adopt)
    typer.echo(f"key {identity} of {owner}, shown this once:", err=True)
    typer.echo(key)


@keys.command("list")
def keys_list(run: Run = _TANG, store: Store = None) -> None:
    """List keys, the revoked ones too."""
    with opened(run, store) as kept:
        for key in kept.people.list_keys():
            state = f"revoked {key['revoked'][:10]}" if key["revoked"] else f"since {key['created'][:10]}"
            typer.echo("  ".join((key["id"], key["owner"], "+".join(key["scopes"]), state, key["label"])).rstrip())


@keys.command("revoke")
def keys_revoke(
    identity: Annotated[str, typer.Argument(metavar="ID", help="As danlu keys list shows it.")],
    run: Run = _TANG,
    store: Store = None,
) -> None:
    """End a key, at once."""
    with opened(run, store) as kept:
        kept.people.revoke_key(identity)
        kept.audit(_ACTOR, "key.revoke", identity)


@users.command("add")
def users_add(
    name: str, operator: Operator = False, adopt: Adopt = False, run: Run = _TANG, store: Store = None
) -> None:
    """Let somebody log in; asks for a password, or reads it from standard input."""
    with opened(run, store) as kept:
        kept.people.add_user(name, _password(), _scopes(operator))
        kept.audit(_ACTOR, "user.add", name)
        _adopt(kept, name, adopt)


@users.command("list")
def users_list(run: Run = _TANG, store: Store = None) -> None:
    """List everybody who can log in."""
    with opened(run, store) as kept:
        for user in kept.people.list_users():
            typer.echo("  ".join((user["name"], "+".join(user["scopes"]), f"since {user['created'][:10]}")))


@users.command("remove")
def users_remove(name: str, run: Run = _TANG, store: Store = None) -> None:
    """End somebody's access; their conversations stay, and the name is not given again."""
    with opened(run, store) as kept:
        kept.people.remove_user(name)
        kept.audit(_ACTOR, "user.remove", name)


@contextmanager
def opened(run: Path, store: str | None) -> Iterator[ServeStore]:
    """The server's store of what is served at ``run``, or the one that is named.

    Raises:
        UserError: neither is there.
    """
    from danlu import hub
    from danlu.places import votes_of
    from danlu.serve.store import ServeStore

    if store is None and not (hub.is_named(run) or run.exists()):
        raise UserError(f"{run} does not exist; say what is served with --run, or where its store is with --db")
    kept = ServeStore(store or votes_of(run))
    try:
        yield kept
    finally:
        kept.close()


def _adopt(kept: ServeStore, owner: str, adopt: bool) -> None:
    if adopt:
        typer.echo(f"{kept.dialogues.adopt(owner)} conversations are {owner}'s now", err=True)


def _scopes(operator: bool) -> tuple[str, ...]:
    return ("chat", "operator") if operator else ("chat",)


def _password() -> str:
    if sys.stdin.isatty():
        told: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return told
    return sys.stdin.readline().rstrip("\r\n")
