"""Items of one list: bullets that are alike, numbers under each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

BULLET = re.compile(r"[•·\-–*°»▪●]\s+(?=\S)")  # noqa: RUF001 - the look-alikes are the point
SAME_EM = 0.13  # line heights by which bullets of one list differ
INNER_EM = 0.9  # line heights to the side, where bullets of a list inside another stand
COLUMN_EM = 8.0  # line heights to the side, where items of the next column stand
SAME_HANG_EM = 0.33  # line heights by which white after bullets differs: letters have white of their own


@dataclass(frozen=True, slots=True)
class Bullet:
    """A sign or a number: where it and the text after it begin, and how large it is, in heights of a line."""

    left: float
    width: float
    height: float
    text_left: float
    is_number: bool = False

    def is_of_list(self, others: Sequence["Bullet"], *, is_apart: bool) -> bool:
        """Items of one list have the same bullet under each other, as far from their texts; those in the next
        column, or of a list inside another, are far to the side. ``others``: of the list's items so far;
        ``is_apart``: there is white after the last.
        """
        last = others[-1]
        if not self._hangs_like(last):
            return False
        if INNER_EM <= abs(self.left - last.left) < COLUMN_EM:
            steps_out = self.left < last.left  # to where an item stood before
            return not is_apart and (not steps_out or any(map(self._is_under, others)))
        return self._is_like(last) and not SAME_EM < abs(self.left - last.left) < INNER_EM

    def counts_on(self, last: "Bullet", *, is_next: bool) -> bool:
        """Numbers of one list, or their texts, begin or end under each other, or are in the next column; both
        do where it is not the next number.
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
        """Bullets of other widths may be flush right."""
        hang, other_hang = self.text_left - self.left, other.text_left - other.left
        shift = hang - other_hang
        return min(abs(shift), abs(shift - (self.width - other.width))) <= SAME_HANG_EM
