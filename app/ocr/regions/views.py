"""A line of print -> views in which its words stand in rows, large enough to be read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.ocr.regions.ink import Ink
from app.ocr.regions.lines import Line

VIEW_PX = 256
EM_PX = 34.0
"""Size of the letters in a view."""
ROW_PX = 47
MARGIN_PX = 9
ROWS = (VIEW_PX - 2 * MARGIN_PX) // ROW_PX
LINE_OF_EM = 0.9
"""Height of a line's print, from ascender to descender, in ems."""
WORD_GAP_EM = 0.16


@dataclass(frozen=True, slots=True)
class Word:
    left: int
    right: int


def line_views(ink: Ink, line: Line, typical_px: float) -> list[Image.Image]:
    """Views of one line, gray, in order. ``typical_px``: height of the page's lines; a line without tall
    letters is lower, and its letters are no larger for it.
    """
    height = max(line.height, typical_px) if line.height < 1.2 * typical_px else line.height
    em = height / LINE_OF_EM
    pad = round(0.1 * em)
    top, bottom = max(0, line.top - pad), min(ink.gray.shape[0], line.bottom + pad)
    scale = min(EM_PX / em, (ROW_PX - 2) / (bottom - top))
    rows = _rows(find_words(ink, line, em), scale)
    views: list[Image.Image] = []
    for first in range(0, len(rows), ROWS):
        view = Image.new("L", (VIEW_PX, VIEW_PX), 255)
        for number, words in enumerate(rows[first : first + ROWS]):
            _paste(view, ink, words, (top, bottom), scale, number)
        views.append(view)
    return views


def find_words(ink: Ink, line: Line, em: float) -> list[Word]:
    """Stretches of ink along the line with no more than a letter's space in them."""
    columns = ink.mask[line.top : line.bottom, line.left : line.right].any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], columns, [False])).astype(np.int8)))
    words: list[Word] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if words and start + line.left - words[-1].right < WORD_GAP_EM * em:
            words[-1] = Word(words[-1].left, end + line.left)
        else:
            words.append(Word(start + line.left, end + line.left))
    return words


def _rows(words: Sequence[Word], scale: float) -> list[list[Word]]:
    """As many words a row as fit; white between two of them counts as it stands, but at most a wide space."""
    room = (VIEW_PX - 2 * MARGIN_PX) / scale
    rows: list[list[Word]] = []
    for word in words:
        if rows and word.right - rows[-1][0].left <= room:
            rows[-1].append(word)
        else:
            rows.append([word])
    return rows


def _paste(
    view: Image.Image, ink: Ink, words: Sequence[Word], span: tuple[int, int], scale: float, number: int
) -> None:
    """One row of words; a word wider than the view is made narrower."""
    top, bottom = span
    left, right = max(0, words[0].left - 1), min(ink.gray.shape[1], words[-1].right + 1)
    piece = Image.fromarray(np.ascontiguousarray(ink.gray[top:bottom, left:right]))
    width = min(VIEW_PX - 2 * MARGIN_PX, max(1, round((right - left) * scale)))
    height = max(1, round((bottom - top) * scale))
    row = piece.resize((width, height), Image.Resampling.BICUBIC)
    view.paste(row, (MARGIN_PX, MARGIN_PX + number * ROW_PX + (ROW_PX - height) // 2))
