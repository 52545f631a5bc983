"""What an error is, and how errors of pages are weighed."""

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy.scores import character_scores
from training.errors_in_text import edit_distance

TEXT = st.text(alphabet="abcé \n", max_size=90)


def levenshtein(left: str, right: str) -> int:
    """By the definition, a row of the table at a time."""
    edits = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, edits[0] = edits[0], i
        for j, b in enumerate(right, 1):
            diagonal, edits[j] = edits[j], min(edits[j] + 1, edits[j - 1] + 1, diagonal + (a != b))
    return edits[-1]


@given(TEXT, TEXT)
def test_the_fast_edit_distance_is_levenshtein(left: str, right: str) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) == levenshtein(left, right)


@given(TEXT, st.lists(st.integers(0, 10**6), max_size=12))
def test_edits_are_never_counted_more_often_than_made(text: str, places: list[int]) -> None:
    edited = list(text)
    for place in places:
        at = place % (len(edited) + 1)
        edited[at : at + place % 2] = ["x"] * (
            place % 3 > 0
        )  # an insertion, a deletion, a change, or nothing
    assert edit_distance("".join(edited), text) <= len(places)


def test_character_scores_weigh_pages_as_they_say() -> None:
    scores = character_scores(["abcd  efgh", "", "X"], ["abcd\nefgx", "yz", "x"])
    assert scores["characters"] == 9 + 2 + 1
    assert scores["character_error_rate"] == round((1 + 2 + 1) / 12, 4)
    assert scores["mean_of_pages"] == round((1 / 9 + 1 + 1) / 3, 4)
    assert scores["median_of_pages"] == 1
    assert scores["words_read"] == 1 / 4
    assert character_scores(["c d a b"], ["a b c d d"])["words_read"] == 4 / 5, "in any order, each once"
    assert character_scores(["TOTAL"], ["total"], ignores_case=True)["character_error_rate"] == 0
