"""The benchmark of signs counts what was misread, and the checkpoint that ships reads them."""

import asyncio
import random
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from region_pages import FAMILY, FONTS, needs_font

from benchmarks.signs import SIGNS, Sentences, Tally, aligned, drawn_page, read_signs
from training.errors_in_text import edit_distance
from training.layout import Family

SERIF = Family(FONTS / "DejaVuSerif.ttf", FONTS / "DejaVuSerif-Bold.ttf")
TEXT = st.text(alphabet="ab§&1", max_size=40)


@given(TEXT, TEXT)
def test_an_alignment_spells_both_texts_with_the_fewest_edits(left: str, right: str) -> None:
    pairs = aligned(left, right)
    assert "".join(printed for printed, _ in pairs) == left
    assert "".join(read for _, read in pairs) == right
    assert sum(printed != read for printed, read in pairs) == edit_distance(left, right)


def test_what_was_misread_counts_for_the_sign_that_was_printed() -> None:
    tally = Tally()
    tally.add("too R8D, $ 12 and\n§ 7", "R&D, § 12 and § 17")
    figures = tally.figures()
    assert figures["digits"] == {"printed": 4, "misread": 1, "error": 0.25, "read_as": [["1", "", 1]]}
    assert figures["signs"]["&"] == {"printed": 1, "misread": 1, "error": 1.0, "read_as": [["&", "8", 1]]}
    assert figures["signs"]["§"]["error"] == 0.5
    assert figures["letters"]["misread"] == 0
    assert figures["invented"] == 3
    assert set(figures["signs"]) == {"&", "§"}, "of signs that were not printed nothing is said"


def test_the_sentences_have_every_sign_and_more_letters_than_signs() -> None:
    text = "".join(Sentences(random.Random(0)).paragraph(1_500))
    assert all(text.count(sign) > 10 for sign in SIGNS)
    assert sum(text.count(digit) for digit in string.digits) > len(text) / 20
    assert sum(character.isalpha() for character in text) > len(text) / 2


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    pages = [
        drawn_page(random.Random(seed), [family], is_degraded=False)
        for family in (FAMILY, SERIF)
        for seed in range(6)
    ]
    assert pages[0] == drawn_page(random.Random(0), [FAMILY], is_degraded=False)
    read: dict[str, Any] = asyncio.run(read_signs("pocket", {"drawn": pages}))["all"]
    return read


@needs_font
def test_digits_are_read(figures: dict[str, Any]) -> None:
    assert figures["digits"]["printed"] > 500
    assert figures["digits"]["error"] < 0.01
    assert figures["letters"]["error"] < 0.01


@needs_font
@pytest.mark.parametrize("sign", "&§")
def test_lone_signs_are_read(figures: dict[str, Any], sign: str) -> None:
    assert figures["signs"][sign]["printed"] >= 60  # of few, the share would be chance
    assert figures["signs"][sign]["error"] < 0.1
