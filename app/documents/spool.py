"""Keep uploads while they are read, in a folder of this process that is removed at its end or swept later."""

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self


class Spool:
    """A locked folder in ``data_dir/spool``.

    The lock ends with the process, so leftovers of a crash are recognised.
    """

    def __init__(self, folder: Path, lock_fd: int) -> None:
        self._folder = folder
        self._lock_fd = lock_fd
        self._numbers = itertools.count(1)  # thread-safe, because threads place files too
        self.tmp_dir = folder / "tmp"
        """Folder for temporary files of the worker and the processes it starts."""
        self.tmp_dir.mkdir()

    @classmethod
    def open(cls, data_dir: Path) -> Self:
        """Make and lock a folder. Remove folders of processes that are gone."""
        root = (data_dir / "spool").resolve()
        root.mkdir(parents=True, exist_ok=True)
        for folder in root.iterdir():
            _remove_if_stale(folder)
        folder = Path(tempfile.mkdtemp(dir=root))
        lock_fd = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        return cls(folder, lock_fd)

    @contextlib.contextmanager
    def file(self) -> Iterator[Path]:
        """Give a path for one upload. Remove the file at the end."""
        path = self._folder / str(next(self._numbers))
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def files(self) -> Iterator[Callable[[], Path]]:
        """Give a function that returns a new path for an upload at each call."""
        with contextlib.ExitStack() as stack:
            yield lambda: stack.enter_context(self.file())

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock_fd)


def _remove_if_stale(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
