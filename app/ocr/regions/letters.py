"""Letters of a line measured finer than in pixels, and held against the same letters elsewhere on the page.

A heading may be printed a twentieth larger than the text, in another font: less than the pixel by which boxes
around letters err, and less than "BUT" differs from "gap" in the same font. The same letter tells.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log
from statistics import median

import numpy as np
import numpy.typing as npt

from app.ocr.regions.lines import Line
from app.ocr.regions.masks import Gray
from app.ocr.regions.shapes import Shape, Unlike, shapes_of, unlike_of

Floats = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]

EDGE = (0.15, 0.85)
"""Of a letter's darkest: what is lighter is paper, what is darker is all ink; between them lies its edge."""
LEAST = 2.0
"""Pixels, that a letter measures at least."""
TOUCHING = (0.5, 0.65, 0.8)
"""Of a line's darkest, below which a column may part two letters."""
LOW, ASCENDERS, DESCENDERS = frozenset("acemnorsuvwxz"), frozenset("bdfhklß"), frozenset("gpqy")


@dataclass(frozen=True, slots=True)
class Letter:
    """What stands between two columns of white: from column ``left`` to before ``right`` of the page; height
    and width in pixels and parts of them; ``box`` in those of the line, and ``peak``, as ``shapes_of`` wants.
    """

    left: int
    right: int
    height: float
    width: float
    box: tuple[float, float, float, float]
    peak: float


Letters = tuple[Letter, ...]


@dataclass(frozen=True, slots=True)
class LineLetters:
    """``cuts``: letters between all white of a line; then between columns that are ever less white, for
    letters that touch. ``gray``: (H, W), the line, paper at 255.
    """

    cuts: tuple[Letters, ...]
    gray: Gray = field(compare=False, repr=False)


NO_LETTERS = LineLetters(((),), np.zeros((0, 0), np.uint8))


@dataclass(frozen=True, slots=True)
class NamedLetter:
    """What it was read as."""

    name: str
    letter: Letter
    shape: Shape = field(compare=False, repr=False)


Named = dict[Line, list[NamedLetter]]
"""Of every line, the letters that are known."""


@dataclass(frozen=True, slots=True)
class Alike:
    """A line beside the same letters of the page's other lines, as logarithms of ratios, medians over its
    letters; ``spread``: how far the widths' are apart, as those of another font are; ``count``: of letters;
    ``unlike``: how their shapes differ.
    """

    height: float = 0.0
    width: float = 0.0
    spread: float = 0.0
    count: int = 0
    unlike: Unlike = field(default_factory=Unlike)


def letters_of(gray: Gray, line: Line, gaps: Sequence[tuple[int, int]]) -> LineLetters:
    """``gray``: (H, W) of the page, paper at 255. ``gaps``: (start, end) of all white in the line, pixels."""
    own = gray[line.top : line.bottom, line.left : line.right]
    darkness = _darkness(own)
    columns = darkness.max(axis=0)
    peak = float(columns.max(initial=1.0))
    starts = np.array([line.left, *(end for _, end in gaps)]) - line.left
    ends = np.array([*(start for start, _ in gaps), line.right]) - line.left
    cuts = [(starts[ends > starts], ends[ends > starts])]
    for level in TOUCHING:
        edges = np.diff(np.concatenate(([False], columns > level * peak, [False])).astype(np.int8))
        cuts.append((np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)))
    return LineLetters(tuple(_measured(darkness, columns, *cut, line.left) for cut in cuts), own)


def _darkness(gray: Gray) -> Floats:
    darkness: Floats = 255 - gray.astype(np.float64)
    return darkness


def _measured(darkness: Floats, columns: Floats, starts: Columns, ends: Columns, left: int) -> Letters:
    """``darkness``: (H, W); ``columns``: (W,), its maxima; ``starts``, ``ends``: (N,) of letters."""
    if not len(starts):
        return ()
    bounds = np.stack([starts, np.minimum(ends, len(columns) - 1)], axis=1).reshape(-1)
    rows = np.maximum.reduceat(darkness, bounds, axis=1)[:, ::2]  # (H, N)
    peaks = np.maximum(rows.max(axis=0), 1.0)
    inked_rows = _inked(rows / peaks)  # (H, N)
    heights = inked_rows.sum(axis=0)
    inked_columns = _inked(columns / columns.max())
    inked = np.concatenate(([0.0], np.cumsum(inked_columns)))
    widths = inked[ends] - inked[starts]
    boxes = _boxes(inked_rows, inked_columns, starts, ends)
    return tuple(
        Letter(left + start, left + end, height, width, (box[0], box[1], box[2], box[3]), peak)
        for start, end, height, width, box, peak in zip(
            starts.tolist(), ends.tolist(), heights.tolist(), widths.tolist(), boxes.tolist(), peaks.tolist(),
            strict=True,
        )
    )  # fmt: skip


