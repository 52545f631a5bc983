"""Files that clients upload and name in later requests. Each belongs to its client and has a lifetime."""

import logging
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.errors import NotFound, ParseError, TooManyFiles
from app.jobs.blobs import Blobs
from app.jobs.store import Store
from app.jobs.tables import files, now

logger = logging.getLogger("rtprune.files")

NO_FILE = "there is no such file"
EXPIRY_BATCH = 100


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An uploaded file. ``created_at``: seconds since 1970."""

    id: str
    client: str
    filename: str
    purpose: str
    media_type: str
    num_bytes: int
    blob: str
    created_at: float


class Files:
    """The uploaded files. Each method blocks, and raises ``StorageUnavailable`` or ``StorageFull``."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    def add(
        self, client: str, path: Path, filename: str, purpose: str, media_type: str, *, most: int
    ) -> StoredFile:
        """Store a file, moving it away from ``path``. It is on disk when this returns.

        Raise ``TooManyFiles`` when the client already has ``most`` files.
        """
        num_bytes = path.stat().st_size
        with self._store.reading() as c:
            self._check_room(c, client, most)
        blob = self._blobs.put(path)
        row: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "client": client,
            "filename": filename,
            "purpose": purpose,
            "media_type": media_type,
            "num_bytes": num_bytes,
            "blob": blob,
        }
        try:
            with self._store.writing(durable=True) as c:
                self._check_room(c, client, most)
                row["created_at"] = now(c)
                c.execute(sa.insert(files).values(**row))
        except BaseException:
            self._blobs.remove(blob)
            raise
        return StoredFile(**row)

    def _check_room(self, connection: sa.Connection, client: str, most: int) -> None:
        count = sa.select(sa.func.count()).where(files.c.client == client)
        if connection.execute(count).scalar_one() >= most:
            raise TooManyFiles(f"{most} files are kept for one client; delete some")

    def file(self, file_id: str, client: str, lifetime_s: float) -> StoredFile:
        """Return a file. Raise ``NotFound`` if it never existed, is gone, or belongs to another client."""
        query = sa.select(files).where(files.c.id == file_id, files.c.client == client)
        with self._store.reading() as c:
            row = c.execute(query.where(files.c.created_at >= now(c) - lifetime_s)).mappings().first()
        if row is None:
            raise NotFound(NO_FILE)
        return StoredFile(**row)

    def listed(self, client: str, lifetime_s: float) -> list[StoredFile]:
        """List the files of a client, newest first."""
        with self._store.reading() as c:
            query = sa.select(files).where(
                files.c.client == client, files.c.created_at >= now(c) - lifetime_s
            )
            rows = c.execute(query.order_by(files.c.created_at.desc(), files.c.id)).mappings().all()
        return [StoredFile(**row) for row in rows]

    def local(self, file: StoredFile, tmp_dir: Path) -> AbstractContextManager[Path]:
        """Give a path of the file on this machine. Do not change the file."""
        return self._blobs.local(file.blob, tmp_dir)

    def remove(self, file: StoredFile) -> None:
        self._blobs.remove(file.blob)
        with self._store.writing() as c:
            c.execute(sa.delete(files).where(files.c.id == file.id))

    def expire(self, lifetime_s: float) -> None:
        """Remove files that are older than their lifetime."""
        with self._store.reading() as c:
            over = sa.select(files).where(files.c.created_at < now(c) - lifetime_s).limit(EXPIRY_BATCH)
            rows = c.execute(over).mappings().all()
        for row in rows:
            try:
                self.remove(StoredFile(**row))
            except ParseError as error:
                logger.warning("a file cannot be removed", extra={"file": row["id"], "reason": str(error)})
