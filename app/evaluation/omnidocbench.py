"""Score a page's Markdown against its annotation in OmniDocBench's format, by OmniDocBench's rules.

Text and formulas are matched together, so that a formula read as text still finds its truth. Headers,
captions and the like are matched to their readings, and neither side counts. A table that was read and
matches no true table is scored as text. Written from the benchmark's description; docs/evaluation.md tells
where it differs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rapidfuzz.distance import Levenshtein

from app.evaluation.html_tables import TableScores, compare_tables, parse_html_table
from app.evaluation.markdown_parts import Part, split_markdown
from app.evaluation.matching import MAX_IGNORED_DISTANCE, Match, match_parts, pair_up
from app.evaluation.normal_forms import comparable_formula, comparable_text
from app.evaluation.scores import PageScore

COUNTED = frozenset({"text_block", "title", "code_txt", "code_txt_caption", "reference"})
IGNORED = frozenset({
    "figure_caption", "figure_footnote", "table_caption", "table_footnote", "code_algorithm",
    "code_algorithm_caption", "header", "footer", "page_footnote", "page_number", "equation_caption",
})  # fmt: skip
FORMULA, TABLE = "equation_isolated", "table"
MAX_TABLE_DISTANCE = 0.9
NO_ORDER = 1_000_000
MAX_NAME = 1000
"""Characters of an image's path."""
SCALAR = int | float | str | None


class TruthError(ValueError):
    """The truth is not in a known format, or a file or folder is missing. The text says which."""


@dataclass(frozen=True, slots=True)
class _Element:
    """One annotated block of text or one formula. ``text``: in its normal form for comparison."""

    category: str
    text: str

    @property
    def is_formula(self) -> bool:
        return self.category == FORMULA


@dataclass(frozen=True, slots=True)
class TruePage:
    """A page with its annotation. ``name``: stem of the image's file name; predictions have the same stem."""

    name: str
    annotation: Mapping[str, Any]

    @property
    def number(self) -> None:
        return None

    @property
    def label(self) -> str:
        return self.name

    @property
    def attributes(self) -> dict[str, str]:
        given = self.annotation["page_info"].get("page_attribute") or {}
        return {key: value for key, value in given.items() if isinstance(value, str)}

    @property
    def key(self) -> str:
        return json.dumps(self.annotation, sort_keys=True)

    def score(self, markdown: str) -> PageScore:
        """Score the Markdown that was read of this page."""
        return PageScore(self.name, _samples(self.annotation, split_markdown(markdown)), self.attributes)


def read_omnidocbench(path: Path) -> list[TruePage]:
    """Read the pages of a file in OmniDocBench's format.

    Raise ``TruthError``, which says what is wrong, if it is not in the format.
    """
    try:
        pages = json.loads(path.read_bytes())
        _require(isinstance(pages, list), "no list of pages")
        for page in pages:
            _require_page(page)
    except (ValueError, RecursionError) as error:
        raise TruthError(f"{path}: not in OmniDocBench's format: {error}") from error
    return [TruePage(PurePosixPath(page["page_info"]["image_path"]).stem, page) for page in pages]


def _require_page(page: Any) -> None:
    """Raise ``ValueError``, which says what is wrong, unless a page's annotation can be scored."""
    _require(isinstance(page, dict) and isinstance(page.get("page_info"), dict), "a page without page_info")
    info = page["page_info"]
    name = info.get("image_path")
    _require(
        isinstance(name, str) and len(name) <= MAX_NAME and "\0" not in name, f"image_path: {name!r:.80}"
    )
    _require(isinstance(info.get("page_attribute") or {}, dict), f"{name}: page_attribute is no object")
    _require(isinstance(page.get("layout_dets"), list), f"{name}: layout_dets is no list")
    for element in page["layout_dets"]:
        _require(isinstance(element, dict), f"{name}: an element is no object")
        _require(isinstance(element.get("category_type"), str), f"{name}: an element without category_type")
        _require(isinstance(element.get("html"), str | None), f"{name}: html is no text")
        _require(isinstance(element.get("anno_id"), SCALAR), f"{name}: an anno_id is no number")
    extra = page.get("extra") or {}
    relations = extra.get("relation") or [] if isinstance(extra, dict) else None
    _require(isinstance(relations, list), f"{name}: no list of relations")
    for relation in relations or []:
        _require(isinstance(relation, dict), f"{name}: a relation is no object")
        ends = (relation.get("source_anno_id"), relation.get("target_anno_id"))
        _require(all(isinstance(end, SCALAR) for end in ends), f"{name}: a relation between no numbers")
    json.dumps(page, ensure_ascii=False).encode()  # half a surrogate pair cannot be written


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _samples(annotation: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, tuple[float, float]]:
    elements = [element for element in annotation["layout_dets"] if not element.get("ignore")]
    tables = [parse_html_table(e.get("html") or "") for e in elements if e["category_type"] == TABLE]
    table_parts = [part for part in parts if part.table is not None]
    pairs = pair_up(
        [comparable_text(table.text) for table in tables],
        [comparable_text(part.content) for part in table_parts],
        MAX_TABLE_DISTANCE,
    )
    matched = {row: table_parts[column] for row, column in pairs}
    scores = [
        compare_tables(part.table, table) if (part := matched.get(row)) and part.table else NOT_READ
        for row, table in enumerate(tables)
    ]
    taken = {id(part) for part in matched.values()}
    samples = _text_samples(_truth(annotation, elements), [part for part in parts if id(part) not in taken])
    for name in ("teds", "teds_structure", "grits", "cells"):
        if scores:
            samples[name] = (sum(getattr(score, name) for score in scores), float(len(scores)))
    return samples


