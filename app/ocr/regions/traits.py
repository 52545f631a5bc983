"""What tells headings from text: how a line is printed, where it stands and what it says.

Each beside the page's body, and beside the same of the lines above and below.
"""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from math import exp, log, log1p
from statistics import median

import numpy as np
import numpy.typing as npt

from app.ocr.regions.letters import Alike, Named, beside_the_same, named_letters
from app.ocr.regions.lines import Line, Part, Table, lines_of
from app.ocr.regions.prints import PageLines, Print, is_centred, rebased, weighted_median

NUMBERING = re.compile(r"(?:\d{1,2}(?:\.\d{1,2})*\.?|[A-Z]\.|[IVX]+\.)\s+\S")
NARROW, WIDE = frozenset("iljtfrI.,:;'|!()[]`’‘-"), frozenset("mwMW@%—")  # noqa: RUF001 - typographic quotes
TALL_LOWER = frozenset("bdfhklßtij")
STIFFNESS = 6.0
"""Letters that a letter's usual width counts for, where the page says another."""
BODY_SPREAD = 0.1
"""Of size, by which a line of the body is off the page's median, at most; twice that of strokes."""
MIN_ADVANCE_EM = 0.8
"""Width of a text whose letters say how wide they are set."""
FINE = 0.06
"""Logarithm of a ratio of sizes that tells alone, where letters say it."""
NO_NEIGHBOUR = 18
MIN_LETTERS = 3
"""Of a line that is among the page's largest: a chapter's number is no heading."""
SURE_LETTERS = 4
"""That say how large a line is."""
SAME_SIZE, SAME_STROKE = 0.05, 0.15
"""By how much sizes and strokes of lines that are printed alike differ, as logarithms."""
INDENT_EM, SAME_INDENT_EM, NEXT_PITCH, CENTRED = (0.7, 3.5), 0.4, 1.3, 0.5
"""How far the first line of a paragraph is indented, and how far apart two such begin; from it to the next
one, in the usual pitch; and share of the indent by which that ends farther right, where both are centred.
"""
Floats = npt.NDArray[np.float32]


def named_of(page: PageLines, texts: dict[Line, str]) -> Named:
    """Letters of all lines, and what they were read as."""
    return named_letters({line: page.prints[line].letters for line in page.lines}, texts)


def size_of(own: Print, alike: Alike) -> float:
    """In the page's body: by its letters, or by its capitals where those say little."""
    return exp(alike.height) if alike.count >= SURE_LETTERS else own.size


def beside_body(page: PageLines, named: Named, body: Sequence[Line]) -> tuple[PageLines, dict[Line, Alike]]:
    """All lines measured in those of the ``body`` alone, and beside its letters: on a page of little else,
    headings are what is usual. ``named``: as ``named_of`` says.
    """
    return rebased(page, body), beside_the_same(named, frozenset(body))


def traits_of(page: PageLines, texts: dict[Line, str], alike: dict[Line, Alike]) -> tuple[list[Line], Floats]:
    """Lines outside tables (N), and what decides over them (N, T)."""
    traits = _Traits(page, texts, alike)
    lines = [part for part in page.parts if isinstance(part, Line)]
    around = zip([None, *page.parts], page.parts, [*page.parts[1:], None], strict=False)
    rows = [traits.row(above, line, below) for above, line, below in around if isinstance(line, Line)]
    return lines, np.array(rows, np.float32)


