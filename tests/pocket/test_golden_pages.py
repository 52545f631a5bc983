"""The layout reads every golden page as its expected Markdown says (``golden_pages.py`` writes it anew)."""

import pytest
from golden_pages import FONTS, PAGES, draw, markdown_of, page_names

pytestmark = pytest.mark.skipif(
    not (FONTS / "DejaVuSerif.ttf").is_file(), reason="needs the Debian package fonts-dejavu-core"
)


@pytest.mark.parametrize("name", page_names())
def test_a_page_is_read_as_its_markdown_says(name: str) -> None:
    expected = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert markdown_of(draw(name)).rstrip("\n") + "\n" == expected


def test_there_are_as_many_pages_as_say_something() -> None:
    assert len(page_names()) >= 60
