"""Promises of the documentation name tests that exist."""

import re

import pytest
from service_client import ROOT


@pytest.mark.parametrize("name", ["RELIABILITY.md", "SECURITY.md"])
def test_every_promise_has_a_test(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "tests/" in line]
    assert len(rows) >= 10
    for row in rows:
        for path, test in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", row):
            code = (ROOT / path).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in code, f"{path}::{test}"