class _Traits:
    def __init__(self, page: PageLines, texts: dict[Line, str], alike: dict[Line, Alike]) -> None:
        self._page, self._texts = page, texts
        lines = page.lines
        self._count = len(lines)
        self._sizes = {line: size_of(page.prints[line], alike[line]) for line in lines}
        worded = [line for line in lines if page.prints[line].count >= MIN_LETTERS]
        self._largest = max((self._sizes[line] for line in worded), default=0.0)
        self._worded = np.log(
            np.array([(self._sizes[line], page.prints[line].stroke) for line in worded]).reshape(-1, 2)
        )
        self._left = min((line.left for line in lines), default=0)
        self._right = max((line.right for line in lines), default=1)
        advances = _advances(page, texts)
        self._print = {line: self._printed(line, advances.get(line)) for line in lines}
        usual = _usual_ratio(alike.values())
        self._alike = {line: _shown(alike[line], usual) for line in lines}
        self._said = {line: _said(texts[line]) for line in lines}
        self._shifts = _shifts(page)
        self._indents = _indents(page)

    def row(self, above: Part | None, line: Line, below: Part | None) -> list[float]:
        """Lengths in heights of a line, sizes as logarithms, each scaled to be about one at most."""
        return [
            *self._print[line],
            *self._alike[line],
            *self._said[line],
            *self._among(line),
            *self._place(above, line),
            *self._indented(line),
            *self._beside(line, above, is_above=True),
            *self._beside(line, below, is_above=False),
        ]

    def _printed(self, line: Line, advance: float | None) -> list[float]:
        own = self._page.prints[line]
        return [
            _log(own.size),
            0.0 if own.lower is None else _log(own.lower),
            float(own.lower is not None),
            _log(own.stroke),
            0.0 if advance is None else _log(advance),
            _log(own.breadth),
            min(own.count, 30) / 30,
        ]

    def _among(self, line: Line) -> list[float]:
        """How much larger the page's largest lines are, and how many are printed as this one is."""
        size, stroke = self._sizes[line], self._page.prints[line].stroke
        near = np.abs(self._worded - (log(size), log(stroke))) < (SAME_SIZE, SAME_STROKE)  # (L, 2)
        alike = int(near.all(axis=1).sum())
        largest = self._largest or size
        return [_log(largest / size), log1p(alike) / 4, min(alike, 3) / 3]

    def _place(self, above: Part | None, line: Line) -> list[float]:
        em, left, right = self._page.em, self._left, self._right
        lead = self._page.leads.get(line)
        is_first_of_column = not isinstance(above, Line) or self._page.step(above, line) <= 0
        return [
            float(above is None),
            float(is_first_of_column),
            min(line.width / em, 40) / 20,
            line.width / (right - left),
            min((line.left - left) / em, 20) / 10,
            min((right - line.right) / em, 20) / 10,
            float(is_centred(line, left, right, em)),
            log(self._count) / 4,
            _log(self._page.pitch / em),
            float(lead is not None and lead.is_bullet),
            float(lead is not None and not lead.is_bullet and not lead.is_narrow),
        ]

    def _indented(self, line: Line) -> list[float]:
        """Whether first lines of paragraphs are, and whether this one stands where they do."""
        em, shift, count = self._page.em, self._shifts[line], len(self._indents)
        is_like = count > 0 and abs(shift - median(self._indents)) < SAME_INDENT_EM * em
        return [log1p(count) / 3, _clipped(shift / em, 0, 4) / 2, float(is_like)]

    def _beside(self, line: Line, other: Part | None, *, is_above: bool) -> list[float]:
        """How a neighbour stands to the line; zeros where there is none in its column."""
        upper, lower = (other, line) if is_above else (line, other)
        if not isinstance(other, Line) or not self._page.is_below(upper, lower):
            return [float(isinstance(other, Table)), *[0.0] * NO_NEIGHBOUR]
        em = self._page.em
        step = abs(self._page.step(line, other))
        text = self._texts[other]
        return [
            0.0,
            1.0,
            _clipped((step - self._page.pitch) / em, -1, 2.5),
            _clipped((other.right - line.right) / em, -15, 15) / 5,
            _clipped((other.left - line.left) / em, -3, 3),
            float(abs(other.left + other.right - line.left - line.right) < em),
            *self._print[other][:6],
            *self._alike[other][:3],
            float(text.endswith((".", "!", "?", ":"))),
            float(text[:1].islower()),
            log1p(len(text)) / 4,
            _upper_share(text),
        ]


def _shifts(page: PageLines) -> dict[Line, int]:
    """How far right of its column every line begins, pixels; what stands higher than the part before it
    begins a column.
    """
    columns: list[list[Line]] = []
    top = None
    for part in page.parts:
        lines = lines_of(part)
        if top is None or min(line.top for line in lines) < top:
            columns.append([])
        top = min(line.top for line in lines)
        columns[-1] += lines
    return {line: line.left - min(one.left for one in column) for column in columns for line in column}


def _indents(page: PageLines) -> list[int]:
    """By how much first lines of paragraphs are indented, pixels; where they are."""
    shifts = [
        above.left - below.left
        for above, below in pairwise(page.parts)
        if isinstance(above, Line)
        and isinstance(below, Line)
        and page.is_below(above, below)
        and page.step(above, below) <= NEXT_PITCH * page.pitch
        and above not in page.leads
        and below not in page.leads
        and below.right - above.right < CENTRED * (above.left - below.left)  # no centred lines
    ]
    least, most = (share * page.em for share in INDENT_EM)
    return [shift for shift in shifts if least < shift < most]


