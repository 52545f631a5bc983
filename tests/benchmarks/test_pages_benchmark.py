"""The benchmark of A4 pages through the service, with a page and a round."""

import io

import pytest
from PIL import Image

from benchmarks.pages import measure
from benchmarks.service import a4_page


def test_a_seed_makes_another_document_of_the_same_page() -> None:
    one, other = a4_page(3, seed=1), a4_page(3, seed=2)
    assert one != other
    first, second, third = (Image.open(io.BytesIO(page)) for page in (one, other, a4_page(4, seed=1)))
    assert first.tobytes() == second.tobytes() != third.tobytes()


def test_rounds_are_told_beside_their_median() -> None:
    figures = measure(num_pages=1, num_rounds=1)
    rounds = figures["rounds"]
    assert isinstance(rounds, dict)
    [alone], [together] = rounds["alone"], rounds["together"]
    assert (figures["seconds_a_page_alone"], figures["seconds_a_page_together"]) == (alone, together)
    assert figures["times_faster_together"] == pytest.approx(alone / together, abs=1e-3)
