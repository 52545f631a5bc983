"""Tell which words of a PDF's text layer a view shows: they are what is expected to be read there."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from app.document import PlacedWord
from app.pocket.layout.views import LineView


class ExpectedText:
    """The words of a page's text layer, in the pixels of the page that was cut.

    ``across``, ``down``: what places in pixels of the page's image are multiplied with. Skew is not followed:
    a page of text, not of a scan, has none.
    """

    def __init__(self, words: Sequence[PlacedWord], across: float, down: float) -> None:
        middles = sorted(
            ((word.top + word.bottom) / 2 * down, (word.left + word.right) / 2 * across, word.text)
            for word in words
        )
        self._heights = [middle[0] for middle in middles]
        self._middles = middles

    def of(self, view: LineView) -> str:
        """Return the words of a view, row by row as it shows them; empty where there are none."""
        return "\n".join(filter(None, (self._row(row.source) for row in view.rows)))

    def _row(self, source: tuple[int, int, int, int]) -> str:
        left, top, right, bottom = source
        near = self._middles[bisect_left(self._heights, top) : bisect_right(self._heights, bottom)]
        return " ".join(text for x, text in sorted((x, text) for _, x, text in near if left <= x < right))
