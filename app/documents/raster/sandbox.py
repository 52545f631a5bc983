"""Confine a process that reads strangers' files, and all that it starts, as far as the kernel allows.

Landlock limits the files that it can open and whom it can signal. Seccomp takes away sockets and other
processes' memory. No program can give it more privileges. Each is tried separately, because an old kernel or
a container may refuse one. There is no way back.
"""

import ctypes
import os
import platform
import re
import shutil
import stat
import struct
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pdf2image
import PIL

import app

KEPT_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH"),
    *("FONTCONFIG_FILE", "FONTCONFIG_PATH", "XDG_DATA_DIRS"),
)
"""Environment variables that decoders get: where programs, libraries and fonts are, and the language."""

PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
CAPABILITY_VERSION = 0x2008_0522
KEPT_CAPABILITIES = 1 << 1 | 1 << 2
"""Capabilities kept where root runs the service: read files of others, such as documents, but not
processes."""
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_VERSION, LANDLOCK_PATH_BENEATH = 1, 1
NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Number of file access rights in each version of Landlock; later versions have 16."""
TCP, SCOPES = 3, 3
"""Bits for TCP (bind and connect) and scopes (abstract sockets and signals to processes outside)."""
EXECUTE, WRITE, READ, READ_FOLDER = 1, 2, 4, 8
RIGHTS_OF_FILES = EXECUTE | WRITE | READ

LIBRARIES = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives"),
    *("/etc/localtime", "/etc/fonts", "/var/cache/fontconfig", "/dev/urandom"),
)
FONT_FOLDERS = (".fonts", ".local/share/fonts", ".config/fontconfig", ".cache/fontconfig")
FONT_FOLDER = re.compile(r"<dir>\s*(/[^<]+?)\s*</dir>")

DENIED: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "x86_64": (
        0xC000_003E,
        {
            "socket": 41, "io_uring_setup": 425, "ptrace": 101, "process_vm_readv": 310,
            "process_vm_writev": 311, "pidfd_getfd": 438, "unshare": 272, "setns": 308, "mount": 165,
            "open_by_handle_at": 304, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
            "add_key": 248, "request_key": 249, "keyctl": 250,
        },
    ),
    "aarch64": (
        0xC000_00B7,
        {
            "socket": 198, "io_uring_setup": 425, "ptrace": 117, "process_vm_readv": 270,
            "process_vm_writev": 271, "pidfd_getfd": 438, "unshare": 97, "setns": 268, "mount": 40,
            "open_by_handle_at": 265, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
            "add_key": 217, "request_key": 218, "keyctl": 219,
        },
    ),
}  # fmt: skip
"""For each machine its mark in seccomp's data, and the numbers of system calls that no decoder needs."""
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, DENY, KILL = 0x7FFF_0000, 0x0005_0000 | 13, 0x8000_0000
"""Return values of a filter; 13: permission denied."""
FIRST_X32_CALL = 0x4000_0000


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The name of the mechanism that confines decoders in each respect; ``None`` where the kernel offers
    none."""

    files: str | None = None
    network: str | None = None
    privileges: str | None = None


def weakest(sandboxes: Iterable[Sandbox | None]) -> Sandbox | None:
    """Return what holds in all sandboxes; ``None`` if one of them is not known."""
    known = list(sandboxes)
    if not known or None in known:
        return None
    held = {field.name: {getattr(one, field.name) for one in known} for field in fields(Sandbox)}
    return Sandbox(**{name: None if None in means else min(means) for name, means in held.items()})


def decoder_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that decoders need, without our secrets."""
    return {name: environment[name] for name in KEPT_VARIABLES if name in environment}


def confine(files: Iterable[Path], others: Iterable[Path] | None) -> Sandbox:
    """Let this process read ``files``, read and run what is in ``others`` (``needed``), and nothing else.

    Call it in a process of one thread: Landlock and seccomp hold for the calling thread and those it starts.
    ``others=None``: do not restrict files, where programs do not start otherwise.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    privileges = _tried(lambda: _no_new_privileges(libc))
    if privileges is None:
        return Sandbox()  # the kernel allows the others only after this one
    landlock = None if others is None else _tried(lambda: _landlock(libc, files, others))
    seccomp = _tried(lambda: _seccomp(libc))
    return Sandbox(files=landlock, network=seccomp, privileges=privileges)


def _tried(confining: Callable[[], str]) -> str | None:
    try:
        return confining()
    except OSError:
        return None


def _no_new_privileges(libc: ctypes.CDLL) -> str:
    _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header, held = struct.pack("Ii", CAPABILITY_VERSION, 0), ctypes.create_string_buffer(24)
    _checked(libc.capget(header, held))
    # effective, permitted and inheritable ones, each in two halves
    effective, permitted, *_ = struct.unpack("6I", held.raw)
    kept = (effective & KEPT_CAPABILITIES, permitted & KEPT_CAPABILITIES, 0, 0, 0, 0)
    _checked(libc.capset(header, struct.pack("6I", *kept)))
    return "no_new_privs"


def _landlock(libc: ctypes.CDLL, files: Iterable[Path], others: Iterable[Path]) -> str:
    version = _called(libc, LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    handled = (1 << NUM_FILE_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("QQQ", handled, TCP, SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _called(libc, LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path in files:
            _allow(libc, rules, path, READ)
        for path in others:
            _allow(libc, rules, path, READ | READ_FOLDER | EXECUTE)
        _allow(libc, rules, Path(os.devnull), READ | WRITE)
        _called(libc, LANDLOCK_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return f"landlock {version}"


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    """Allow access to a file, or to a folder with everything below it. Skip missing paths."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= RIGHTS_OF_FILES
        _called(libc, LANDLOCK_ADD_RULE, rules, LANDLOCK_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def needed(programs: Iterable[str]) -> Iterator[Path]:
    """Yield the paths that decoders read besides documents: programs, libraries, Python, Pillow, and
    fonts."""
    yield from map(Path, LIBRARIES)
    for name in programs:
        if (found := shutil.which(name)) is not None:
            program = Path(found).resolve()
            yield program
            # folders of a prefix such as conda's; its other folders may hold anything
            yield from (program.parent.parent / folder for folder in ("lib", "lib64", "share", "etc"))
    yield from (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    for package in (app, PIL, pdf2image):
        yield from map(Path, package.__path__)
    yield Path(PIL.__path__[0]).parent / "pillow.libs"
    yield from map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    yield from _fonts()


def _fonts() -> Iterator[Path]:
    if home := os.environ.get("HOME"):
        yield from (Path(home) / folder for folder in FONT_FOLDERS)
    configured = [os.environ.get("FONTCONFIG_FILE"), os.environ.get("FONTCONFIG_PATH")]
    yield from map(Path, filter(None, configured))
    for file in ("/etc/fonts/fonts.conf", "/etc/fonts/local.conf", configured[0] or ""):
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        yield from map(Path, FONT_FOLDER.findall(text))


def _seccomp(libc: ctypes.CDLL) -> str:
    """Deny system calls that reach the network, other processes, or kernel parts that decoders never use.

    Landlock restricts only TCP, and its first versions not even that.
    """
    if (machine := platform.machine()) not in DENIED:
        raise OSError(f"no numbers of calls are known for {machine}")
    mark, calls = DENIED[machine]
    numbers = sorted(calls.values())
    steps = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, mark),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),
        (AT_LEAST, len(numbers) + 1, 0, FIRST_X32_CALL),
        *((EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, DENY),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(kept))
    _checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0))
    return "seccomp"


def _called(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    return _checked(libc.syscall(ctypes.c_long(number), *arguments))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
