"""Draw a line of print as views: its words stand in rows, large enough to be read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.pocket.layout.ink import Ink
from app.pocket.layout.lines import Line, cut_at, gaps_of
from app.pocket.layout.masks import Gray

VIEW_PX = 256
ROW_PX = 64
"""Height of a row: one row of patch tokens. A letter split between two rows of tokens could not be read."""
EM_PX = 44.0
"""Size of the letters in a view, in pixels."""
MARGIN_PX = 8
ROWS = VIEW_PX // ROW_PX
ROOM_PX = VIEW_PX - 2 * MARGIN_PX
LINE_OF_EM = 0.9
"""Height of a line's print, from ascender to descender, in ems."""
WORD_GAP_EM = 0.16
SPACE_SHARE = 0.6
"""Least width of a space, as a share of the line's wide gaps; narrower ones are between widely set
letters.
"""
FEW_WHITES = 4  # fewer gaps in a line tell nothing about its spaces
UNLIKE = 1.5  # least ratio of spaces to narrower gaps
BETWEEN = 0.55  # of the step from narrow gaps to spaces; a wider gap is a space
LEAST_SPACE_EM = 0.18
MOST_SPACE_EM = 0.7
LETTER_EM = 0.9  # usual width of stretches in a line with white around every letter, at most
SPACED = 1.7  # times the white between such letters, the white between words
LEAST_DOTS = 5  # least dots of a leader
DOT_EM = 0.2  # greatest width and height of its dots
DOT_STEP_EM = 0.9  # greatest distance from dot to dot
SAME_STEP_PX = 2  # by which these distances differ at most
HIGHEST_DOT = 0.4  # of the line's height, least part that is above a dot
MOST_SQUEEZED = 1.25  # row widths; wider words are cut, narrower ones are squeezed


@dataclass(frozen=True, slots=True)
class Word:
    """A word: ink from ``left`` to before ``right``.

    ``is_cut``: no space was seen before it. ``dots``: number of leader dots, as in a table of contents, which
    are counted and not read; 0 for a word.
    """

    left: int
    right: int
    is_cut: bool = False
    dots: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a view: the page's pixels from (left, top) to before (right, bottom).

    They are drawn ``size`` = (width, height) pixels large at ``place`` = (x, y) of the view.
    """

    source: tuple[int, int, int, int]
    place: tuple[int, int]
    size: tuple[int, int]
    is_cut: bool
    """Whether the row begins in the middle of a word, so no space belongs before its first letter."""
    dots: int = 0
    """Number of dots that follow it on the page and are not shown."""

    def in_view(self, x: float, y: float) -> tuple[float, float] | None:
        """Return where a point of the page is shown; ``None`` if it is not."""
        left, top, right, bottom = self.source
        if not (left <= x < right and top <= y < bottom):
            return None
        across, down = (x - left) / (right - left), (y - top) / (bottom - top)
        return self.place[0] + across * self.size[0], self.place[1] + down * self.size[1]


@dataclass(frozen=True, slots=True)
class LineView:
    """An image of some words of a line.

    ``image``: gray. ``cuts``: for each row, whether it continues the word before it. ``dots``: for each row,
    how many dots follow. ``box``: left, top, right, bottom of the words, in pixels of the page's ink.
    ``rows``: what is drawn where.
    """

    image: Image.Image
    cuts: tuple[bool, ...]
    dots: tuple[int, ...] = ()
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    rows: tuple[Row, ...] = ()


def line_rows(ink: Ink, line: Line, typical_px: float) -> list[list[Row]]:
    """Lay out the rows of each view of one line, in order.

    ``typical_px``: height of the page's lines. A line without tall letters is lower, but its letters are
    drawn no larger for that.
    """
    height = max(line.height, typical_px) if line.height < 1.2 * typical_px else line.height
    em = height / LINE_OF_EM
    pad = round(0.1 * em)
    top, bottom = max(0, line.top - pad), min(ink.gray.shape[0], line.bottom + pad)
    scale = min(EM_PX / em, (ROW_PX - 2) / (bottom - top))
    words = _fitted(_with_leaders(find_words(ink, line, em), ink, line, em), ink, line, ROOM_PX / scale)
    filled = _filled(words, ROOM_PX / scale)
    views: list[list[Row]] = []
    for number, row_words in enumerate(filled):
        if number % ROWS == 0:
            views.append([])
        views[-1].append(_row(ink, row_words, (top, bottom), scale, number % ROWS))
    return views


def line_views(ink: Ink, line: Line, typical_px: float) -> list[LineView]:
    """Draw the views of one line, in order."""
    return [
        LineView(
            draw_view(ink.gray, rows),
            tuple(row.is_cut for row in rows),
            tuple(row.dots for row in rows),
            (rows[0].source[0], line.top, rows[-1].source[2], line.bottom),
            tuple(rows),
        )
        for rows in line_rows(ink, line, typical_px)
    ]


def line_text(views: Sequence[LineView], read: Sequence[str]) -> str:
    """Join the texts of a line's views."""
    text = ""
    for view, answer in zip(views, read, strict=True):
        rows = answer.split("\n")
        # an answer with another number of rows does not tell which row is missing
        is_known = len(rows) == len(view.cuts)
        cuts = view.cuts if is_known else (False,) * len(rows)
        dots = view.dots if is_known and view.dots else (*[0] * (len(rows) - 1), sum(view.dots))
        for row, is_cut, count in zip(rows, cuts, dots, strict=True):
            text += row if is_cut or not (text and row) else f" {row}"
            text += f" {'.' * count}" if count else ""
    return text


