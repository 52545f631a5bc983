"""Keep documents until they are read: in the data folder, or anywhere fsspec reaches, such as ``s3://``."""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from app.errors import StorageFull, StorageUnavailable, UnreadableFile
from app.settings import Settings

logger = logging.getLogger("rtprune.blobs")

ANSWER_S = 5.0
"""How long a blob store may take to answer. Its own library allows minutes."""
MIN_BYTES_PER_S = 2**20
"""A transfer slower than this is given up as hanging."""
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})


class Blobs:
    """Documents by name. When ``put`` returns, every machine can read the name."""

    def __init__(self, settings: Settings) -> None:
        url = settings.blob_url or str(settings.data_dir.resolve() / "blobs")
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._is_local = "file" in _protocols(self._fs)
        self._has_timeouts = bool(getattr(self._fs, "async_impl", False))

    def put(self, path: Path) -> str:
        """Store a file and return its name.

        It is on disk when this returns. The file itself may be moved away.
        """
        name = uuid.uuid4().hex
        with _storage_errors():
            target = self._path(name)
            if not self._is_local:
                with _remote_errors():
                    self._fs.put_file(str(path), target, **self._timeout(path.stat().st_size))
                return name
            folder = Path(target).parent
            _make(folder)
            _sync(path)
            try:
                path.rename(target)
            except OSError:  # another file system, such as a shared folder
                part = Path(f"{target}.part")
                shutil.copyfile(path, part)
                _sync(part)
                part.rename(target)
            _sync(folder)
        return name

    @contextlib.contextmanager
    def local(self, name: str, tmp_dir: Path) -> Iterator[Path]:
        """Give a path of the document on this machine. Raise ``UnreadableFile`` if it is gone."""
        target = self._path(name)
        if self._is_local:
            if not Path(target).exists():
                raise UnreadableFile("the document is not in the blob store any more")
            yield Path(target)
            return
        copy = tmp_dir / f"{name}-{uuid.uuid4().hex}"
        try:
            with _storage_errors(), _remote_errors():
                num_bytes = int(self._fs.info(target, **self._timeout())["size"])
                self._fs.get_file(target, str(copy), **self._timeout(num_bytes))
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a document; one that is gone is no error."""
        with _storage_errors(), contextlib.suppress(FileNotFoundError):
            if self._is_local:
                Path(self._path(name)).unlink()
                return
            with _remote_errors():
                self._fs.rm_file(self._path(name), **self._timeout())

    def _timeout(self, num_bytes: int = 0) -> dict[str, float]:
        """Return the timeout argument for one operation, if the file system takes one.

        The others have their own.
        """
        return {"timeout": ANSWER_S + num_bytes / MIN_BYTES_PER_S} if self._has_timeouts else {}

    def _path(self, name: str) -> str:
        # names are ours, never a client's; two letters of folder keep folders small
        return f"{self._root}/{name[:2]}/{name}"


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _make(folder: Path) -> None:
    """Make a folder and its missing parents. They are on disk when this returns."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in new:
        _sync(one.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn the ``OSError`` of a full or broken disk into ``StorageFull``. Let other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise StorageFull("no space where documents are kept") from error


@contextlib.contextmanager
def _remote_errors() -> Iterator[None]:
    """Turn errors of fsspec's file systems into ``StorageUnavailable``. An ``OSError`` passes unchanged.

    Each file system has its own exception classes, so any other exception counts as an outage.
    """
    try:
        yield
    except TimeoutError as error:  # an OSError, but not one of a disk
        logger.warning("the blob store hangs")
        raise StorageUnavailable("the blob store does not answer") from error
    except OSError:
        raise
    except Exception as error:
        logger.warning("the blob store fails", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
        raise StorageUnavailable("the blob store does not answer") from error


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableFile("the document is not in the blob store any more") from error
    except ConnectionError as error:
        raise StorageUnavailable("the blob store does not answer") from error
    except OSError as error:
        raise StorageFull("no space or no access where documents are kept") from error
