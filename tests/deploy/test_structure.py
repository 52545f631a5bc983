"""Who may know whom: floors import only floors below them, and the engine knows no particular checkpoint."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POCKETS_WORDS = re.compile(r"pocket|region|small checkpoint", re.IGNORECASE)
OUTSIDE = ("tests", "benchmarks", "training", "docker")


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", modules("app/ocr"), ids=lambda path: path.stem)
def test_the_engine_mentions_no_particular_checkpoint(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not POCKETS_WORDS.search(text)
    assert not [name for name in imported(path) if name.startswith("app.pocket")]


def test_the_library_knows_nothing_of_the_service() -> None:
    names = {name for path in modules("rtprune") for name in imported(path)}
    assert not [name for name in names if name.split(".")[0] in {"app", *OUTSIDE}]


def test_the_service_knows_nothing_of_what_is_around_it() -> None:
    names = {name for path in modules("app") for name in imported(path)}
    assert not [name for name in names if name.split(".")[0] in OUTSIDE]


def test_evaluation_knows_nothing_of_the_service_but_its_client() -> None:
    """It scores the output of any tool, and runs where only its own extra is installed."""
    names = {name for path in modules("app/evaluation") for name in imported(path)}
    ours = {name for name in names if name.split(".")[0] in {"app", "rtprune"}}
    assert not [name for name in ours if not name.startswith(("app.evaluation", "rtprune.client"))]


def test_private_parts_of_the_queue_library_are_used_in_one_file_alone() -> None:
    """A new version of DBOS may change them: this names where to look, and what for."""
    private = re.compile(
        r"dbos\._\w+|_worker_concurrency|_background_jobs\w+|background_thread_stop_events|workflow_status"
    )
    used = {path.name: set(private.findall(path.read_text(encoding="utf-8"))) for path in modules("app")}
    assert {name: words for name, words in used.items() if words} == {
        "claiming.py": {"dbos._queue", "_worker_concurrency", "workflow_status"}
    }


def test_training_knows_no_benchmark() -> None:
    names = {name for path in modules("training") for name in imported(path)}
    assert not [name for name in names if name.split(".")[0] in {"benchmarks", "tests"}]


def test_a_reader_of_whole_pages_needs_no_pocket() -> None:
    code = "import sys, app.ocr.engine.engine, app.ocr.models.deepseek; print('app.pocket' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "False"
