"""API keys: what their holders may do, and how much. Only hashes of keys are stored."""

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from app.jobs.database import migrate_dbos, open_engine, storage_errors
from app.jobs.quota import Quota
from app.jobs.store import Store
from app.jobs.tables import keys, now
from app.settings import Settings

Scope = Literal["read", "submit", "admin"]
"""What a key may do. Each scope includes those before it. ``admin`` also sees the jobs of others."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

KEY_PREFIX = "rtp_"
KEY_BYTES = 32  # too many to guess, so a fast hash is safe
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Key:
    """An API key without its secret. A limit of ``None`` means the service's default, or no limit."""

    name: str
    hash: str
    owner: str
    """The client whose jobs the key reaches.

    Keys with the same owner share jobs, so a new key can replace an old one.
    """
    scope: Scope
    max_jobs: int | None
    pages_per_minute: int | None
    created_at: float
    revoked_at: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Key":
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    @property
    def quota(self) -> Quota | None:
        """Return the key's quota of pages; ``None``: unlimited."""
        return None if self.pages_per_minute is None else Quota(self.name, self.pages_per_minute)

    def reaches(self, scope: Scope) -> bool:
        """Tell whether the key's scope includes this one."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


def key_hash(secret: str) -> str:
    """Return the hash of a key's secret, as it is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The table of keys.

    Each method is one transaction and raises ``StorageUnavailable`` or ``StorageFull``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Key]:
        """List every key ever made, revoked ones too, oldest first."""
        with self._store.reading() as c:
            return [
                Key.of(dict(row)) for row in c.execute(sa.select(keys).order_by(keys.c.created_at)).mappings()
            ]

    def add(
        self,
        name: str,
        scope: Scope = "submit",
        owner: str | None = None,
        max_jobs: int | None = None,
        pages_per_minute: int | None = None,
    ) -> str:
        """Make a key and return its secret, which cannot be shown again.

        Raise ``ValueError`` for a bad argument.
        """
        owner = owner or name
        if not (NAME.fullmatch(name) and NAME.fullmatch(owner)):
            raise ValueError("a name has 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or digit")
        if scope not in SCOPES:
            raise ValueError(f"a scope is one of {', '.join(SCOPES)}")
        if any(limit is not None and limit < 1 for limit in (max_jobs, pages_per_minute)):
            raise ValueError("a limit is at least 1")
        secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
        try:
            with self._store.writing(durable=True) as c:
                c.execute(
                    sa.insert(keys).values(
                        name=name,
                        hash=key_hash(secret),
                        owner=owner,
                        scope=scope,
                        max_jobs=max_jobs,
                        pages_per_minute=pages_per_minute,
                        created_at=now(c),
                    )
                )
        except IntegrityError as error:
            raise ValueError(f"there is, or was, a key called {name}; a name is used once") from error
        return secret

    def revoke(self, name: str) -> bool:
        """Revoke a key. Return False when there is no such key, or it was revoked before."""
        with self._store.writing(durable=True) as c:
            valid = sa.update(keys).where(keys.c.name == name, keys.c.revoked_at.is_(None))
            return bool(c.execute(valid.values(revoked_at=now(c))).rowcount)


@contextmanager
def open_keys(settings: Settings) -> Iterator[Keys]:
    """Open the keys of the service with these settings, for command-line programs. Make missing tables."""
    store = Store(open_engine(settings))
    try:
        with storage_errors():
            migrate_dbos(settings)
            store.migrate()
        yield Keys(store)
    finally:
        store.close()
