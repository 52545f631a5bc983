"""``rtprune mcp``, asked by the client of the protocol's own SDK."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent
from service_client import A4, PATIENCE_S, ROOT, Server, answers, eventually, pdf_bytes, serving

from app.cli import parser
from app.commands.mcp_server import Documents

ARGUMENTS = ["-m", "app.program", "mcp"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as started:
        yield started.wait_ready()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An allowed folder with a document, and links that lead out of it."""
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret.pdf").write_bytes(pdf_bytes(A4))
    (tmp_path / "allowed" / "two.pdf").write_bytes(pdf_bytes(A4, A4))
    (tmp_path / "allowed" / "link.pdf").symlink_to(tmp_path / "secret.pdf")
    (tmp_path / "allowed" / "up").symlink_to(tmp_path)
    return tmp_path / "allowed"


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "RTPRUNE_READER": "fake"}


def texts(result: CallToolResult) -> list[str]:
    return [content.text for content in result.content if isinstance(content, TextContent)]


async def use(client: Client) -> None:
    """Everything an agent does."""
    told: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async with client:
        [tool] = (await client.list_tools()).tools
        assert tool.name == "parse_document"
        assert set(tool.input_schema["properties"]) == {"document", "pages", "format", "mode", "prune"}
        whole = await client.call_tool(
            "parse_document", {"document": "two.pdf"}, progress_callback=on_progress
        )
        assert not whole.is_error
        assert [text.count("# Page") for text in texts(whole)] == [2]
        assert {(done, total) for done, total, _ in told} >= {(1, 2), (2, 2)}
        second = await client.call_tool(
            "parse_document", {"document": "two.pdf", "pages": "2", "format": "text"}
        )
        assert texts(second)[0].startswith("Page 2")
        for refused, reason in (
            ({"document": "link.pdf"}, "no such file in an allowed folder"),
            ({"document": "two.pdf", "pages": "9"}, "page 9 was asked for"),
            ({"document": "http://127.0.0.1:1/x.pdf"}, "no host that may be reached"),
        ):
            answer = await client.call_tool("parse_document", refused)
            assert answer.is_error
            assert reason in texts(answer)[0], texts(answer)


def test_an_agent_reads_over_standard_input_and_output(folder: Path) -> None:
    parameters = StdioServerParameters(
        command=sys.executable, args=[*ARGUMENTS, "--allow", str(folder)], env=environment()
    )
    asyncio.run(use(Client(parameters)))


def test_an_agent_reads_over_http(folder: Path, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = ["--http", "--http-port", str(port), "--server", f"http://127.0.0.1:{server.port}"]
    with subprocess.Popen(
        [sys.executable, *ARGUMENTS, *address, "--allow", str(folder)], env=environment()
    ) as process:
        try:
            eventually(lambda: process.poll() is not None or answers(port))
            asyncio.run(use(Client(f"http://127.0.0.1:{port}/mcp")))
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def test_what_is_outside_of_allowed_folders_is_not_there(folder: Path) -> None:
    documents = Documents([folder])
    assert documents.find("two.pdf") == documents.find(str(folder / "two.pdf")) == pdf_bytes(A4, A4)
    assert documents.find("https://example.com/x.pdf") == "https://example.com/x.pdf"
    outside = (str(folder.parent / "secret.pdf"), "../secret.pdf", "up/secret.pdf", "link.pdf", "/etc/passwd")
    for name in (*outside, "missing.pdf", "file:///etc/passwd", "", ".", "\0"):
        with pytest.raises(ToolError, match="no such file"):
            documents.find(name)
    with pytest.raises(ToolError, match="none: rtprune mcp --allow"):
        Documents([]).find(str(folder / "two.pdf"))


def test_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    for arguments in (["--http", "--http-host", "0.0.0.0"], ["--allow", str(tmp_path / "none")]):  # noqa: S104
        done = subprocess.run(
            [sys.executable, *ARGUMENTS, *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def test_the_entry_in_the_documentation_starts_it(folder: Path) -> None:
    [entry] = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(), re.DOTALL)
    tool = json.loads(entry)["mcpServers"]["rtprune"]
    assert (tool["command"], tool["args"][:2]) == ("rtprune", ["mcp", "--allow"])
    asked = parser().parse_args([*tool["args"][:2], str(folder)])
    assert asked.allow == [folder]
