"""Write docs/BENCHMARKS.md from the files in benchmarks/results.

    python -m benchmarks.summary

To add a file, add its section to ``benchmarks/summary/sections.py``: this command fails without.
"""

from pathlib import Path

from benchmarks.report import ROOT
from benchmarks.summary.page import summary
from benchmarks.summary.sections import GROUPS

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "BENCHMARKS.md"
HEAD = """\
# Benchmarks

The main figures of every file in [benchmarks/results](../benchmarks/results), with hardware, commit, command
and baseline. `python -m benchmarks.summary` writes this page from those files; a test compares both. A "+"
after a commit: files differed from it.

Accuracy is that of the pocket checkpoint, which ships with the package. The
[README](../README.md#what-is-verified-and-what-is-not) says what was never measured. What was tried and left
out while building is told where it belongs: [pruning](pruning.md#tried-and-left-out-2026-11-20),
[engine](engine.md#figures).

"""


def document(results: Path = RESULTS) -> str:
    """Return the page. Raise ``SummaryError`` where a file cannot be shown."""
    return HEAD + summary(GROUPS, results)


def main() -> None:
    PAGE.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
