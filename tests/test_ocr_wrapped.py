"""Tables whose cells have several lines: one row of the table each, however its lines stand."""

import pytest
from region_pages import row

from app.ocr.regions.lines import Cell, Line, Table
from app.ocr.regions.order import in_order
from app.ocr.regions.wrapped import wrapped_rows

EM, PITCH = 20, 24
LEFT = (50, 300, 550)


def cells_of(counts: list[tuple[int, ...]], *, white: int, at_top: bool) -> list[list[list[Line]]]:
    """Rows of cells with so many lines: ``white`` between rows beyond that between lines."""
    table: list[list[list[Line]]] = []
    top = 100.0
    for of_row in counts:
        most = max(of_row)
        shifts = [0.0 if at_top else PITCH * (most - count) / 2 for count in of_row]
        table.append(
            [
                [
                    line
                    for at in range(count)
                    for line in row(round(top + shift + PITCH * at), (left, left + 90))
                ]
                for left, count, shift in zip(LEFT, of_row, shifts, strict=False)
            ]
        )
        top += PITCH * most + white
    return table


def ruled_rows(columns: list[list[Line]]) -> list[tuple[Cell, ...]] | None:
    return wrapped_rows(columns, EM, is_ruled=True)


def columns_of(table: list[list[list[Line]]]) -> list[list[Line]]:
    return [[line for cell in column for line in cell] for column in zip(*table, strict=True)]


COUNTS: list[list[tuple[int, ...]]] = [
    [(1, 1, 1), (2, 1, 1), (1, 3, 2), (1, 1, 1)],
    [(2, 1), (1, 1), (1, 2)],
    [(1, 1, 2), (2, 2, 1), (1, 1, 3), (1, 2, 1)],
]


@pytest.mark.parametrize("at_top", [False, True])
@pytest.mark.parametrize("counts", COUNTS)
def test_lines_of_a_cell_are_together(counts: list[tuple[int, ...]], at_top: bool) -> None:
    table = cells_of(counts, white=10, at_top=at_top)
    rows = ruled_rows(columns_of(table))
    assert rows is not None
    assert [[list(cell) for cell in cells] for cells in rows] == table
    if at_top and len(counts[0]) < 3:
        return  # a first line with a wide space looks like that
    (found,) = in_order([line for cells in table for cell in cells for line in cell])
    assert isinstance(found, Table)
    assert [[list(cell) for cell in cells] for cells in found.rows] == table


def test_rows_of_single_lines_are_none_of_it() -> None:
    assert ruled_rows(columns_of(cells_of([(1, 1, 1)] * 5, white=8, at_top=True))) is None


def test_a_cell_beside_several_rows_does_not_make_them_one() -> None:
    """A name that stands for two rows of amounts, or several."""
    assert ruled_rows(columns_of(cells_of([(1, 2, 2), (1, 2, 2)], white=10, at_top=False))) is None


def test_cells_of_the_same_columns_beside_several_rows_do_not_make_them_one() -> None:
    """As numbers of layers beside the names and times of two variants each."""
    columns = columns_of(cells_of([(1, 2, 2), (1, 2, 2)], white=10, at_top=False))
    beside = [Line(line.left + 250, line.top, line.right + 250, line.bottom) for line in columns[0]]
    shifted = [
        [Line(one.left + 500, one.top, one.right + 500, one.bottom) for one in columns[at]] for at in (1, 2)
    ]
    assert ruled_rows([columns[0], beside, *columns[1:], *shifted]) is None


def test_between_rules_it_is_one_row() -> None:
    (row_of_table,) = cells_of([(1, 2, 2)], white=0, at_top=False)
    rows = wrapped_rows(columns_of([row_of_table]), EM, is_ruled=True, is_row=True)
    assert rows is not None
    assert [[list(cell) for cell in cells] for cells in rows] == [row_of_table]


def test_columns_of_text_are_no_cells() -> None:
    """Lines of all columns are as far from each other everywhere, half a line higher on one side."""
    left = [line for top in range(100, 300, PITCH) for line in row(top, (50, 300))]
    right = [line for top in range(100 + PITCH // 2, 300, PITCH) for line in row(top, (350, 600))]
    assert ruled_rows([left, right]) is None


def test_rows_that_lack_a_cell_stay_rows() -> None:
    table = cells_of([(1, 1, 1)] * 4, white=8, at_top=True)
    columns = columns_of(table)
    columns[2] = columns[2][:2]
    assert ruled_rows(columns) is None


def test_items_with_long_texts_are_no_table() -> None:
    lines = [
        line
        for at in range(3)
        for line in [*row(100 + 60 * at, (50, 60), (75, 500)), *row(124 + 60 * at, (75, 420))]
    ]
    assert not any(isinstance(part, Table) for part in in_order(lines))


@pytest.mark.parametrize(("next_word", "is_broken"), [(40, True), (15, False)])
def test_rows_as_near_as_lines_are_told_by_what_had_no_room(next_word: int, is_broken: bool) -> None:
    """A cell goes on in its next line where a word did not fit, not where there was room for it."""
    names = [line for top in (100, 124, 172) for line in row(top, (50, 140))]
    ends = {100: 400, 124: 370, 172: 400}
    texts = [line for top, right in ends.items() for line in row(top, (300, right))]
    below = Line(300, 148, 350, 168, gaps=((300 + next_word, 306 + next_word),))
    rows = ruled_rows([names, sorted([*texts, below], key=lambda line: line.top)])
    assert (rows is not None) == is_broken
    if rows is not None:
        assert [[len(cell) for cell in cells] for cells in rows] == [[1, 1], [1, 2], [1, 1]]


def test_rows_whose_cells_all_have_two_lines_are_told_by_other_rows() -> None:
    table = cells_of([(1, 1, 1), (2, 2, 2), (1, 2, 1), (1, 1, 1)], white=10, at_top=False)
    rows = ruled_rows(columns_of(table))
    assert rows is not None
    assert [[list(cell) for cell in cells] for cells in rows] == table


@pytest.mark.parametrize("at_top", [False, True])
def test_a_row_ends_with_more_white_than_lines_have_between(at_top: bool) -> None:
    """Not where middles meet too early, nor where all of its cells go on in a next line."""
    counts: list[tuple[int, ...]] = [(1, 1, 1), (2, 3, 2), (2, 2, 1)]
    table = cells_of(counts, white=14, at_top=at_top)
    rows = wrapped_rows(columns_of(table), EM, is_ruled=False)
    assert rows is not None
    assert [[list(cell) for cell in cells] for cells in rows] == table


@pytest.mark.parametrize(("alone", "is_row"), [(0, False), (1, True), (2, True)])
def test_a_first_cell_beside_two_rows_of_all_others_names_them(alone: int, is_row: bool) -> None:
    """Any other is one of a row whose other cells have two lines."""
    counts = [(1, 1, 1), tuple(1 if at == alone else 2 for at in range(3)), (1, 1, 1)]
    table = cells_of(counts, white=14, at_top=False)
    rows = wrapped_rows(columns_of(table), EM, is_ruled=False)
    assert (rows is not None) == is_row
