"""The snippets of docs/clients, run as they stand: every client reads a PDF, and a picture with a figure."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import playwright
import pytest
from PIL import Image, ImageDraw
from service_client import PATIENCE_S, ROOT, Server, serving
from websockets import InvalidStatus, Origin
from websockets.sync.client import connect

PAGES = sorted(path.stem for path in (ROOT / "docs/clients").glob("*.md") if path.stem != "README")
SNIPPET = re.compile(r"^```(python|sh|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
DOCUMENT, FIGURE = "docs/sample.pdf", "figure.png"
IN_TEXT = {"langchain-docling", "open-webui"}
"""Clients that want text alone: a figure leaves nothing in it."""
SHOWN_AS = re.compile(r"images/p1-1\.png|p1-1\.png|<!-- image -->|<\|ref\|>image<\|/ref\|>")
WITHOUT_INTERNET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where snippets run: a checkout's sample, and a page with a red picture on it."""
    found = tmp_path_factory.mktemp("clients")
    (found / "docs").symlink_to(ROOT / "docs")
    image = Image.new("RGB", (600, 800), "white")
    ImageDraw.Draw(image).rectangle((100, 200, 400, 500), fill=(200, 40, 40))
    image.save(found / FIGURE)
    return found


def command(language: str, source: str) -> list[str]:
    if language == "sh":
        return ["bash", "-euc", source]
    if language == "js":
        node = shutil.which("node") or str(Path(playwright.__path__[0]) / "driver" / "node")
        return [node, "--input-type=module", "--eval", source]
    folders = (Path(f"{sys.prefix}-clients"), ROOT / ".venv-clients")
    python = next((path for folder in folders if (path := folder / "bin/python").exists()), None)
    if python is None:
        pytest.skip("the clients are not installed: see .ci/setup")
    if "mineru" in source and sys.version_info >= (3, 14):
        pytest.skip("there is no mineru for the Python on this machine")
    return [str(python), "-W", "ignore", "-c", source]


@pytest.mark.parametrize("page", PAGES)
def test_a_client_reads_documents(service: Server, folder: Path, page: str) -> None:
    [(language, snippet)] = SNIPPET.findall((ROOT / f"docs/clients/{page}.md").read_text(encoding="utf-8"))
    assert ADDRESS in snippet
    assert DOCUMENT in snippet
    here = snippet.replace(ADDRESS, str(service.http.base_url).rstrip("/"))
    # both in one process: what takes long is the import of the client
    both = [here, here.replace(DOCUMENT, FIGURE)]
    source = "\n".join(f"{{\n{one}\n}}" if language == "js" else one for one in both)
    if language == "js":  # imports stand outside of blocks
        imports = "\n".join(dict.fromkeys(re.findall(r"^import .*$", source, re.MULTILINE)))
        source = imports + re.sub(r"^import .*$", "", source, flags=re.MULTILINE)
    done = subprocess.run(
        command(language, source),
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), **WITHOUT_INTERNET},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1241 x 1754 pixels" in done.stdout
    assert "Page 2" in done.stdout
    assert "600 x 800 pixels" in done.stdout
    assert page in IN_TEXT or SHOWN_AS.search(done.stdout), done.stdout


@pytest.mark.parametrize(
    ("name", "origin"), [("evil.example", None), ("127.0.0.1", "http://evil.example"), ("127.0.0.1", None)]
)
def test_a_websocket_is_no_way_in_for_web_pages(service: Server, name: str, origin: str | None) -> None:
    """Neither under another name nor from elsewhere. A program here is let in."""
    path = f"//{name}:{service.port}/v1/status/ws/{'0' * 32}"
    with socket.create_connection(("127.0.0.1", service.port)) as raw:
        if name == "127.0.0.1" and origin is None:
            with connect(f"ws:{path}", sock=raw) as websocket:
                assert json.loads(websocket.recv(60))["error"] == "Task not found."
            return
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws:{path}", sock=raw, origin=None if origin is None else Origin(origin))
    assert refused.value.response.status_code == 403


def test_every_client_has_a_line_in_the_index() -> None:
    index = (ROOT / "docs/clients/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(([a-z-]+)\.md\)", index)) == set(PAGES)
