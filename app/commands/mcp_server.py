"""The tool ``parse_document``, over standard input and output or over HTTP."""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import TextContent, ToolAnnotations

from app.commands.connection import CannotRead, connected
from app.settings import Settings
from rtprune.client import AsyncClient, ClientError, Options, Page

MAX_FILE_MIB = 256
INSTRUCTIONS = (
    "parse_document reads PDFs and images: scans, tables, formulas. A long document is better read in parts: "
    "ask for pages. What follows the text says which pages were not read to their end or may be wrong."
)
DESCRIPTION = (
    "Read a PDF or image and return its text as Markdown. `document`: the path of a file in an allowed "
    "folder, or an https address. `pages`: 1-based, such as 1-3,7,9- (default: all). `format`: markdown, "
    "text, or json with every block, its place on the page and what each page cost. `prune`: none reads "
    "every visual token."
)


class Documents:
    """Finds what a tool call names, within folders that were allowed."""

    def __init__(self, allowed: Sequence[Path]) -> None:
        self._allowed = [folder.resolve(strict=True) for folder in allowed]

    def find(self, document: str) -> str | bytes:
        """Return an address as it is, and of a path what is in the file. Raise ``ToolError``.

        Links are followed first: what counts is where a file really is. A path that is not allowed and one
        that is not there are the same to who asks.
        """
        if document.startswith(("http://", "https://")):
            return document
        for folder in self._allowed:
            with contextlib.suppress(OSError, ValueError):
                path = (folder / document).resolve(strict=True)
                if self._is_allowed(path) and path.is_file():
                    return self._read(path)
        allowed = ", ".join(map(str, self._allowed)) or "none: rtprune mcp --allow DIR allows one"
        raise ToolError(f"there is no such file in an allowed folder (allowed: {allowed})")

    def _is_allowed(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._allowed)

    def _read(self, path: Path) -> bytes:
        with path.open("rb") as file:
            # a folder on the way may have become a link since: this is the file that was opened
            opened = Path(f"/proc/self/fd/{file.fileno()}").readlink()
            if not self._is_allowed(opened):
                raise FileNotFoundError
            data = file.read(MAX_FILE_MIB * 2**20 + 1)
        if len(data) > MAX_FILE_MIB * 2**20:
            raise ToolError(f"the file has more than {MAX_FILE_MIB} MiB")
        return data


class Reader:
    """A client of a service that may still be starting."""

    def __init__(self, asked: argparse.Namespace, settings: Settings) -> None:
        self._asked = asked
        self._settings = settings
        self._client: asyncio.Future[AsyncClient] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()

    @asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """Start the service, without waiting for it: clients do not wait long for a server's first word."""
        keeping = asyncio.create_task(self._keep(), name="service of tools")
        try:
            yield
        finally:
            self._closing.set()
            if not self._client.done():
                keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def client(self) -> AsyncClient:
        """Return the client, once there is one. Raise ``ToolError`` if nothing reads."""
        try:
            return await asyncio.shield(self._client)
        except CannotRead as error:
            raise ToolError(str(error)) from error

    async def _keep(self) -> None:
        try:
            async with connected(self._asked, self._settings) as client:
                self._client.set_result(client)
                await self._closing.wait()
        except CannotRead as error:
            self._client.set_exception(error)


def make_server(reader: Reader, documents: Documents) -> MCPServer:
    """Make the server with its one tool."""
    server = MCPServer("rtprune", instructions=INSTRUCTIONS, log_level="WARNING")
    hints = ToolAnnotations(title="Read a document", read_only_hint=True, open_world_hint=True)

    @server.tool(description=DESCRIPTION, annotations=hints, structured_output=False)
    async def parse_document(
        context: Context,
        document: str,
        pages: str | None = None,
        format: Literal["markdown", "text", "json"] = "markdown",  # noqa: A002 - the tool's argument
        mode: str | None = None,
        prune: Literal["rtprune", "none"] = "rtprune",
    ) -> list[TextContent]:
        source = await asyncio.to_thread(documents.find, document)
        options: Options = {"prune": prune}
        if pages is not None:
            options["pages"] = pages
        if mode is not None:
            options["mode"] = mode
        await context.report_progress(0, message="waiting for the service")
        client = await reader.client()
        try:
            answer, notes = await _read(client, source, options, format, context)
        except ClientError as error:
            raise ToolError(str(error)) from error
        contents = [TextContent(type="text", text=answer)]
        return contents + ([TextContent(type="text", text="\n".join(notes))] if notes else [])

    return server


async def _read(
    client: AsyncClient, source: str | bytes, options: Options, format_: str, context: Context
) -> tuple[str, list[str]]:
    job = await client.submit(source, **options)
    read: list[Page] = []
    async with client.cancelling(job):
        async for page in client.pages(job):
            read.append(page)
            await context.report_progress(len(read), job.pages.total, f"page {page.index + 1} is read")
        answer = await client.answer(job, format_)
    notes = []
    for page in sorted(read, key=lambda page: page.index):
        said = [page.error.detail] if page.error else [warning.detail for warning in page.warnings]
        notes += [f"Page {page.index + 1}: {sentence}" for sentence in said]
    return answer.decode(), notes


async def serve(asked: argparse.Namespace, settings: Settings) -> None:
    """Serve the tool until the other side leaves."""
    reader = Reader(asked, settings)
    server = make_server(reader, Documents(asked.allow))
    async with reader.opening():
        if asked.http:
            await server.run_streamable_http_async(host=asked.http_host, port=asked.http_port)
        else:
            await server.run_stdio_async()
