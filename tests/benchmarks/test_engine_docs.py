"""docs/engine.md lists every setting with its default."""

import json
import re
from dataclasses import fields
from pathlib import Path

from app.ocr.engine.settings import EngineSettings
from benchmarks.engine_table import RESULTS, table

DOCS = Path(__file__).resolve().parents[2] / "docs" / "engine.md"


def test_every_setting_is_in_the_docs_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", DOCS.read_text(), flags=re.MULTILINE))
    defaults = EngineSettings()
    assert [name for name in rows if hasattr(defaults, name)] == [field.name for field in fields(defaults)]
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        shown = rows[field.name].strip()
        if value is None:
            assert shown == "none"
        elif isinstance(value, int | float):
            assert float(shown) == value
        else:
            numbers = [int(number) for number in re.findall(r"\d+", shown)]
            parts = [getattr(value, part.name) for part in fields(value)]
            assert numbers == [part for part in parts if part is not None]


def test_the_table_of_the_full_size_is_the_one_that_was_measured() -> None:
    document = json.loads(RESULTS.read_text())
    assert table(document) in DOCS.read_text()
    assert document["num_failed"] == 0


def test_a_configuration_that_failed_is_a_row_that_says_so() -> None:
    document = {"rows": [{"mode": "base", "pages": 256, "error": "no memory for 256 slots"}]}
    assert "| base | 256 | no memory for 256 slots |" in table(document)