def draw_view(gray: Gray, rows: Sequence[Row]) -> Image.Image:
    view = Image.new("L", (VIEW_PX, VIEW_PX), 255)
    for row in rows:
        left, top, right, bottom = row.source
        piece = Image.fromarray(np.ascontiguousarray(gray[top:bottom, left:right]))
        view.paste(piece.resize(row.size, Image.Resampling.BICUBIC), row.place)
    return view


def find_words(ink: Ink, line: Line, em: float) -> list[Word]:
    """Find the words of a line: stretches of ink with no more white in them than between letters."""
    whites = gaps_of(line, ink.mask, 1)
    gaps = [(start, end) for start, end in whites if end - start >= WORD_GAP_EM * em]
    stretches = [stretch for stretch in cut_at(line, gaps) if stretch.width]
    least = _parted([end - start for start, end in whites], em)
    if least is None:
        least = _least_space(
            [stretch.width for stretch in stretches], [end - start for start, end in gaps], em
        )
    words = cut_at(line, [(start, end) for start, end in gaps if end - start >= least])
    return [Word(word.left, word.right) for word in words if word.width]


def _with_leaders(words: Sequence[Word], ink: Ink, line: Line, em: float) -> list[Word]:
    """Return the words, with each leader (row of dots) between them as one word."""
    leaders = _leaders(ink, line, em)
    if not leaders:
        return [*words]
    parted = [*leaders]
    for word in words:
        edges = [word.left]
        for leader in leaders:
            if leader.left < word.right and word.left < leader.right:
                edges += [leader.left, leader.right]
        edges.append(word.right)
        parted += [
            Word(left, right) for left, right in zip(edges[::2], edges[1::2], strict=True) if left < right
        ]
    return sorted(parted, key=lambda word: word.left)


def _leaders(ink: Ink, line: Line, em: float) -> list[Word]:
    """Find leaders: at least ``LEAST_DOTS`` evenly spaced dots."""
    pieces = [one for one in cut_at(line, gaps_of(line, ink.mask, 1)) if one.width]
    if sum(one.width <= DOT_EM * em for one in pieces) < LEAST_DOTS:
        return []
    found: list[Word] = []
    run: list[Line] = []
    for piece in [*pieces, None]:
        if piece is not None and _is_dot(ink, piece, em) and _is_in_step(run, piece, em):
            run.append(piece)
            continue
        if len(run) >= LEAST_DOTS:
            found.append(Word(run[0].left, run[-1].right, dots=len(run)))
        run = [piece] if piece is not None and _is_dot(ink, piece, em) else []
    return found