def _usual_ratio(lines: Collection[Alike]) -> float:
    """Of most letters of the page."""
    told = [one.unlike for one in lines if one.unlike.count]
    return weighted_median([one.ratio for one in told], [one.count for one in told]) if told else 0.0


def _shown(alike: Alike, usual: float) -> list[float]:
    unlike = alike.unlike
    return [
        _clipped(alike.height, -0.5, 0.7),
        _clipped(alike.height, -FINE, FINE) / FINE,
        _clipped(unlike.ratio - usual, -0.3, 1.2) if unlike.count else 0.0,
        _clipped(alike.width, -0.5, 0.7),
        min(alike.spread, 0.3),
        min(alike.count, 10) / 10,
        5 * min(unlike.distance, 0.4),
        min(unlike.count, 10) / 10,
    ]


def _advances(page: PageLines, texts: dict[Line, str]) -> dict[Line, float]:
    """How wide each line's letters are, in those of the page's body; lines of a letter or two are left out.

    The width of every letter in the body is estimated from all its lines; one that they say little of is as
    wide as in a sans serif of no special width.
    """
    spelled = {line: "".join(texts[line].split()) for line in page.lines}
    known = [line for line in page.lines if sum(map(_width_em, spelled[line])) >= MIN_ADVANCE_EM]
    if not known:
        return {}
    letters = sorted({letter for line in known for letter in spelled[line]})
    number = {letter: at for at, letter in enumerate(letters)}
    counts = np.zeros((len(known), len(letters)))  # (L, C)
    for row, line in zip(counts, known, strict=True):
        np.add.at(row, [number[letter] for letter in spelled[line]], 1)
    widths = np.array([_letters_px(page.prints[line].gaps, line, texts[line]) for line in known])
    usual = np.array(list(map(_width_em, letters)))
    em = weighted_median((widths / (counts @ usual)).tolist(), widths.tolist())
    is_body = np.array([_is_like_body(page.prints[line]) for line in known])
    body = counts[is_body]
    lacking = widths[is_body] - em * (body @ usual)
    change = np.linalg.solve(body.T @ body + STIFFNESS * np.eye(len(letters)), body.T @ lacking)
    expected = counts @ np.maximum(em * usual + change, 0.2 * em * usual)
    return dict(zip(known, (widths / expected).tolist(), strict=True))


def _letters_px(gaps: Sequence[int], line: Line, text: str) -> float:
    """Width of a line without its spaces, which are the widest gaps; pixels."""
    spaces = sorted(gaps, reverse=True)[: len(text.split()) - 1]
    return max(1.0, float(line.width - sum(spaces)))


def _is_like_body(one: Print) -> bool:
    return abs(one.size - 1) < BODY_SPREAD and abs(one.stroke - 1) < 2 * BODY_SPREAD


def _width_em(character: str) -> float:
    if character in NARROW:
        return 0.28
    if character in WIDE:
        return 0.84
    return 0.68 if character.isupper() else 0.54


def _said(text: str) -> list[float]:
    words = text.split()
    initials = [word[0] for word in words if word[0].isalpha()]
    tall = sum(one.isupper() or one.isdigit() or one in TALL_LOWER for one in text)
    return [
        _upper_share(text),
        tall / max(1, len(text)),
        log1p(len(text)) / 4,
        min(len(words), 12) / 12,
        sum(map(str.isupper, initials)) / max(1, len(initials)),
        float(text[:1].islower()),
        float(NUMBERING.match(text) is not None),
        float(text.endswith(".")),  # headings may well ask
        float(text.endswith((",", ";", ":", "-"))),
        sum(one in ',;:()[]"“”' for one in text) / max(1, len(words)),
        sum(map(str.isdigit, text)) / max(1, len(text)),
    ]


def _upper_share(text: str) -> float:
    letters = [one for one in text if one.isalpha()]
    return sum(map(str.isupper, letters)) / max(1, len(letters))


def _log(ratio: float) -> float:
    return _clipped(log(max(ratio, 0.05)), -0.7, 0.9)


def _clipped(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