def _boxes(rows: Floats, columns: Floats, starts: Columns, ends: Columns) -> Floats:
    """``rows``: (H, N) and ``columns``: (W,), shares that are ink -> (N, 4): left, top, right, bottom."""
    is_ink = rows > 0
    first, last = is_ink.argmax(axis=0), len(rows) - 1 - is_ink[::-1].argmax(axis=0)
    each = np.arange(rows.shape[1])
    boxes = (
        starts + 1 - columns[starts], first + 1 - rows[first, each],
        ends - 1 + columns[ends - 1], last + rows[last, each],
    )  # fmt: skip
    return np.stack(boxes, axis=1)


def _inked(darkness: Floats) -> Floats:
    clipped: Floats = np.clip((darkness - EDGE[0]) / (EDGE[1] - EDGE[0]), 0, 1)
    return clipped


def named_letters(letters: Mapping[Line, LineLetters], texts: Mapping[Line, str]) -> Named:
    return {line: _named(found, texts[line]) for line, found in letters.items()}


def beside_the_same(named: Named, among: Collection[Line] | None = None) -> dict[Line, Alike]:
    """Of every line, beside others ``among`` these, or any."""
    kinds: dict[str, _Kind] = defaultdict(_Kind)
    for line, letters in named.items():
        if among is not None and line not in among:
            continue
        for one in letters:
            for kind in (one.name, _class_of(one.name)):
                kinds[kind].add(line, one.letter)
    for kind_of_letter in kinds.values():
        kind_of_letter.heights.sort()
        kind_of_letter.widths.sort()
    shapes = {line: [(one.name, one.shape) for one in letters] for line, letters in named.items()}
    unlike = unlike_of(shapes, among)
    return {line: replace(_alike(line, own, kinds), unlike=unlike[line]) for line, own in named.items()}


@dataclass(slots=True)
class _Kind:
    """Letters of one name or class, on all lines: sorted, and those of every line."""

    heights: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    own: dict[Line, list[Letter]] = field(default_factory=lambda: defaultdict(list))

    def add(self, line: Line, letter: Letter) -> None:
        self.heights.append(letter.height)
        self.widths.append(letter.width)
        self.own[line].append(letter)

    def usual(self, line: Line) -> tuple[float, float] | None:
        """Height and width on the other lines."""
        own = self.own.get(line, ())
        if len(own) == len(self.heights):
            return None
        return (
            median(_without(self.heights, [one.height for one in own])),
            median(_without(self.widths, [one.width for one in own])),
        )


def _without(values: Sequence[float], own: Sequence[float]) -> list[float]:
    """``values`` are sorted, and stay so."""
    others = [*values]
    for one in own:
        del others[bisect_left(others, one)]
    return others


def _alike(line: Line, named: Sequence[NamedLetter], kinds: Mapping[str, _Kind]) -> Alike:
    heights: list[float] = []
    widths: list[float] = []
    usual: dict[str, tuple[float, float] | None] = {}
    for one in named:
        name, letter = one.name, one.letter
        for kind in (name, _class_of(name)):
            if kind not in usual:
                usual[kind] = kinds[kind].usual(line)
        same, like = usual[name], usual[_class_of(name)]
        if same is not None:
            heights.append(log(letter.height / same[0]))
            widths.append(log(letter.width / same[1]))
        elif like is not None:
            heights.append(log(letter.height / like[0]))
    if not heights:
        return Alike()
    width = median(widths) if widths else 0.0
    spread = median(abs(each - width) for each in widths) if len(widths) > 1 else 0.0
    return Alike(median(heights), width, spread, len(heights))


def _class_of(name: str) -> str:
    """Letters as high as each other; no name of a letter is as long. Some are as high as no other is."""
    if name.isupper():
        return "capital"
    if name.isdigit():
        return "digit"
    if name in ASCENDERS:
        return "ascender"
    if name in DESCENDERS:
        return "descender"
    return "low" if name in LOW else f"only {name}"


def _named(found: LineLetters, text: str) -> list[NamedLetter]:
    """Letters and what they are, of those words that have as many as stand between their spaces."""
    words, apart = text.split(), found.cuts[0]
    if not words or not apart:
        return []
    gaps = [right.left - left.right for left, right in pairwise(apart)]
    spaces = sorted(sorted(range(len(gaps)), key=lambda at: -gaps[at])[: len(words) - 1])
    starts = [apart[0].left, *(apart[at + 1].left for at in spaces)]
    ends = [*(apart[at].right for at in spaces), apart[-1].right]
    named: list[tuple[str, Letter]] = []
    for word, start, end in zip(words, starts, ends, strict=False):
        of_word = ([one for one in cut if start <= one.left and one.right <= end] for cut in found.cuts)
        letters = next((cut for cut in of_word if len(cut) == len(word)), [])
        named += [
            (name, letter)
            for name, letter in zip(word, letters, strict=False)
            if name.isalnum() and min(letter.height, letter.width) >= LEAST
        ]
    boxes = np.array([letter.box for _, letter in named]).reshape(-1, 4)
    shapes = shapes_of(_darkness(found.gray), boxes, np.array([letter.peak for _, letter in named]))
    return [NamedLetter(*pair, shape) for pair, shape in zip(named, shapes, strict=True)]
