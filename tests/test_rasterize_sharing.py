"""Rasterizers are shared: a file that holds one up holds up nobody else, and a late one is a typed error."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import TypeVar

import pytest
from service_client import A4, PATIENCE_S, pdf_bytes
from test_rasterize import SETTINGS, run
from test_rasterize_tiff import directories

from app import rasterizers as rasterizers_module
from app.errors import Overloaded, RasterizeTimeout, UnreadableFile
from app.rasterizers import Rasterizers
from app.settings import Settings
from app.tiff import page_frames

T = TypeVar("T")
HANGING = pdf_bytes(A4, catalog="/Hang true")


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PDF at which poppler hangs, as it does at some files."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("pdfinfo", "pdftoppm"):
        program = programs / name
        program.write_text(
            "#!/bin/sh\nfor file; do :; done\n"
            'if grep -qs "/Hang true" "$file"; then sleep 1000; fi\n'
            f'exec {shutil.which(name)} "$@"\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    path = tmp_path / "hanging"
    path.write_bytes(HANGING)
    return path


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick"
    path.write_bytes(pdf_bytes(A4))
    return path


def patient(**changes: object) -> Settings:
    """Settings whose deadlines do not come in a test, but for those that are named."""
    deadlines = {"count_deadline_s": 1000.0, "rasterize_deadline_s": 1000.0}
    return SETTINGS.model_copy(update={**deadlines, **changes})


async def cancelled(tasks: list[asyncio.Task[T]]) -> None:
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_count_that_is_late_is_an_error_of_its_own(tmp_path: Path, hanging: Path, quick: Path) -> None:
    async def work(rasterizers: Rasterizers) -> None:
        with pytest.raises(RasterizeTimeout, match=r"not counted within 0\.5 s"):
            await rasterizers.count(hanging, "PDF", client="a")

    run(tmp_path, work, patient(count_deadline_s=0.5))


def test_files_that_hold_up_counting_hold_up_no_other_client(
    tmp_path: Path, hanging: Path, quick: Path
) -> None:
    async def work(rasterizers: Rasterizers) -> None:
        counts = [asyncio.create_task(rasterizers.count(hanging, "PDF", client="hostile")) for _ in range(10)]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(3):
                assert await rasterizers.count(quick, "PDF", client=f"other {number}") == 1
        await cancelled(counts)

    run(tmp_path, work, patient(num_rasterizers=2))


def test_a_count_does_not_wait_for_its_turn_for_ever(
    tmp_path: Path, hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasterizers_module, "COUNT_WAIT_S", 0.1)

    async def work(rasterizers: Rasterizers) -> None:
        first = asyncio.create_task(rasterizers.count(hanging, "PDF", client="a"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await rasterizers.count(hanging, "PDF", client="b")
        await cancelled([first])

    run(tmp_path, work, patient(num_rasterizers=1))


def test_directories_of_a_tiff_that_overlap_are_not_all_read(tmp_path: Path) -> None:
    """Real ones do not; a megabyte may have 2,000 of 65,535 entries each, which take 17 s."""
    path = tmp_path / "tiff"
    path.write_bytes(directories(200, num_entries=100))
    with path.open("rb") as file, pytest.raises(ValueError, match="overlap"):
        page_frames(file)

    async def work(rasterizers: Rasterizers) -> None:
        with pytest.raises(UnreadableFile):
            await rasterizers.count(path, "TIFF")

    run(tmp_path, work)
