"""Report the results of several tools as JSON and as Markdown tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from app.evaluation.scores import LOWER_IS_BETTER, PageScore, Score, by_attribute, summarize

NOTES = (
    "Formulas are compared by the edit distance of their TeX, not by CDM, which needs a TeX installation;"
    " Overall is formed with it and is not comparable with published ones."
)
PERCENT = frozenset({"overall"})


@dataclass(frozen=True, slots=True)
class ToolResult:
    """One tool's scores. ``missing``: names of pages without a file of the tool; they are scored as empty."""

    tool: str
    pages: tuple[PageScore, ...]
    missing: tuple[str, ...]


def as_json(results: Sequence[ToolResult]) -> dict[str, object]:
    """Return the scores of every tool as JSON values: overall, by attribute and by page."""
    return {
        "notes": NOTES,
        "tools": {
            result.tool: {
                "pages": len(result.pages),
                "missing": list(result.missing),
                "scores": _plain(summarize(result.pages)),
                "by_attribute": {
                    attribute: {value: _plain(scores) for value, scores in values.items()}
                    for attribute, values in by_attribute(result.pages).items()
                },
                "by_page": {
                    page.name: {name: total / count for name, (total, count) in page.samples.items() if count}
                    for page in result.pages
                },
            }
            for result in results
        },
    }


def _plain(scores: Mapping[str, Score]) -> dict[str, dict[str, float | None]]:
    return {name: asdict(score) for name, score in scores.items()}


def as_table(results: Sequence[ToolResult]) -> str:
    """Return a Markdown table with a row per metric and a column per tool.

    The interval of the bootstrap over pages follows each value in brackets.
    """
    scores = {result.tool: summarize(result.pages) for result in results}
    names = sorted(
        {name for one in scores.values() for name in one}, key=lambda name: (name != "overall", name)
    )
    rows = [["metric", *scores]]
    rows += [[_label(name), *(_cell(name, one.get(name)) for one in scores.values())] for name in names]
    rows.append(["pages (missing)", *(f"{len(one.pages)} ({len(one.missing)})" for one in results)])
    return _markdown(rows)


def as_attribute_table(results: Sequence[ToolResult], metric: str) -> str:
    """Return a Markdown table of one metric, with a row per value of each attribute and a column per tool.

    Return ``""`` if no page has both an attribute and the metric.
    """
    grouped = {result.tool: by_attribute(result.pages) for result in results}
    rows = [["attribute", "value", *grouped]]
    first = next(iter(grouped.values()), {})
    for attribute, values in first.items():
        for value in values:
            cells = [tools[attribute][value].get(metric) for tools in grouped.values()]
            if any(cells):
                rows.append([attribute, value, *(_cell(metric, cell) for cell in cells)])
    return _markdown(rows) if len(rows) > 1 else ""


def _label(name: str) -> str:
    return f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}"


def _cell(name: str, score: Score | None) -> str:
    if score is None:
        return ""
    digits = 1 if name in PERCENT else 3
    if score.low is None or score.high is None:
        return f"{score.value:.{digits}f}"
    return f"{score.value:.{digits}f} ({score.low:.{digits}f} to {score.high:.{digits}f})"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_one_line, row))} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    return "\n".join(lines)


def _one_line(cell: str) -> str:
    """Make a text of the truth or the command line fit a cell."""
    return " ".join(cell.split()).replace("|", r"\|")
