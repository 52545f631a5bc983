"""Results of many pages: in pieces, compressed, whole or broken off."""

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from jobs_client import Client
from service_client import A4, Server, pdf_bytes

from app.document import AnswerOptions, ParsedDocument
from app.errors import Expired
from app.http.negotiation import accepts_gzip
from app.http.results import CHUNK_CHARS, NUM_SENDING, Result, Results, chunks, compressed
from app.http.schemas.parse import DocumentShape
from app.jobs.api.jobs import Jobs
from app.jobs.database import open_engine
from app.jobs.job import Job
from app.jobs.store import Store
from app.output.formats import FORMATS
from app.settings import Settings

NUM_PAGES = 60
HEAD = "<|ref|>text<|/ref|><|det|>[[400, 10, 600, 30]]<|/det|>Annual report\n\n"
TEXT = (
    '<|ref|>text<|/ref|><|det|>[[50, 100, 900, 900]]<|/det|>Words, "pages":[], \\(x<y\\) ' + "and more " * 300
)
READERS = pytest.mark.parametrize("fields", [{}, {"math": "dollar", "headers": "keep", "page_marks": "rule"}])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from service_client import serving

    with serving(tmp_path_factory.mktemp("data")) as started:
        yield started


@pytest.fixture(scope="module")
def job_id(running: Server) -> str:
    client = Client(running)
    prompt = {"text": HEAD + TEXT, "fail_on": [7]}
    job_id = client.accepted(pdf_bytes(*[A4] * NUM_PAGES), dpi=36, prompt=prompt)
    client.ended(job_id)
    return job_id


@pytest.fixture
def store(running: Server) -> Iterator[Store]:
    opened = Store(open_engine(Settings(data_dir=running.data_dir)))
    yield opened
    opened.close()


@READERS
def test_a_result_in_pieces_is_the_document(
    server: Server, job_id: str, store: Store, fields: dict[str, Any]
) -> None:
    job = store.job(job_id)
    pages = store.results(job_id)
    total_ms = ((job.finished_at or 0.0) - job.created_at) * 1000
    document = ParsedDocument(job_id, job.model, "partial", pages, {"total": total_ms})
    options = replace(AnswerOptions(), **fields)
    expected = DocumentShape.of(document, options)
    assert any(block.type == "page_header" for block in expected.pages[3].blocks)
    address = f"/v1/jobs/{job_id}/result"
    plain = server.http.get(address, params=fields, headers={"Accept-Encoding": "identity"})
    assert plain.text == expected.model_dump_json()
    assert len(plain.text) > CHUNK_CHARS * 2
    assert "content-length" not in plain.headers
    assert "content-encoding" not in plain.headers
    packed = server.http.get(address, params=fields, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept, Accept-Encoding"
    assert packed.text == plain.text
    head = server.http.head(address, params=fields)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["rtprune-pages"] == f"total={NUM_PAGES}, failed=1, incomplete=0"


@pytest.mark.parametrize("media_type", ["text/markdown", "text/plain"])
def test_text_is_the_same_compressed(server: Server, job_id: str, media_type: str) -> None:
    address = f"/v1/jobs/{job_id}/result"
    texts = [
        server.http.get(address, headers={"Accept": media_type, "Accept-Encoding": coding}).text
        for coding in ("gzip", "identity")
    ]
    assert texts[0] == texts[1]
    assert texts[0].count("and more") == (NUM_PAGES - 1) * 300


def test_small_results_have_a_length_and_are_not_compressed(server: Server) -> None:
    answer = server.parse(pdf_bytes(A4), dpi=36)
    assert "content-encoding" not in answer.headers
    assert int(answer.headers["content-length"]) == len(answer.content)
    json.loads(answer.text)


def test_a_result_whose_pages_go_while_it_is_sent_is_broken_off(job_id: str, store: Store) -> None:
    job = store.job(job_id)
    result = Result("partial", job, {}, "", ('{"markdown":"', '","pages":[', "]}"), NUM_PAGES + 1)
    with pytest.raises(Expired):
        list(result.pieces(store))


def test_nothing_large_is_serialised_by_one_call(job_id: str, store: Store) -> None:
    frame = ('{"markdown":"', '","pages":[', "]}")
    text = 'é"\n' * CHUNK_CHARS
    result = Result("partial", store.job(job_id), {}, text, frame, NUM_PAGES)
    pieces = list(result.pieces(store))
    assert max(map(len, pieces)) <= 2 * CHUNK_CHARS
    answer = json.loads("".join(map(str, pieces)))
    assert answer["markdown"] == text
    assert len(answer["pages"]) == NUM_PAGES


def test_large_results_share_few_threads_and_small_ones_do_not_wait_for_them(
    tmp_path: Path,
) -> None:
    is_open = threading.Event()
    threads: set[int] = set()

    def parts() -> Iterator[bytes]:
        threads.add(threading.get_ident())
        assert is_open.wait(60)
        yield b"part"

    async def run() -> None:
        results = Results(Jobs(Settings(data_dir=tmp_path), tmp_path), tmp_path)
        taken = [asyncio.ensure_future(anext(results.parts(parts(), is_large=True))) for _ in range(20)]
        assert await anext(results.parts(iter([b"small"]), is_large=False)) == b"small"
        assert len(threads) <= NUM_SENDING
        is_open.set()
        assert await asyncio.gather(*taken) == [b"part"] * 20
        assert len(threads) <= NUM_SENDING
        results.close()

    asyncio.run(run())


class SlowJobs:
    """Jobs whose documents are read as soon as the gate opens, and cannot be put together."""

    images = None

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.num_read = self.num_reading = self.most_reading = 0

    async def raise_if_no_document(self, job: Job) -> None: ...

    def read_document(self, job: Job) -> ParsedDocument:
        self.num_reading += 1
        self.most_reading = max(self.most_reading, self.num_reading)
        assert self.gate.wait(60)
        self.num_reading -= 1
        self.num_read += 1
        raise Expired("gone")


def test_what_is_made_for_clients_that_left_is_not_more_at_a_time(
    job_id: str, store: Store, tmp_path: Path
) -> None:
    job, jobs = store.job(job_id), SlowJobs()

    async def run() -> None:
        results = Results(cast("Jobs", jobs), tmp_path)
        for _ in range(5):
            leaving = [
                asyncio.create_task(results.of(job, FORMATS["text"], AnswerOptions())) for _ in range(4)
            ]
            await asyncio.sleep(0.01)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        last = asyncio.create_task(results.of(job, FORMATS["text"], AnswerOptions()))
        await asyncio.sleep(0.01)
        jobs.gate.set()
        with pytest.raises(Expired):
            await last
        results.close()

    asyncio.run(run())
    assert jobs.most_reading == 1
    assert jobs.num_read == 2, "the first, which had begun, and the last, whose client waited"


def test_pieces_are_gathered_and_none_is_lost() -> None:
    pieces = ["é" * 10, "", "x" * (CHUNK_CHARS * 2), "end"]
    parts = list(chunks(iter(pieces)))
    assert b"".join(parts).decode() == "".join(pieces)
    assert len(parts) == 3
    assert max(map(len, parts)) < CHUNK_CHARS * 2
    assert gzip.decompress(b"".join(compressed(parts))).decode() == "".join(pieces)


@pytest.mark.parametrize(
    ("accept", "taken"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("identity, *", False),
        ("x-gzip", True),
    ],
)
def test_who_takes_gzip_says_so(accept: str | None, taken: bool) -> None:
    assert accepts_gzip(accept) == taken
