"""Read many documents through one service, some at a time."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from app.commands.connection import CannotRead, connected
from app.commands.inputs import Input, find_inputs
from app.commands.progress import Progress, open_progress
from app.commands.results import ResultFolder
from app.commands.words import DONE, NOT_ALL_READ, WRONG_USE
from app.http.schemas.parse import OptionFields
from app.output.formats import FORMATS
from app.settings import Settings
from rtprune.client import AsyncClient, ClientError, Options, Page


@dataclass(frozen=True, slots=True)
class Wish:
    """How documents are read, and where their answers go: into ``folder``, or to standard output."""

    options: Options
    format: str
    num_at_a_time: int
    folder: ResultFolder | None
    overwrites: bool = False
    """Whether a file that is where a result goes, and that no run put there, may go."""


class Batch:
    """One run. An error of one document is told and stops no other."""

    def __init__(self, client: AsyncClient, wish: Wish, progress: Progress, *, with_names: bool) -> None:
        self._client = client
        self._wish = wish
        self._progress = progress
        self._with_names = with_names
        self._places = asyncio.Semaphore(wish.num_at_a_time)
        self._num_printed = 0

    async def read(self, inputs: Sequence[Input]) -> bool:
        """Read all. Tell whether every page of every document was read."""
        tasks: list[asyncio.Task[bool]] = []
        before: asyncio.Event | None = None
        for one in inputs:
            after = asyncio.Event()
            tasks.append(asyncio.create_task(self._one(one, before, after), name="document"))
            before = after
        try:
            return all(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, one: Input, before: asyncio.Event | None, after: asyncio.Event) -> bool:
        # the place is kept until the answer is printed, so that few answers wait for their turn; those before
        # this one have theirs
        async with self._places:
            try:
                answer, is_whole = await self._answer(one)
                if self._wish.folder is not None:
                    path = await asyncio.to_thread(self._wish.folder.write, one, answer, is_whole=is_whole)
                    self._progress.ended(f"{one.name}: {path}")
                else:
                    if before is not None:
                        await before.wait()
                    self._print(one, answer)
                    self._progress.ended(one.name)
            except BrokenPipeError:
                raise
            except (ClientError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._progress.say(f"{one.name}: {reason}")
                self._progress.ended(f"{one.name}: not read")
                return False
            finally:
                if self._wish.folder is None and before is not None:
                    await before.wait()
                after.set()
        return is_whole

    async def _answer(self, one: Input) -> tuple[bytes, bool]:
        """Read a document. Give its answer, and whether all of it was read."""
        folder = self._wish.folder
        if folder is not None and not self._wish.overwrites and folder.is_foreign(one):
            raise FileExistsError(0, f"{folder.path(one)} is there already; --force overwrites it")
        job = await self._client.submit(one.source, **self._wish.options)
        self._progress.accepted(job.pages.total)
        pages: list[Page] = []
        async with self._client.cancelling(job):
            async for page in self._client.pages(job):
                self._progress.page()
                pages.append(page)
            answer = await self._client.answer(job, self._wish.format)
            ended = await self._client.job(job)
        for page in sorted(pages, key=lambda page: page.index):
            said = [page.error.detail] if page.error else [warning.detail for warning in page.warnings]
            for sentence in said:
                self._progress.say(f"{one.name}, page {page.index + 1}: {sentence}")
        return answer, ended.status == "succeeded"

    def _print(self, one: Input, answer: bytes) -> None:
        """Print an answer; where there are several texts, as ``head`` does, under their names."""
        with self._progress.printing():
            out = sys.stdout.buffer
            if self._with_names and FORMATS[self._wish.format].is_text:
                blank = "\n" if self._num_printed else ""
                out.write(f"{blank}==> {one.name} <==\n".encode("utf-8", "surrogateescape"))
            out.write(answer)
            if self._wish.format in {"json", "docling"}:
                out.write(b"\n")
            out.flush()
            self._num_printed += 1


async def parse_documents(
    asked: argparse.Namespace, settings: Settings, fields: OptionFields, suffix: str
) -> int:
    """Read the documents that a command line names. Return the exit status.

    ``suffix``: how names of results end.
    """
    options = cast("Options", fields.model_dump(exclude_unset=True))  # a test compares their fields
    try:
        folder = ResultFolder(asked.output, suffix, options) if asked.output else None
    except OSError as error:
        print(f"rtprune: results cannot be kept in {asked.output}: {error.strerror}", file=sys.stderr)
        return WRONG_USE
    inputs, num_others = await asyncio.to_thread(find_inputs, asked.inputs, asked.output)
    if num_others:
        print(f"rtprune: left out what is no document: {num_others} in folders", file=sys.stderr)
    waiting = inputs
    if folder is not None and not asked.force:
        waiting = [one for one in inputs if not folder.is_done(one)]
        if num_done := len(inputs) - len(waiting):
            print(f"rtprune: left out what is done: {num_done}; --force reads it again", file=sys.stderr)
    if not waiting:
        return DONE
    progress = open_progress(len(waiting), to_folder=folder is not None)
    wish = Wish(options, asked.format, asked.jobs, folder, overwrites=asked.force)
    try:
        async with connected(asked, settings) as client:
            all_read = await Batch(client, wish, progress, with_names=len(inputs) > 1).read(waiting)
    except CannotRead as error:
        progress.say(f"rtprune: {error}")
        return NOT_ALL_READ
    finally:
        progress.close()
    return DONE if all_read else NOT_ALL_READ
