"""Write the sections of the page: what is measured, a small table, and where its figures come from."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = Sequence[Sequence[str]]
"""A table: its head, then its rows."""


class SummaryError(ValueError):
    """A results file cannot be shown. The message names the file and says what to add."""


def nothing(run: Any) -> Iterator[str]:  # noqa: ARG001 - the signature of all
    """Tell of no negative result."""
    yield from ()


@dataclass(frozen=True, slots=True)
class Section:
    """How the page shows one results file.

    ``about``: what is measured, on what. ``baseline``: what the figures are to be compared with. Both may
    name values of the file, such as ``{pages}``. ``command``: what writes the file anew, as Markdown;
    ``{out}`` stands for ``--out`` and the file's path. ``rows``: makes the table from the file's content.
    ``negative``: yields a sentence for each result that is worse than hoped, computed from the figures.
    ``recorded``: ``hardware``, ``commit`` or ``measured_at`` of a file that does not say them itself.
    """

    title: str
    about: str
    command: str
    baseline: str
    rows: Callable[[Any], Rows]
    negative: Callable[[Any], Iterator[str]] = nothing
    recorded: Mapping[str, str] = field(default_factory=dict)


def summary(groups: Mapping[str, Mapping[str, Section]], results: Path) -> str:
    """Return the page's sections and, before them, a list of all negative results.

    ``groups``: heading -> name of a file in ``results`` -> its section. Raise ``SummaryError`` unless every
    JSON file there has a section. A section without a file says that it was not measured yet.
    """
    named = [name for sections in groups.values() for name in sections]
    found = sorted(path.name for path in results.glob("*.json"))
    if missing := sorted({*found} - {*named}):
        raise SummaryError(f"no section for {', '.join(missing)}: add it to benchmarks/summary/sections.py")
    negative, shown = [], []
    for heading, sections in groups.items():
        shown.append(f"## {heading}")
        for name, section in sections.items():
            if name not in found:
                command = section.command.format(out=f"--out benchmarks/results/{name}")
                shown.append(f"### {section.title}\n\nNot measured yet.\n{command}")
                continue
            run = json.loads((results / name).read_text(encoding="utf-8"))
            facts = _facts(name, section, run)
            shown.append(_shown(name, section, run, facts))
            negative += [
                f"- {facts['measured_at']:.10}, [{section.title}](#{_anchor(section.title)}): {sentence}"
                for sentence in section.negative(run)
            ]
    return "\n\n".join(["## Negative results", "\n".join(negative) or "None.", *shown]) + "\n"


def _facts(name: str, section: Section, run: Any) -> dict[str, Any]:
    """Return the file's values, among them hardware, commit and day. Of a list of runs, the first counts."""
    facts = {**section.recorded, **(run[0] if isinstance(run, list) else run)}
    for fact in ("hardware", "commit", "measured_at"):
        if not facts.get(fact):
            raise SummaryError(f"{name} does not say its {fact}: write it with benchmarks.report.publish")
    return facts


def _shown(name: str, section: Section, run: Any, facts: Mapping[str, Any]) -> str:
    load = f", load {facts['load_before']:.1f} at the start" if "load_before" in facts else ""
    source = (
        f"{facts['hardware']}{load}; commit {facts['commit']}; {facts['measured_at']:.10};"
        f" [{name}](../benchmarks/results/{name})."
    )
    command = section.command.format(out=f"--out benchmarks/results/{name}")
    parts = (
        f"### {section.title}",
        section.about.format(**facts),
        table(section.rows(run)),
        f"Baseline: {section.baseline.format(**facts)}",
        f"{source}\n{command}",
    )
    return "\n\n".join(parts)


def _anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")


def table(rows: Rows) -> str:
    """Return a Markdown table. Columns of numbers, but the first, are aligned to the right."""
    head, *body = rows
    if any(len(row) != len(head) for row in body):
        raise SummaryError(f"rows of unequal length under {head}")
    columns = list(zip(*body, strict=True)) or [()] * len(head)
    rule = ["---:" if number and _is_numbers(column) else "---" for number, column in enumerate(columns)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _is_numbers(cells: Sequence[str]) -> bool:
    return all(not cell or cell.lstrip("+-").replace(",", "").rstrip("%")[:1].isdigit() for cell in cells)
