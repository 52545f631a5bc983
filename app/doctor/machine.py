"""Check the machine: programs, fonts, memory, disk, limits, and the sandbox of decoders."""

import os
import re
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

from app.doctor.finding import Finding
from app.documents.raster.pool import Rasterizers, num_rasterizers
from app.documents.raster.poppler import PROGRAMS, undrawable
from app.documents.raster.sandbox import Sandbox
from app.errors import ParseError
from app.processes import available_mib, memory_mib
from app.settings import Settings

MIN_DESCRIPTORS = 1024
MIN_FREE_MIB = 1024
INSTALL_POPPLER = "apt-get install poppler-utils poppler-data"
INSTALL_FONTS = "apt-get install fonts-wqy-microhei"
MEND_SANDBOX = "use Linux 5.13 or later with Landlock, and a container that filters neither it nor seccomp"
COLLECTIONS = {
    "GB1": "simplified Chinese",
    "CNS1": "traditional Chinese",
    "Japan1": "Japanese",
    "Korea1": "Korean",
}
MISSING = {
    "files": "files are not confined: a decoder that is taken over can read what the service can",
    "network": "sockets are not refused: a decoder that is taken over reaches the network",
    "privileges": "programs may gain privileges",
}
"""Part of the sandbox -> what it means if the kernel or the container refuses it."""


async def examine_machine(settings: Settings) -> list[Finding]:
    """Check what every service needs, with or without a model."""
    found = [_versions(), _poppler()]
    if not found[-1].is_fatal:
        found.append(_fonts())
    found += [_memory(settings), _descriptors(), *_disks(settings)]
    found += _sandbox(await confinement(settings))
    return found


async def confinement(settings: Settings) -> Sandbox | None:
    """Start a decoder process as the service does. Return its sandbox, or ``None`` if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        rasterizers = Rasterizers(settings.model_copy(update={"num_rasterizers": 1}), Path(folder))
        try:
            await rasterizers.start()
            return await rasterizers.greeted()
        except ParseError:
            return None
        finally:
            await rasterizers.close()


def _versions() -> Finding:
    try:
        ours = version("rtprune")
    except PackageNotFoundError:
        ours = "not installed"
    return Finding("versions", f"rtprune {ours}, Python {python_version()}, SQLite {sqlite3.sqlite_version}")


def _poppler() -> Finding:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return Finding(
            "poppler", f"{', '.join(missing)} not found; no PDF is read", is_fatal=True, mend=INSTALL_POPPLER
        )
    said = subprocess.run([PROGRAMS[0], "-v"], capture_output=True, text=True, check=False)  # noqa: S603
    found = re.search(r"version (\S+)", said.stderr + said.stdout)
    return Finding("poppler", found[1] if found else "of an unknown version")


def _fonts() -> Finding:
    lacking = ", ".join(COLLECTIONS[collection] for collection in sorted(undrawable()))
    if lacking:
        return Finding(
            "fonts", f"none for {lacking}, where a PDF embeds none", is_bad=True, mend=INSTALL_FONTS
        )
    return Finding("fonts", "Latin, Chinese, Japanese and Korean are drawn where a PDF embeds none")


def _memory(settings: Settings) -> Finding:
    num = num_rasterizers(settings)
    worst_mib = num * settings.max_rasterizer_mib
    text = (
        f"{memory_mib():.0f} MiB, {available_mib():.0f} free; {num} rasterizers may take {worst_mib} at worst"
    )
    mend = "set RTPRUNE_NUM_RASTERIZERS or RTPRUNE_MAX_RASTERIZER_MIB lower"
    return Finding("memory", text, is_bad=worst_mib > memory_mib(), mend=mend)


def _disks(settings: Settings) -> Iterator[Finding]:
    """Report free space where documents and results are kept, and where pages are while they are read."""
    for name, folder in (
        ("data folder", settings.data_dir),
        ("temporary folder", Path(tempfile.gettempdir())),
    ):
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        free_mib = shutil.disk_usage(there).free / 2**20
        may_write = os.access(there, os.W_OK)
        yield Finding(
            name,
            f"{folder}, {free_mib:.0f} MiB free" + ("" if may_write else ", not to be written to"),
            is_bad=free_mib < MIN_FREE_MIB,
            is_fatal=not may_write,
            mend="free some room, or set " + ("RTPRUNE_DATA_DIR" if name == "data folder" else "TMPDIR"),
        )


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        "descriptors", f"{soft} of at most {hard}", is_bad=soft < MIN_DESCRIPTORS, mend="ulimit -n 4096"
    )


def _sandbox(sandbox: Sandbox | None) -> Iterator[Finding]:
    if sandbox is None:
        yield Finding(
            "sandbox", "not known: no rasterizer starts", is_bad=True, mend="mend what is said above first"
        )
        return
    for field in fields(sandbox):
        means = getattr(sandbox, field.name)
        name = f"sandbox, {field.name}"
        yield Finding(name, means or MISSING[field.name], is_bad=means is None, mend=MEND_SANDBOX)
