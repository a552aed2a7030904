"""Who may come in: users with passwords, API keys, browsers that logged in.

In:  an open database; passwords, keys and cookies as people send them.
Out: ``Caller`` for whoever is known; new keys and cookies, told once and stored as hashes.
Left out: HTTP (``accounts``), what callers own (``dialogues``), how much they may ask (``rates``).

Passwords are people's own and can be guessed: argon2. Keys and cookies are 32 random bytes, which nobody can guess: for
those SHA-256 does, which costs nothing at every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from danlu.align.storage import Database
from danlu.errors import UserError, nearest, unknown
from danlu.serve.tables import KeyRow, SessionRow, UserRow, now

SCOPES = frozenset({"chat", "operator"})
SESSION_DAYS = 30
MIN_PASSWORD, MAX_PASSWORD = 8, 1000
NAME = r"[\w.@+-]{1,64}"
_KEY = re.compile(r"danlu-([0-9a-f]{16})-([\w-]{43})")
_HASHER = PasswordHasher()
_NOBODYS = _HASHER.hash(secrets.token_hex())  # what a name that is not there is checked against: it takes as long


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        owner: whose conversations these are; empty for whoever sits at this machine while no keys are needed.
        scopes: what may be done: "chat", "operator".
        key: id of the API key, or empty.
        requests: how many a minute; None for as many as the server's settings say.
        tokens: likewise.
    """

    owner: str = ""
    scopes: frozenset[str] = SCOPES
    key: str = ""
    requests: int | None = None
    tokens: int | None = None


