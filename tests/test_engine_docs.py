"""docs/engine.md lists every setting with its default."""

import re
from dataclasses import fields
from pathlib import Path

from app.ocr.engine_settings import EngineSettings

DOCS = Path(__file__).resolve().parent.parent / "docs" / "engine.md"


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
            assert numbers == [getattr(value, part.name) for part in fields(value)]
