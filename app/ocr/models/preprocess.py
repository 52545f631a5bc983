"""Turn an image into a mode's views, with PIL's own resampling, as DeepSeek-OCR was trained on them.

Everything here is a pure function of the image, thread-safe and on the CPU, without torch.nn.
"""

import struct
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps

from app.errors import PageFailed
from app.ocr.models.model import Mode, PageViews

PAD_GRAY = (127, 127, 127)  # int(0.5 * 255), the mean the views are normalised with
MIN_TILES = 2
BICUBIC = Image.Resampling.BICUBIC
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocess(image: Image.Image, mode: Mode) -> PageViews:
    """Convert any PIL image to its views in ``mode``. Raise ``PageFailed`` for an image without pixels."""
    if image.width == 0 or image.height == 0:
        raise PageFailed(f"the page image has no pixels ({image.width} x {image.height})")
    image = to_rgb(upright(image))
    view = to_tensor(square_view(image, mode.view_px, pad=mode.pad))
    if mode.tile_px is None or max(image.size) <= mode.tile_px:
        return PageViews(mode, view)
    columns, rows = tile_grid(image.width, image.height, mode.tile_px, mode.max_tiles)
    return PageViews(mode, view, cut_tiles(image, columns, rows, mode.tile_px), columns, rows)


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation.

    An unreadable EXIF block counts as none: a bad upload must not lose its pixels.
    """
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return image
    transpose = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL mode to RGB: composite transparency on white, scale 16-bit and float samples to 8 bits.

    Raise ``PageFailed`` for a mode that PIL itself cannot convert.
    """
    try:
        return _to_rgb(image)
    except ValueError as error:
        raise PageFailed(f"the page image's mode {image.mode} cannot be converted to RGB") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion PIL has for premultiplied gray
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert I, I;16* and F images to L.

    Values above 255 are read as 16-bit, floats up to 1 as a share of white.
    """
    samples = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=65535.0, neginf=0.0)
    highest = samples.max()
    if image.mode.startswith("I;16") or highest > 255:
        samples = samples / 257  # 65535 = 257 * 255
    elif image.mode == "F" and highest <= 1:
        samples = samples * 255
    return Image.fromarray(samples.round().clip(0, 255).astype(np.uint8))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    if converted is None:
        raise PageFailed("the page image could not be converted from LAB")
    return converted


def square_view(image: Image.Image, view_px: int, *, pad: bool) -> Image.Image:
    """Resize an RGB image to (view_px, view_px): padded with gray at its aspect ratio, or stretched."""
    if not pad:
        return image.resize((view_px, view_px), BICUBIC)
    short, long = min(image.size), max(image.size)
    if round(short / long * view_px) > 0:
        return ImageOps.pad(image, (view_px, view_px), method=BICUBIC, color=PAD_GRAY)
    # A hair-thin image would shrink to nothing: ImageOps.pad fails or drops it. One pixel of it stays.
    size = (1, view_px) if image.width < image.height else (view_px, 1)
    canvas = Image.new("RGB", (view_px, view_px), PAD_GRAY)
    canvas.paste(image.resize(size, BICUBIC), ((view_px - size[0]) // 2, (view_px - size[1]) // 2))
    return canvas


@lru_cache(maxsize=32)
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """List all (columns, rows) of 2 to ``max_tiles`` tiles, fewer tiles first."""
    sides = range(1, max_tiles + 1)
    grids = [
        (columns, rows) for columns in sides for rows in sides if MIN_TILES <= columns * rows <= max_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def tile_grid(width: int, height: int, tile_px: int, max_tiles: int) -> tuple[int, int]:
    """Return (columns, rows) of the grid with the nearest aspect ratio.

    On a tie take the larger grid if the image has over half its area.
    """
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(max_tiles):
        difference = abs(width / height - columns / rows)
        filled = width * height > 0.5 * tile_px * tile_px * columns * rows
        if difference < best_difference or (difference == best_difference and filled):
            best, best_difference = (columns, rows), difference
    return best


def view_scale(width: int, height: int, mode: Mode) -> float:
    """Return how many pixels of a mode's views show one pixel of an image, in its tiles if it has some."""
    if mode.tile_px is None or max(width, height) <= mode.tile_px:
        return mode.view_px / max(width, height)
    columns, rows = tile_grid(width, height, mode.tile_px, mode.max_tiles)
    return min(columns * mode.tile_px / width, rows * mode.tile_px / height)


def cut_tiles(image: Image.Image, columns: int, rows: int, tile_px: int) -> torch.Tensor:
    """Stretch an RGB image over the grid and cut it into tiles, row-major.

    Returns (columns * rows, 3, tile_px, tile_px) float32.
    """
    stretched = to_tensor(image.resize((columns * tile_px, rows * tile_px), BICUBIC))
    grid = stretched.reshape(3, rows, tile_px, columns, tile_px)
    return grid.permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, tile_px, tile_px)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Convert an RGB image to (3, H, W) float32 in [-1, 1].

    The order of operations is the original's, so the result is bit-identical.
    """
    pixels = torch.from_numpy(np.array(image))  # (H, W, 3) uint8
    return pixels.permute(2, 0, 1).contiguous().float().div_(255).sub_(0.5).div_(0.5)
