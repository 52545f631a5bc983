"""Helpers for processes: private files, children that never outlive their parent, and memory."""

import contextlib
import ctypes
import math
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import app

PR_SET_DUMPABLE = 4
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUP_FILES = (
    ("", "", "memory.max", "memory.current"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""For control groups of version 2 and 1: controller, its folder, and the files with limit and use in
bytes."""
FILE_CACHE = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)
"""Lines of ``memory.stat`` with file cache, which the kernel reclaims before memory runs short."""


def keep_private() -> None:
    """Keep other users from reading what this process and its children write: documents, results, databases.

    Also protect its memory and environment, which have secrets, even from other processes of the same user,
    such as a compromised decoder where the kernel has no Landlock. A started program has to call this
    again.
    """
    os.umask(0o077)
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our modules.

    ``-P``: import nothing from the current folder.
    """
    return [sys.executable, "-P", "-m", name, *arguments]


def child_environment(tmp_dir: Path, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return our environment, with temporary files in ``tmp_dir`` and this very ``app`` importable."""
    package_root = str(Path(app.__path__[0]).resolve().parent)
    paths = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
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
        hangup.register(fd, 0)  # a hang-up is reported even with an empty mask
        hangup.poll()
        action()

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def exit_after(grace_s: float) -> Callable[[], None]:
    def action() -> None:
        time.sleep(grace_s)
        os._exit(1)

    return action


def kill_group(pid: int) -> None:
    """Send SIGKILL to a session leader and everything it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def memory_mib() -> float:
    """Return the memory in MiB of this machine, or of the container around this process if that is less."""
    physical_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    return min([physical_mib, *(limit for limit, _ in _cgroup_limits())])


def available_mib() -> float:
    """Return the memory in MiB that a process could take without swapping; ``inf`` if unknown."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*found, *(limit - used for limit, used in _cgroup_limits())])


def _cgroup_limits() -> list[tuple[float, float]]:
    """Return (limit, used) in MiB of every control group around this process that has a limit.

    A container sees its own group as the root; a service of systemd has a path below it.
    """
    own = {"": "/", "memory": "/"}
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), path)
    found = []
    for controller, folder, limit_name, used_name in CGROUP_FILES:
        inner = Path(own[controller])
        for group in (inner, *inner.parents):
            at = CGROUPS / folder / group.relative_to("/")
            # a missing file or a limit of "max" means no limit here
            with contextlib.suppress(OSError, ValueError):
                limit = int((at / limit_name).read_text(encoding="ascii"))
                used = int((at / used_name).read_text(encoding="ascii"))
                cached = map(int, FILE_CACHE.findall((at / "memory.stat").read_text(encoding="ascii")))
                found.append((limit / 2**20, (used - sum(cached)) / 2**20))
    return found


def give_back_freed_memory() -> None:
    """Return freed memory to the system. Takes about 50 ms of one thread.

    glibc keeps it for later, scattered over several arenas: after a document of 60 pages, as much as the
    model takes.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def resident_mib(pid: int) -> float | None:
    """Return the resident memory of a process in MiB; ``None`` where /proc does not tell."""
    pages = _resident_pages(pid)
    return None if pages is None else pages[0] * os.sysconf("SC_PAGE_SIZE") / 2**20


def own_mib(pid: int) -> float | None:
    """Return the resident memory of a process in MiB without mapped files; ``None`` where /proc does not
    tell.

    The kernel can reclaim mapped files at any time. While weights are loaded, they double the resident
    memory.
    """
    pages = _resident_pages(pid)
    return None if pages is None else (pages[0] - pages[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _resident_pages(pid: int) -> tuple[int, int] | None:
    """Return the number of resident memory pages, and how many of them belong to files."""
    try:
        _, resident, of_files, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return int(resident), int(of_files)
    except (OSError, ValueError):
        return None