def _is_dot(ink: Ink, piece: Line, em: float) -> bool:
    if piece.width > DOT_EM * em:
        return False
    rows = np.flatnonzero(ink.mask[piece.top : piece.bottom, piece.left : piece.right].any(axis=1))
    return bool(rows[-1] - rows[0] < DOT_EM * em and rows[0] > HIGHEST_DOT * piece.height)


def _is_in_step(run: Sequence[Line], piece: Line, em: float) -> bool:
    if not run:
        return True
    step = piece.left - run[-1].left
    usual = run[-1].left - run[-2].left if len(run) > 1 else step
    return step <= DOT_STEP_EM * em and abs(step - usual) <= max(SAME_STEP_PX, 0.2 * usual)


def _parted(whites: Sequence[int], em: float) -> float | None:
    """Return the narrowest white between two words in pixels, or ``None``.

    ``whites``: widths of a line's whites in pixels. Returns ``None`` unless whites between letters and
    between words are clearly two kinds (Otsu 1979). A word cut at a letter's white is read as two; two words
    that are not separated are still read as two.
    """
    if len(whites) < FEW_WHITES:
        return None
    widths = np.sort(np.minimum(whites, MOST_SPACE_EM * em))
    below = np.arange(1, len(widths))
    sums = np.cumsum(widths)
    lower, upper = sums[:-1] / below, (sums[-1] - sums[:-1]) / below[::-1]
    best = int(np.argmax(below * below[::-1] * (upper - lower) ** 2))
    if upper[best] < UNLIKE * lower[best]:
        return None
    return max(LEAST_SPACE_EM * em, float(lower[best] + BETWEEN * (upper[best] - lower[best])))


def _least_space(stretches: Sequence[int], gaps: Sequence[int], em: float) -> float:
    """Return the width of the narrowest space between words, in pixels.

    For a line whose whites are all of one kind: it has one word or two, or its letters are set far apart.
    """
    if not gaps:
        return 0.0
    if np.median(stretches) < LETTER_EM * em:
        return SPACED * float(np.median(gaps))
    # a column's white within the line says nothing about its spaces
    return SPACE_SHARE * min(float(np.percentile(gaps, 80)), 0.8 * em)


def _fitted(words: Sequence[Word], ink: Ink, line: Line, room: float) -> list[Word]:
    """Cut words that are too wide for a row in two until they fit, where the cut crosses the least ink."""
    fitted: list[Word] = []
    for word in words:
        width = word.right - word.left
        if word.dots or width <= MOST_SQUEEZED * room:
            fitted.append(word)
            continue
        parts = -(-width // int(room))
        near, reach = word.left + width // parts, max(1, round(0.25 * width / parts))
        ink_of = ink.mask[line.top : line.bottom, near - reach : near + reach].sum(axis=0)
        cut = near - reach + int(np.argmin(ink_of))
        fitted.append(Word(word.left, cut, word.is_cut))
        fitted += _fitted([Word(cut, word.right, is_cut=True)], ink, line, room)
    return fitted


def _filled(words: Sequence[Word], room: float) -> list[list[Word]]:
    """Put as many words in a row as fit. Dots end a row and never begin one."""
    rows: list[list[Word]] = []
    for word in words:
        goes_on = bool(rows) and not rows[-1][-1].dots
        if goes_on and (word.dots or word.right - rows[-1][0].left <= room):
            rows[-1].append(word)
        elif not word.dots:
            rows.append([word])
    return rows


def _row(ink: Ink, words: Sequence[Word], span: tuple[int, int], scale: float, number: int) -> Row:
    """Place words in a row of the view. A word wider than the view is made narrower."""
    top, bottom = span
    dots = words[-1].dots
    words = words[:-1] if dots else words
    left, right = max(0, words[0].left - 1), min(ink.gray.shape[1], words[-1].right + 1)
    width = min(ROOM_PX, max(1, round((right - left) * scale)))
    height = max(1, round((bottom - top) * scale))
    place = MARGIN_PX, number * ROW_PX + (ROW_PX - height) // 2
    return Row((left, top, right, bottom), place, (width, height), words[0].is_cut, dots)
