"""The benchmark runs, and its last line says what it measured and where. Its figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_last_line_is_one_json_document(tmp_path: Path) -> None:
    out = tmp_path / "prune.json"
    script = [sys.executable, "-m", "benchmarks.prune", "--pages", "2", "--repeats", "1", "--threads", "1"]
    shown = subprocess.run([*script, "--out", str(out)], capture_output=True, text=True, check=True, cwd=ROOT)
    document = json.loads(shown.stdout.splitlines()[-1])
    assert document == json.loads(out.read_text())
    assert {
        "hardware",
        "threads",
        "torch",
        "commit",
        "mode",
        "kept_patches",
        "times_faster",
    } <= document.keys()
    for pages in ("pages_1", "pages_2"):
        assert all(taken["median"] > 0 for taken in document[pages]["ms_a_page"].values())
    assert 0 < document["kept_patches"] < document["patches"] == 400
