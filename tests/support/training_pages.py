"""What the tests of training draw their pages with."""

from pathlib import Path

import pytest

from training.layout import Family
from training.lines import LineStyle
from training.render import PageRenderer, PageStyle
from training.text import TextSource

FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
FAMILY = Family(FONT, FONT)
SMALL = PageStyle(256, (24, 44), (0.8, 1.0), structured=0.0, degraded=0.3, max_characters=300)
FULL = PageStyle(1280, (20, 30), (0.6, 0.86), structured=1.0, degraded=0.0, max_characters=2000)
LINES = LineStyle((16, 30), structured=0.3, degraded=0.3, worn=0.2)

needs_font = pytest.mark.skipif(not FONT.is_file(), reason="needs the Debian package fonts-dejavu-core")


def word_list(folder: Path) -> Path:
    path = folder / "words"
    path.write_text("page\nletter\nfold\nDustbin\nmargin\nquartz\nsphinx\n", encoding="utf-8")
    return path


def page_renderer(words: Path) -> PageRenderer:
    return PageRenderer(TextSource(words), [FAMILY])
