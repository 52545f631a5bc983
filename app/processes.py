"""What a child process needs in order never to outlive its parent."""

import contextlib
import ctypes
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import app

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CGROUP_USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
"""Of control groups version 2 and 1."""


def keep_files_private() -> None:
    """Let nobody else read what this process and its children write: documents, results, databases."""
    os.umask(0o077)


def python_module(name: str, *arguments: str) -> list[str]:
    """Command line that runs one of our modules. ``-P``: nothing is imported from the current folder."""
    return [sys.executable, "-P", "-m", name, *arguments]


def child_environment(tmp_dir: Path) -> dict[str, str]:
    """Our environment, with temporary files in ``tmp_dir`` and this very ``app`` importable."""
    package_root = str(Path(app.__path__[0]).resolve().parent)
    inherited: Mapping[str, str] = os.environ
    paths = [package_root, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **inherited,
        "TMPDIR": str(tmp_dir),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


def when_orphaned(fd: int, action: Callable[[], None]) -> None:
    """Call ``action`` in a thread once the other end of ``fd`` is closed, whatever this process is busy with.

    A parent-death signal would not do: it is tied to a thread of the parent, and reaches no grandchild.
    """

    def watch() -> None:
        hangup = select.poll()
        hangup.register(fd, 0)  # hang-up is reported even though nothing is asked for
        hangup.poll()
        action()

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def exit_after(grace_s: float) -> Callable[[], None]:
    def action() -> None:
        time.sleep(grace_s)
        os._exit(1)

    return action


def kill_group(pid: int) -> None:
    """SIGKILL a session leader and everything it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def memory_mib() -> float:
    """Memory of this machine, or of the container around this process if that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20]
    limits += [limit for limit in map(_mib_in, CGROUP_LIMITS) if limit is not None]
    return min(limits)


def available_mib() -> float:
    """Memory that a process here could still take without swapping, ``inf`` where nothing tells."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit_path, used_path in zip(CGROUP_LIMITS, CGROUP_USES, strict=True):
        limit, used = _mib_in(limit_path), _mib_in(used_path)
        if limit is not None and used is not None:
            found.append(limit - used)
    return min(found)


def _mib_in(path: str) -> float | None:
    """Bytes that a control group's file names, in MiB; ``None`` for no file and for ``max``."""
    try:
        return int(Path(path).read_text(encoding="ascii")) / 2**20
    except (OSError, ValueError):
        return None


def give_back_freed_memory() -> None:
    """Return to the system what was freed. glibc keeps it for later, scattered over an arena for each few
    threads: after a document of 60 pages, as much as the model takes. Takes some 50 ms of one thread.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process, ``None`` where /proc does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
