"""Which headings of a page are titles: by their chances, and by what headings of one level have in common."""

from math import log

import numpy as np
import pytest

from app.ocr.regions.levels import Heading, are_titles


def heading(size: float, title: float, *, is_across: bool = False) -> Heading:
    """``size``: in the body's; ``title``: chance of being one."""
    return Heading(log(size), np.log(np.array([title, 1 - title], np.float32)), is_across)


def test_a_page_without_headings_has_no_title() -> None:
    assert are_titles([]) == []


@pytest.mark.parametrize("title", [0.1, 0.9])
def test_a_heading_alone_is_what_it_is_likely(title: float) -> None:
    assert are_titles([heading(1.4, title)]) == [title > 0.5]


def test_of_two_sizes_the_larger_are_titles() -> None:
    """Each by itself is likely one."""
    assert are_titles([heading(2.0, 0.99), heading(1.4, 0.6)]) == [True, False]


def test_headings_of_one_size_are_of_one_level() -> None:
    page = [heading(1.2, 0.8), heading(1.2, 0.02), heading(1.21, 0.02)]
    assert are_titles(page) == [False] * 3


def test_a_first_heading_larger_than_the_others_is_a_title() -> None:
    others = [heading(1.0, 0.001), heading(1.0, 0.001)]
    assert are_titles([heading(1.2, 0.2), *others]) == [True, False, False]
    assert not any(are_titles([*others, heading(1.2, 0.2)])), "titles stand above what they are for"
    assert not any(are_titles([heading(1.05, 0.2), *others]))
    uneven = [heading(1.0, 0.001), heading(1.1, 0.001)]
    assert not any(are_titles([heading(1.3, 0.2), *uneven]))
    assert are_titles([heading(2.0, 0.2), *uneven]) == [True, False, False]


def test_a_first_heading_that_alone_is_across_is_a_title() -> None:
    others = [heading(1.2, 0.001), heading(1.2, 0.001)]
    assert are_titles([heading(1.2, 0.2, is_across=True), *others]) == [True, False, False]
    assert not any(are_titles([heading(1.2, 0.2), *others]))
    assert are_titles([heading(1.2, 0.03, is_across=True), *others]) == [True, False, False]
    assert not any(are_titles([heading(1.4, 0.03), *others]))


def test_what_is_certain_is_not_overruled() -> None:
    page = [heading(1.3, 0.001), heading(1.0, 0.001)]
    assert are_titles(page) == [False, False]
    assert are_titles([heading(1.4, 0.9999), heading(1.4, 0.9999)]) == [True, True]
