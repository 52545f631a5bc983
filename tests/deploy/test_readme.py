"""The README is run: its Python, its curl calls against a served pocket checkpoint, its demo."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_client import eventually, serving

from training.errors_in_text import character_error_rate

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"(?:<!-- output: (\w+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for _, kind, body in BLOCK.findall(README) if kind == language]


def output(name: str) -> str:
    found: list[str] = [body for label, _, body in BLOCK.findall(README) if label == name]
    return found[0]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("data"), reader="model", model="pocket") as server:
        server.wait_ready()
        yield f"http://127.0.0.1:{server.port}"


def run(command: str, address: str) -> str:
    """A README command, against the server of this test and with the tools of this virtual environment."""
    words = shlex.split(command.replace("http://127.0.0.1:8000", address).replace(".venv/bin/", f"{BIN}/"))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.strip().splitlines()]


def test_every_shell_command_is_one_this_file_runs() -> None:
    for command in commands():
        assert command.startswith(("curl ", ".venv/bin/rtprune ")) or command in {
            "make demo",
            "make run",
            "make test",
        }


def test_markdown_by_curl_is_what_the_readme_shows(address: str) -> None:
    command = next(line for line in commands() if "text/markdown" in line)
    assert is_close(run(command, address), output("markdown"))


def test_json_by_curl_has_the_fields_and_text_the_readme_shows(address: str) -> None:
    command = next(line for line in commands() if line.startswith("curl") and "text/markdown" not in line)
    shown, given = json.loads(output("json")), json.loads(run(command, address))
    assert shape(given) == shape(shown)
    assert is_close(given["markdown"], shown["markdown"])
    tokens, wanted = given["pages"][0]["tokens"], shown["pages"][0]["tokens"]
    assert [tokens[count] for count in ("visual", "patches", "prompt")] == [
        wanted[count] for count in ("visual", "patches", "prompt")
    ]
    for count in ("kept", "kept_patches"):  # another processor may decide a near tie the other way
        assert tokens[count] == pytest.approx(wanted[count], rel=0.03)


def test_a_job_is_accepted_and_ends(address: str) -> None:
    command = next(line for line in commands() if "/v1/jobs" in line)
    link = json.loads(run(command, address))["links"]["self"]
    with httpx.Client(base_url=address) as client:
        assert eventually(lambda: client.get(link).json()["status"] == "succeeded")


def is_close(text: str, shown: str) -> bool:
    """Other processors round otherwise, which may turn a character that the model was in doubt about."""
    return character_error_rate([text], [shown]) <= 0.1


def shape(value: object) -> object:
    """Keys and types, without the values: times and ids differ from run to run."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_the_command_line_reads_the_sample(tmp_path: Path) -> None:
    command = next(line for line in commands() if "rtprune parse" in line)
    os.environ.setdefault("RTPRUNE_DATA_DIR", str(tmp_path))
    assert "page" in run(command, "")


def test_the_python_example_runs() -> None:
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = re.findall(r"(\d+) -> (\d+)", done.stdout)[0]
    assert int(after) < int(before) == 273


def test_the_demo_prints_markdown_and_a_table_and_stops_the_service() -> None:
    environment = {**os.environ, "VENV": str(BIN.parent)}
    environment.pop("PORT", None)
    done = subprocess.run(
        ["bash", "docs/demo.sh"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"page +visual +kept +retention", done.stdout)
    port = re.search(r"on port (\d+)", done.stdout)
    assert port is not None
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["curl", "--silent", f"http://127.0.0.1:{port[1]}/livez"], check=True)
