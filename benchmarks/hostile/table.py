"""The figures as tables: ``python -m benchmarks.hostile.table`` writes them into docs/RELIABILITY.md."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.report import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "hostile-cpu.json"
POCKET_SOAK = ROOT / "benchmarks" / "results" / "soak-pocket-cpu.json"
"""Of ``--part soak --reader pocket --out FILE``, which takes too long to be a part of the others."""
DOCS = ROOT / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- figures: benchmarks.hostile -->", "<!-- end of figures -->"
BESIDE = {
    "chunks": "4 clients that send chunks of a byte, 1.5 MB/s each",
    "slow": "200 clients that send a byte of a body each second",
    "silent": "1,100 connections that say nothing",
    "results": "48 clients that get a large result again and again",
}


def tables(document: Mapping[str, Any], pocket_soak: Mapping[str, Any] | None = None) -> str:
    """Give all figures as Markdown; those of a soak through the pocket checkpoint come last."""
    parts = document["parts"]
    said = (
        f"{document['hardware']}, Python {document['python']}, commit {document['commit']}, "
        f"load {document['load_before']} at the start; clients on a processor of their own."
    )
    livez = [["`/livez` beside", "p50, ms", "p99, ms", "p99 just before, ms", "API, MiB"], ["---"] * 5]
    livez += _livez(parts.get("livez", {}))
    found = [["what is done", "what comes of it"], ["---"] * 2, *_findings(parts)]
    if pocket_soak:
        what, came = _soak(pocket_soak["parts"]["soak"])
        found.append([f"{what} (commit {pocket_soak['commit']}, load {pocket_soak['load_before']})", came])
    return f"{said}\n\n{_table(livez)}\n\n{_table(found)}"


def _livez(part: Mapping[str, Any]) -> Iterator[list[str]]:
    if "error" in part:
        yield [f"not measured: {part['error']}", "", "", "", ""]
    for name, row in part.get("beside", {}).items():
        failed = f", {row['failed']} of {row['requests']} failed" if row["failed"] else ""
        what = BESIDE[name] + (f" ({part['result_pages']:,} pages)" if name == "results" else "")
        before = row["before"]["p99_ms"]
        yield [what + failed, f"{row['p50_ms']}", f"{row['p99_ms']}", f"{before}", f"{row['api_mib']:.0f}"]


def _findings(parts: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, say in SAY.items():
        if name in parts:
            part = parts[name]
            yield [name, f"failed: {part['error']}"] if "error" in part else list(say(part))


def _mutations(part: Mapping[str, Any]) -> tuple[str, str]:
    answers = ", ".join(f"{num} x {answer}" for answer, num in part["answers"].items())
    return (
        f"{part['documents']} documents with errors, seed {part['seed']}",
        f"{part['defects']} defects; starts of the worker: {part['worker_starts']:.0f}; {answers}; "
        f"the slowest took {part['slowest_s']} s; {_beside(part)}",
    )


def _bombs(part: Mapping[str, Any]) -> tuple[str, str]:
    rows = part["files"]
    rows = ", ".join(f"{row['file']} ({row['kb']} kB): {row['answer']}, {row['seconds']} s" for row in rows)
    most = max(row["rasterizer_mib"] for row in part["files"])
    return (
        f"{len(part['files'])} files that say more than they are",
        f"{part['defects']} defects; all rasterizers together took {most} MiB at most; {rows}; "
        + _beside(part),
    )


def _leaving(part: Mapping[str, Any]) -> tuple[str, str]:
    return (
        f"{part['clients_each']} clients each leave while they upload, wait, and are answered",
        f"{part['documents_in_flight']:.0f} documents are still counted; {_beside(part)}",
    )


def _kill(part: Mapping[str, Any]) -> tuple[str, str]:
    ends = ", ".join(f"{num} {status}" for status, num in part["ends"].items())
    return (
        f"{part['kills']} times SIGKILL to all {max(part['processes'])} processes at once, then a start",
        f"of {part['accepted']} accepted jobs: {ends}; of {part['pages']} pages {part['pages_missing']} "
        f"missing, {part['pages_read_twice']} changed after they were stored; ready again after "
        f"{max(part['restart_s'])} s; database {part['database']}; {part['temp_files']} files left",
    )


def _soak(part: Mapping[str, Any]) -> tuple[str, str]:
    memory = ", ".join(
        f"{name} {row['first_mib']:.0f} to {row['last_mib']:.0f} MiB ({row['growth']:+.1%})"
        for name, row in part["memory"].items()
    )
    pages = "of A4 through the fake reader"
    if part["reader"] != "fake":
        pages = "of three lines through the pocket checkpoint"
    return (
        f"{part['pages']:,} pages {pages}",
        f"{part['pages_per_s']} pages/s; after the first {part['first_pages']}: {memory}",
    )


def _overload(part: Mapping[str, Any]) -> tuple[str, str]:
    answers = ", ".join(f"{num} x {status}" for status, num in part["answers"].items())
    ends = ", ".join(f"{num} {status}" for status, num in part["ends"].items())
    return (
        f"{part['seconds']:.0f} s of {part['sent_per_s']} jobs/s; {part['admitted_jobs_per_s']} are read",
        f"{answers}; {part['without_retry_after']} refusals without `Retry-After`; "
        f"of {part['accepted']} accepted: {ends}; {part['lost']} lost; {_beside(part)}",
    )


def _beside(part: Mapping[str, Any]) -> str:
    """Say how ``/livez`` was meanwhile, and what was held before and after."""
    before, after = part["held"]["before"], part["held"]["after"]
    names = {
        "api_mib": "API MiB",
        "worker_mib": "worker MiB",
        "descriptors": "descriptors",
        "temp_files": "files",
    }
    held = ", ".join(f"{said} {before[name]:.0f} to {after[name]:.0f}" for name, said in names.items())
    return f"`/livez` p99 {part['livez']['p99_ms']} ms; {held}"


SAY = {
    "mutations": _mutations,
    "bombs": _bombs,
    "leaving": _leaving,
    "kill": _kill,
    "soak": _soak,
    "overload": _overload,
}


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def fill(text: str, document: Mapping[str, Any], pocket_soak: Mapping[str, Any] | None = None) -> str:
    """Put the tables between the marks of a page. Raise ``ValueError`` if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no place for figures: {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{tables(document, pocket_soak)}\n\n{end}{after}"


def main() -> None:
    results, pocket_soak = (json.loads(path.read_text()) for path in (RESULTS, POCKET_SOAK))
    DOCS.write_text(fill(DOCS.read_text(), results, pocket_soak))


if __name__ == "__main__":
    main()