NOT_READ = TableScores(0.0, 0.0, 0.0, 0.0)


def _truth(annotation: Mapping[str, Any], elements: Sequence[Mapping[str, Any]]) -> list[_Element]:
    """Return text and formulas in reading order. Join a paragraph that a column or page break splits."""
    heads = _continued(annotation)
    elements = sorted(elements, key=_place)  # pieces of a paragraph are joined in reading order
    texts: dict[Any, str] = {}
    for element in elements:
        head = heads.get(element.get("anno_id"), element.get("anno_id"))
        if head != element.get("anno_id"):
            texts[head] = texts.get(head, "") + str(element.get("text") or "")
    found = []
    for element in elements:
        category, number = element["category_type"], element.get("anno_id")
        if category == FORMULA:
            text = comparable_formula(str(element.get("latex") or ""))
        elif category in COUNTED | IGNORED and heads.get(number, number) == number:
            text = comparable_text(str(element.get("text") or "") + texts.get(number, ""))
        else:
            continue
        if text:
            found.append(_Element(category, text))
    return found


def _place(element: Mapping[str, Any]) -> int:
    order = element.get("order")
    return order if isinstance(order, int) else NO_ORDER


def _continued(annotation: Mapping[str, Any]) -> dict[Any, Any]:
    """Map the id of each continued block to the id of the block where its paragraph begins."""
    heads: dict[Any, Any] = {}
    for relation in (annotation.get("extra") or {}).get("relation") or []:
        if relation.get("relation_type") == "truncated":
            source = relation.get("source_anno_id")
            heads[relation.get("target_anno_id")] = heads.get(source, source)
    return heads


def _text_samples(truth: Sequence[_Element], parts: Sequence[Part]) -> dict[str, tuple[float, float]]:
    read = [(comparable_formula if p.kind == "formula" else comparable_text)(p.content) for p in parts]
    kept = [index for index, text in enumerate(read) if text]
    ignored = [element.text for element in truth if element.category in IGNORED]
    gone = {column for _, column in pair_up(ignored, [read[i] for i in kept], MAX_IGNORED_DISTANCE)}
    kept = [index for place, index in enumerate(kept) if place not in gone]
    counted = [element for element in truth if element.category not in IGNORED]
    texts, readings = [element.text for element in counted], [read[index] for index in kept]
    matches = match_parts(texts, readings)

    samples: dict[str, tuple[float, float]] = {}
    edits = length = 0
    formula_edits: list[float] = []
    for match in matches:
        left = "".join(texts[row] for row in match.truth)
        right = "".join(readings[column] for column in match.read)
        if match.truth and all(counted[row].is_formula for row in match.truth):
            formula_edits += [Levenshtein.normalized_distance(left, right)] * len(match.truth)
        elif match.truth or not all(parts[kept[column]].kind == "formula" for column in match.read):
            edits += Levenshtein.distance(left, right)
            length += max(len(left), len(right))
        # a formula that was read but is not in the truth counts nowhere, as in the benchmark
    if any(not element.is_formula for element in counted):
        samples["text_edit"] = (edits / length, 1.0)
    if formula_edits:
        samples["formula_edit"] = (sum(formula_edits), float(len(formula_edits)))
    if counted:
        samples["order_edit"] = (_order_edit(matches), 1.0)
    return samples


def _order_edit(matches: Sequence[Match]) -> float:
    """Compute the normalised edit distance between the true order of the matched parts and the order read.

    Return 1 if nothing matched.
    """
    found = [match for match in matches if match.truth and match.read]
    if not found:
        return 1.0
    right = [min(match.truth) for match in sorted(found, key=lambda match: min(match.truth))]
    said = [min(match.truth) for match in sorted(found, key=lambda match: min(match.read))]
    return float(Levenshtein.normalized_distance(right, said))


def prediction_names(name: str) -> Iterator[str]:
    """Yield the names that a tool may have given its file of a page."""
    yield f"{name}.md"
    yield f"{name}.mmd"
    yield f"{name}.txt"
