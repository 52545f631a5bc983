"""What the tests of regions draw their pages with."""

from pathlib import Path

import pytest

from app.ocr.regions.lines import Line
from training.layout import Family

FONTS = Path("/usr/share/fonts/truetype/dejavu")
FAMILY = Family(FONTS / "DejaVuSans.ttf", FONTS / "DejaVuSans-Bold.ttf")
A4 = (1240, 1754)
needs_font = pytest.mark.skipif(
    not FAMILY.bold.is_file(), reason="needs the Debian package fonts-dejavu-core"
)


def row(top: int, *spans: tuple[int, int]) -> list[Line]:
    """Cells beside each other, from ``(left, right)`` of each."""
    return [Line(left, top, right, top + 20) for left, right in spans]
