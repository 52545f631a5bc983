"""What a child process needs in order never to outlive its parent."""

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
"""Of control groups version 2 and 1: controller, its folder, the files that hold limit and use in bytes."""
FILE_CACHE = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)
"""Lines of ``memory.stat``: what the kernel takes back before anything is short of memory."""


def keep_private() -> None:
    """Let nobody else read what this process and its children write: documents, results, databases.

    Nor its memory and environment, which have secrets: not even another process of the same user, such as a
    decoder that was taken over where the kernel has no Landlock. A program that is started has to ask anew.
    """
    os.umask(0o077)
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def python_module(name: str, *arguments: str) -> list[str]:
    """Command line that runs one of our modules. ``-P``: nothing is imported from the current folder."""
    return [sys.executable, "-P", "-m", name, *arguments]


def child_environment(tmp_dir: Path, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Our environment, with temporary files in ``tmp_dir`` and this very ``app`` importable."""
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
    physical_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    return min([physical_mib, *(limit for limit, _ in _cgroup_limits())])


def available_mib() -> float:
    """Memory that a process here could still take without swapping, ``inf`` where nothing tells."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*found, *(limit - used for limit, used in _cgroup_limits())])


def _cgroup_limits() -> list[tuple[float, float]]:
    """(limit, used) in MiB of every control group around this process that has a limit.

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
            # a file that is missing, and a limit of "max": no limit here
            with contextlib.suppress(OSError, ValueError):
                limit = int((at / limit_name).read_text(encoding="ascii"))
                used = int((at / used_name).read_text(encoding="ascii"))
                cached = map(int, FILE_CACHE.findall((at / "memory.stat").read_text(encoding="ascii")))
                found.append((limit / 2**20, (used - sum(cached)) / 2**20))
    return found


def give_back_freed_memory() -> None:
    """Return to the system what was freed. glibc keeps it for later, scattered over an arena for each few
    threads: after a document of 60 pages, as much as the model takes. Takes some 50 ms of one thread.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process, ``None`` where /proc does not tell."""
    pages = _resident_pages(pid)
    return None if pages is None else pages[0] * os.sysconf("SC_PAGE_SIZE") / 2**20


def own_mib(pid: int) -> float | None:
    """Resident memory of a process without the files it maps, ``None`` where /proc does not tell.

    The kernel takes those back at any time: weights, while they are loaded, are as much again.
    """
    pages = _resident_pages(pid)
    return None if pages is None else (pages[0] - pages[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _resident_pages(pid: int) -> tuple[int, int] | None:
    """In all, and those of them that are of files."""
    try:
        _, resident, of_files, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return int(resident), int(of_files)
    except (OSError, ValueError):
        return None
