"""Tell which items belong to one list: their bullets are alike, or their numbers are under each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

BULLET = re.compile(r"[•·\-–*°»▪●]\s+(?=\S)")  # noqa: RUF001 - the look-alikes are the point
SAME_EM = 0.13  # line heights by which bullets of one list differ at most
INNER_EM = 0.9  # line heights to the side, at least, of bullets of a list inside another
COLUMN_EM = 8.0  # line heights to the side, at least, of items in the next column
SAME_HANG_EM = 0.33  # line heights by which the white after bullets differs: letters have white of their own


@dataclass(frozen=True, slots=True)
class Bullet:
    """A bullet or a number: its left edge, its size and the left edge of its text, in line heights."""

    left: float
    width: float
    height: float
    text_left: float
    is_number: bool = False

    def is_of_list(self, others: Sequence["Bullet"], *, is_apart: bool) -> bool:
        """Tell whether a bullet belongs to a list: the same sign under the others, as far from its text.

        In the next column, or in a list inside another, it is far to the side instead. ``others``: bullets of
        the list so far. ``is_apart``: there is white after the last.
        """
        last = others[-1]
        if not self._hangs_like(last):
            return False
        if INNER_EM <= abs(self.left - last.left) < COLUMN_EM:
            steps_out = self.left < last.left  # to where an item stood before
            return not is_apart and (not steps_out or any(map(self._is_under, others)))
        return self._is_like(last) and not SAME_EM < abs(self.left - last.left) < INNER_EM

    def counts_on(self, last: "Bullet", *, is_next: bool) -> bool:
        """Tell whether a number continues a list by its position.

        The numbers, or their texts, begin or end under each other, or they are in the next column. If it is
        not the next number, both numbers and texts must.
        """
        left, right = self.left - last.left, self.left + self.width - last.left - last.width
        number, text = min(abs(left), abs(right)), abs(self.text_left - last.text_left)
        apart = min(number, text) if is_next else max(number, text)
        return apart <= SAME_HANG_EM or abs(left) >= COLUMN_EM

    def _is_under(self, other: "Bullet") -> bool:
        return self._is_like(other) and abs(self.left - other.left) <= SAME_EM

    def _is_like(self, other: "Bullet") -> bool:
        return max(abs(self.width - other.width), abs(self.height - other.height)) <= SAME_EM

    def _hangs_like(self, other: "Bullet") -> bool:
        """Tell whether the text is as far from the bullet. Bullets of different widths may be flush right."""
        hang, other_hang = self.text_left - self.left, other.text_left - other.left
        shift = hang - other_hang
        return min(abs(shift), abs(shift - (self.width - other.width))) <= SAME_HANG_EM
