"""Preprocessing against plain PIL: the original's steps written out once more, and images nobody would
send."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.errors import PageFailed
from app.ocr.models.checkpoint_spec import DEEPSEEK_OCR, DEEPSEEK_OCR_2, UNLIMITED_OCR, CheckpointSpec
from app.ocr.models.model import Mode
from app.ocr.models.preprocess import PAD_GRAY, preprocess, tile_grid, to_rgb, upright, view_scale

MODES = DEEPSEEK_OCR.view_modes()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels) if channels > 1 else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode) if mode not in ("RGB", "L", "RGBA") else Image.fromarray(pixels)


def pixels_of(view: torch.Tensor) -> np.ndarray[Any, Any]:
    """(3, H, W) in [-1, 1] -> (H, W, 3) in 0..255, exactly."""
    return ((view.permute(1, 2, 0).double() * 0.5 + 0.5) * 255).round().numpy().astype(np.uint8)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_small_modes_stretch_to_the_square(name: str) -> None:
    page, side = noise(300, 417), MODES[name].view_px
    views = preprocess(page, MODES[name])
    expected = page.resize((side, side), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels_of(views.view), np.asarray(expected))
    assert views.tiles is None


@pytest.mark.parametrize("name", ["base", "large", "gundam"])
@pytest.mark.parametrize("size", [(300, 417), (1700, 900), (1024, 1024)])
def test_large_modes_pad_with_gray(name: str, size: tuple[int, int]) -> None:
    page, side = noise(*size), MODES[name].view_px
    views = preprocess(page, MODES[name])
    expected = ImageOps.pad(page, (side, side), color=(127, 127, 127))
    assert np.array_equal(pixels_of(views.view), np.asarray(expected))


def test_views_are_normalised_with_mean_and_deviation_one_half() -> None:
    views = preprocess(Image.new("RGB", (10, 5), (0, 127, 255)), MODES["base"])
    assert (views.view.dtype, tuple(views.view.shape)) == (torch.float32, (3, 1024, 1024))
    middle, corner = views.view[:, 512, 512], views.view[:, 0, 0]
    assert torch.equal(middle, (torch.tensor([0.0, 127, 255]) / 255 - 0.5) / 0.5)
    assert torch.equal(corner, middle[1].expand(3))


def original_grid(width: int, height: int, tile_px: int, max_tiles: int) -> tuple[int, int]:
    """The original's search, in its own order: fewer tiles first, the later one on a tie if the page is
    large."""
    ratios = {(i, j) for n in range(2, max_tiles + 1) for i in range(1, n + 1) for j in range(1, n + 1)}
    ratios = {ratio for ratio in ratios if 2 <= ratio[0] * ratio[1] <= max_tiles}
    best, best_ratio = float("inf"), (1, 1)
    for ratio in sorted(ratios, key=lambda r: (r[0] * r[1], r)):
        difference = abs(width / height - ratio[0] / ratio[1])
        if difference < best:
            best, best_ratio = difference, ratio
        elif difference == best and width * height > 0.5 * tile_px * tile_px * ratio[0] * ratio[1]:
            best_ratio = ratio
    return best_ratio


@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([(640, 9), (640, 32), (768, 6)]))
def test_grids_are_the_original_ones(width: int, height: int, tiles: tuple[int, int]) -> None:
    tile_px, max_tiles = tiles
    columns, rows = tile_grid(width, height, tile_px, max_tiles)
    assert (columns, rows) == original_grid(width, height, tile_px, max_tiles)
    assert 2 <= columns * rows <= max_tiles


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((641, 641), (2, 2)),  # square: 2 x 2 first, and 3 x 3 only above half its area
        ((1400, 1400), (3, 3)),
        ((700, 1400), (1, 2)),
        ((1200, 2400), (2, 4)),
        ((1654, 2339), (2, 3)),  # A4
        ((10_000, 10), (9, 1)),
    ],
)
def test_ties_go_to_the_larger_grid_when_the_page_fills_half_of_it(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert tile_grid(*size, 640, 9) == grid


@pytest.mark.parametrize("recipe", [DEEPSEEK_OCR, DEEPSEEK_OCR_2], ids=["v1", "v2"])
@pytest.mark.parametrize("size", [(1654, 2339), (2000, 650), (769, 3)])
def test_tiles_are_cut_row_by_row_from_the_stretched_page(
    size: tuple[int, int], recipe: CheckpointSpec
) -> None:
    page, mode = noise(*size), recipe.view_modes()["gundam"]
    views, side = preprocess(page, mode), mode.tile_px or 0
    columns, rows = views.tile_columns, views.tile_rows
    stretched = page.resize((side * columns, side * rows), Image.Resampling.BICUBIC)
    assert views.tiles is not None
    assert tuple(views.tiles.shape) == (columns * rows, 3, side, side)
    for i, tile in enumerate(views.tiles):
        left, top = side * (i % columns), side * (i // columns)
        wanted = stretched.crop((left, top, left + side, top + side))
        assert np.array_equal(pixels_of(tile), np.asarray(wanted))
    expected = ImageOps.pad(page, (1024, 1024), color=(127, 127, 127))
    assert np.array_equal(pixels_of(views.view), np.asarray(expected))


@pytest.mark.parametrize("recipe", [DEEPSEEK_OCR, DEEPSEEK_OCR_2], ids=["v1", "v2"])
@pytest.mark.parametrize("size", [(1, 1), (1, 0.01)])
def test_a_page_no_larger_than_a_tile_is_not_cut(size: tuple[float, float], recipe: CheckpointSpec) -> None:
    mode = recipe.view_modes()["gundam"]
    width, height = (max(1, round(share * (mode.tile_px or 0))) for share in size)
    views = preprocess(noise(width, height), mode)
    assert (views.tiles, views.tile_columns, views.tile_rows) == (None, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_comes_first(orientation: int) -> None:
    page, exif, stored = noise(40, 20), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    page.save(stored, "PNG", exif=exif)
    opened = Image.open(stored)
    turned = ImageOps.exif_transpose(opened)
    assert np.array_equal(np.asarray(upright(opened)), np.asarray(turned))
    assert torch.equal(preprocess(opened, MODES["tiny"]).view, preprocess(turned, MODES["tiny"]).view)


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_an_unreadable_exif_block_costs_nothing_but_the_orientation(block: bytes) -> None:
    page = noise(8, 4)
    page.info["exif"] = b"Exif\0\0" + block
    assert sorted(upright(page).size) == [4, 8]


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 128))
    assert np.asarray(to_rgb(clear)).tolist() == [[[255, 255, 255], [255, 127, 127]]]
    gray = Image.new("LA", (1, 1), (10, 0))
    assert to_rgb(gray).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    assert to_rgb(palette).getpixel((0, 0)) == (9, 9, 9)
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    keyed.info["transparency"] = (1, 2, 3)
    assert to_rgb(keyed).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "gray"),
    [
        (Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)), [0, 128, 255]),
        (Image.fromarray(np.array([[0, 128, 255]], np.int32)), [0, 128, 255]),
        (Image.fromarray(np.array([[-5, 32896, 65535]], np.int32)), [0, 128, 255]),
        (Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), [0, 128, 255]),
        (Image.fromarray(np.array([[0.0, 128.0, 255.0]], np.float32)), [0, 128, 255]),
        (Image.fromarray(np.array([[np.nan, -np.inf, np.inf]], np.float32)), [0, 0, 255]),
        (Image.new("1", (3, 1), 1), [255, 255, 255]),
    ],
)
def test_deep_and_shallow_samples_become_eight_bits(image: Image.Image, gray: list[int]) -> None:
    assert np.asarray(to_rgb(image))[0].tolist() == [[value] * 3 for value in gray]


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "LA",
        "PA",
        "La",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I",
        "F",
        "I;16",
        "I;16B",
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (33, 17)])
def test_any_image_gives_finite_views_in_any_mode(mode: str, size: tuple[int, int]) -> None:
    page = Image.new(mode, size)
    for view_mode in (Mode("pad", 128, pad=True, tile_px=64), Mode("stretch", 64, pad=False)):
        views = preprocess(page, view_mode)
        assert tuple(views.view.shape) == (3, view_mode.view_px, view_mode.view_px)
        parts = [views.view] + ([] if views.tiles is None else list(views.tiles))
        assert all(part.isfinite().all() and part.abs().max() <= 1 for part in parts)


def test_white_lab_and_cmyk_stay_white() -> None:
    white = to_rgb(Image.new("LAB", (1, 1), (255, 128, 128)))
    assert np.asarray(white).min() >= 250
    assert to_rgb(Image.new("CMYK", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_a_hair_thin_page_keeps_a_line_of_its_ink() -> None:
    views = preprocess(Image.new("RGB", (1, 10_000), "black"), MODES["base"])
    seen = pixels_of(views.view)
    assert (seen[:, 511:513] == 0).all(axis=2).any(axis=1).all()
    assert (seen[:, :500] == PAD_GRAY).all()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PageFailed, match="no pixels"):
        preprocess(Image.new("RGB", size), MODES["base"])


def test_the_callers_image_is_left_as_it_was() -> None:
    page = noise(30, 20, "RGBA")
    before = page.tobytes(), page.size, page.mode
    preprocess(page, UNLIMITED_OCR.view_modes()["gundam"])
    assert (page.tobytes(), page.size, page.mode) == before


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(MODES)), st.integers(100, 2500), st.integers(100, 2500))
def test_the_scale_of_a_mode_is_that_of_its_sharpest_views(name: str, width: int, height: int) -> None:
    mode = MODES[name]
    views = preprocess(Image.new("L", (width, height)), mode)
    if views.tiles is None:
        sides = (mode.view_px, mode.view_px)
        scale = min(sides[0] / width, sides[1] / height)
    else:
        assert mode.tile_px is not None
        scale = min(views.tile_columns * mode.tile_px / width, views.tile_rows * mode.tile_px / height)
    assert view_scale(width, height, mode) == pytest.approx(scale)