class People:
    """Users, keys and sessions.

    Raises:
        StoreError: from every method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._session = database.session

    def any(self) -> bool:
        """Whether there is anybody to be recognised: a user or a key that is still good."""
        with self._session() as session:
            users = session.scalars(select(UserRow.name).where(UserRow.removed.is_(None)).limit(1)).first()
            keys = session.scalars(select(KeyRow.id).where(KeyRow.revoked.is_(None)).limit(1)).first()
            return users is not None or keys is not None

    def add_user(self, name: str, password: str, scopes: Collection[str] = ("chat",)) -> None:
        """Let somebody log in.

        Raises:
            UserError: a name or a password that will not do, or a name that was given before.
        """
        _check_name(name)
        if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise UserError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, and this has {len(password)}")
        row = UserRow(name=name, password=_HASHER.hash(password), scopes=_spell(scopes), created=now(), removed=None)
        with self._session(writing=True) as session:
            there = session.get(UserRow, name)
            if there is not None:
                what = "was removed, and what it said is not for others" if there.removed else "is there already"
                raise UserError(f"user '{name}' {what}; choose another name")
            session.add(row)

    def remove_user(self, name: str) -> None:
        """End somebody's access by password, cookie or key. What they said stays theirs: the name is not given again.

        Raises:
            UserError: there is no such user.
        """
        with self._session(writing=True) as session:
            row = session.get(UserRow, name)
            if row is None or row.removed:
                known = session.scalars(select(UserRow.name).where(UserRow.removed.is_(None)))
                raise UserError(f"there is no user '{name}'{nearest(name, known)}")
            row.removed, row.password = now(), ""
            session.execute(delete(SessionRow).where(SessionRow.user == name))
            for key in session.scalars(select(KeyRow).where(KeyRow.owner == name, KeyRow.revoked.is_(None))):
                key.revoked = now()

    def list_users(self) -> list[dict[str, Any]]:
        """Everybody who can log in."""
        query = select(UserRow).where(UserRow.removed.is_(None)).order_by(UserRow.name)
        with self._session() as session:
            return [{"name": u.name, "scopes": u.scopes.split(), "created": u.created} for u in session.scalars(query)]

    def add_key(
        self, owner: str, label: str = "", scopes: Collection[str] = ("chat",), requests: int | None = None,
        tokens: int | None = None,
    ) -> tuple[str, str]:  # fmt: skip
        """Make a key.

        Args:
            owner: whose conversations it opens: a user's, or any name of a program's own.
            label: what it is for.
            scopes: "chat", "operator" or both.
            requests: how many a minute; None leaves it to the server.
            tokens: likewise.

        Returns:
            Its id, and the key itself, which is stored nowhere.

        Raises:
            UserError: a name or a scope that will not do.
        """
        _check_name(owner)
        identity, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        key = f"danlu-{identity}-{secret}"
        row = KeyRow(
            id=identity, digest=_digest(key), owner=owner, label=label, scopes=_spell(scopes), requests=requests,
            tokens=tokens, created=now(), revoked=None,
        )  # fmt: skip
        with self._session(writing=True) as session:
            user = session.get(UserRow, owner)
            if user is not None and user.removed:
                raise UserError(f"user '{owner}' was removed; make a key for somebody else")
            session.add(row)
        return identity, key

    def revoke_key(self, identity: str) -> None:
        """End a key, and what logged in with it.

        Raises:
            UserError: there is no such key.
        """
        with self._session(writing=True) as session:
            row = session.get(KeyRow, identity)
            if row is None:
                known = session.scalars(select(KeyRow.id).where(KeyRow.revoked.is_(None)))
                raise UserError(f"there is no key '{identity[:64]}'{nearest(identity, known)}")
            row.revoked = row.revoked or now()
            session.execute(delete(SessionRow).where(SessionRow.key == identity))

    def list_keys(self) -> list[dict[str, Any]]:
        """Every key ever made, oldest first, without the key itself."""
        with self._session() as session:
            return [
                {
                    "id": key.id, "owner": key.owner, "label": key.label, "scopes": key.scopes.split(),
                    "requests": key.requests, "tokens": key.tokens, "created": key.created, "revoked": key.revoked,
                }
                for key in session.scalars(select(KeyRow).order_by(KeyRow.created, KeyRow.id))
            ]  # fmt: skip

    def by_key(self, key: str) -> Caller | None:
        """Whose key this is; None if nobody's, or a revoked one."""
        spelt = _KEY.fullmatch(key)
        with self._session() as session:
            row = session.get(KeyRow, spelt[1]) if spelt else None
            known = row.digest if row is not None else _digest("")
            if not hmac.compare_digest(known, _digest(key)) or row is None or row.revoked:
                return None
            return _of_key(row)

    def log_in(self, user: str, password: str) -> str | None:
        """A new cookie for a user; None if the name or the password is wrong. Takes as long either way."""
        with self._session() as session:
            row = session.get(UserRow, user)
            known = row.password if row is not None and not row.removed else ""
        try:
            _HASHER.verify(known or _NOBODYS, password)
        except VerificationError:
            return None
        return self._remember(user=user) if known else None

    def log_in_by_key(self, key: str) -> str | None:
        """A new cookie for a key's owner: a browser is better off with something that ends."""
        caller = self.by_key(key)
        return self._remember(key=caller.key) if caller is not None else None

    def by_cookie(self, cookie: str) -> Caller | None:
        """Whose cookie this is; None if nobody's, or one that has ended."""
        with self._session() as session:
            row = session.get(SessionRow, _digest(cookie))
            if row is None or row.expires < now():
                return None
            return _behind(session, row)

    def log_out(self, cookie: str) -> None:
        """End a cookie."""
        with self._session(writing=True) as session:
            session.execute(delete(SessionRow).where(SessionRow.digest == _digest(cookie)))

    def _remember(self, user: str | None = None, key: str | None = None) -> str:
        cookie = secrets.token_urlsafe(32)
        ends = (datetime.now(UTC) + timedelta(days=SESSION_DAYS)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self._session(writing=True) as session:
            session.execute(delete(SessionRow).where(SessionRow.expires < now()))
            session.add(SessionRow(digest=_digest(cookie), user=user, key=key, expires=ends))
        return cookie


def _behind(session: Session, row: SessionRow) -> Caller | None:
    """Who logged in: asked anew every time, so that a revoked key ends its sessions too."""
    if row.key is not None:
        key = session.get(KeyRow, row.key)
        return _of_key(key) if key is not None and not key.revoked else None
    user = session.get(UserRow, row.user)
    return Caller(user.name, frozenset(user.scopes.split())) if user is not None and not user.removed else None


def _of_key(row: KeyRow) -> Caller:
    return Caller(row.owner, frozenset(row.scopes.split()), row.id, row.requests, row.tokens)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _spell(scopes: Collection[str]) -> str:
    for scope in scopes:
        if scope not in SCOPES:
            raise unknown("scope", scope, SCOPES)
    if not scopes:
        raise UserError("a scope is needed: chat, operator or both")
    return " ".join(sorted(set(scopes)))


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise UserError(f"'{name[:80]}' is no name for an owner: 1 to 64 letters, digits and . @ + - _, without blanks")
