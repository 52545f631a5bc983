"""Rasterizers are shared: a file that holds one up holds up nobody else, and a late one is a typed error."""

import asyncio
import os
import random
import shutil
from pathlib import Path
from typing import TypeVar

import pytest
from PIL import Image, ImageChops
from service_client import A4, PATIENCE_S, pdf_bytes
from test_rasterize import SETTINGS, run
from test_rasterize_tiff import directories

from app.documents.raster import images as image_pages
from app.documents.raster import pool as rasterizers_module
from app.documents.raster.images import image_page
from app.documents.raster.pool import Rasterizers, num_rasterizers
from app.documents.raster.tiff import page_frames
from app.errors import Overloaded, RasterizeTimeout, UnreadableFile
from app.places import Claim
from app.settings import Settings

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


def test_pages_that_hold_up_rasterizers_hold_up_no_other_client(
    tmp_path: Path, hanging: Path, quick: Path
) -> None:
    async def work(rasterizers: Rasterizers) -> None:
        pages = [
            asyncio.create_task(
                rasterizers.page(hanging, "PDF", 0, claim=Claim(f"slow {number}", client="hostile"))
            )
            for number in range(6)
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(3):
                page = await rasterizers.page(quick, "PDF", 0, claim=Claim(str(number), client="other"))
                assert page.index == 0
        await cancelled(pages)

    run(tmp_path, work, patient(num_rasterizers=3))


def test_many_clients_together_do_not_hold_all_rasterizers(
    tmp_path: Path, hanging: Path, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the last place for long loses it, and goes on in one of those for slow documents."""
    monkeypatch.setattr(rasterizers_module, "LAST_PLACE_S", 1.0)

    async def work(rasterizers: Rasterizers) -> None:
        claims = [Claim(f"slow {number}", client=f"hostile {number}") for number in range(3)]
        pages = [asyncio.create_task(rasterizers.page(hanging, "PDF", 0, claim=claim)) for claim in claims]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(3):
                page = await rasterizers.page(quick, "PDF", 0, claim=Claim(str(number), client="other"))
                assert page.index == 0
        await cancelled(pages)

    run(tmp_path, work, patient(num_rasterizers=3))


def test_a_page_that_is_slow_in_the_last_place_is_read_in_another(
    tmp_path: Path, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasterizers_module, "LAST_PLACE_S", 0.0)

    async def work(rasterizers: Rasterizers) -> None:
        pages = [rasterizers.page(quick, "PDF", 0, claim=Claim(str(n), client=str(n))) for n in range(6)]
        assert [page.index for page in await asyncio.gather(*pages)] == [0] * 6

    run(tmp_path, work, patient(num_rasterizers=2))


def test_a_page_that_was_late_once_is_not_tried_again(tmp_path: Path, hanging: Path, quick: Path) -> None:
    async def work(rasterizers: Rasterizers) -> None:
        with pytest.raises(RasterizeTimeout):
            await rasterizers.page(hanging, "PDF", 0, claim=Claim("a", client="a"))
        hanging.write_bytes(pdf_bytes(A4, A4))  # noqa: ASYNC240 - nobody waits meanwhile
        with pytest.raises(RasterizeTimeout):
            await rasterizers.page(hanging, "PDF", 0, claim=Claim("a", client="a"))
        for index, document_id in ((1, "a"), (0, "b")):
            page = await rasterizers.page(hanging, "PDF", index, claim=Claim(document_id, client=document_id))
            assert page.index == index, "others are"

    run(tmp_path, work, patient(rasterize_deadline_s=5.0))


@pytest.mark.parametrize(
    ("num_cores", "memory_mib", "asked", "expected"),
    [(1, 64e3, 0, 3), (8, 64e3, 0, 8), (8, 24e3, 0, 5), (128, 1e6, 0, 16), (8, 64e3, 1, 1), (2, 2e3, 0, 3)],
)
def test_there_are_as_many_rasterizers_as_cores_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, memory_mib: float, asked: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    monkeypatch.setattr(rasterizers_module, "memory_mib", lambda: memory_mib)
    assert num_rasterizers(Settings(num_rasterizers=asked)) == expected


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


WEBP_OF_100_MEGAPIXELS = bytes.fromhex(
    "524946461c000000574542505650384c0f0000002f0567c1190710fd8f920522a2ff0100"
)
"""All of one colour, half transparent."""


def test_what_the_settings_allow_fits_the_memory_that_they_give(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(WEBP_OF_100_MEGAPIXELS)

    async def work(rasterizers: Rasterizers) -> None:
        page = await rasterizers.page(path, "WEBP", 0)
        assert page.image.size == (3999, 3999)

    limits = Settings(rasterize_deadline_s=1000, num_rasterizers=1)
    assert limits.max_image_megapixels == 100
    run(tmp_path, work, limits)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("max_pixels", [3000, 12_000])
def test_a_picture_that_is_scaled_in_strips_has_no_seams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, max_pixels: int
) -> None:
    path = tmp_path / "image"
    chance = random.Random(1)
    noise = Image.frombytes("L", (150, 211), bytes(chance.randrange(100, 150) for _ in range(150 * 211)))
    image = noise.convert("RGB").convert(mode) if mode == "CMYK" else noise.convert(mode)
    file_format = "TIFF" if mode in {"F", "CMYK", "I"} else "PNG"
    image.save(path, file_format)
    shown = []
    for strip_pixels in (10**9, 2000):
        monkeypatch.setattr(image_pages, "STRIP_PIXELS", strip_pixels)
        page = image_page(str(path), file_format, 0, max_image_pixels=10**6, max_pixels=max_pixels)
        shown.append(page.image)
        image_pages.open_tiff.close()
    whole, of_strips = shown
    assert whole.size == of_strips.size
    assert max(ImageChops.difference(whole, of_strips).tobytes()) <= 8, "a row too far would be fifty"
