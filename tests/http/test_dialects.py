"""Other services' dialects without their clients: what is refused, whose what is, how figures stand."""

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from service_client import A4, Server, eventually, image_bytes, pdf_bytes, serving
from websockets.sync.client import connect

from app.document import Block, Figure, PageResult, ParsedDocument
from app.errors import NotFound
from app.http.dialects import Ticket
from app.http.routes.mistral import ocr_answer
from app.http.routes.openai import unsent
from app.http.schemas.mistral import OcrBody
from app.http.schemas.openai import ChatBody
from app.jobs.keys import open_keys
from app.output.embedding import Embedding
from app.settings import Settings

TASK = "Task not found."


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, httpx.Client, httpx.Client]]:
    """A service, and two clients of it with keys of their own."""
    data_dir = tmp_path_factory.mktemp("data")
    with open_keys(Settings(data_dir=data_dir)) as keys:
        secrets = [keys.add(name, "submit") for name in ("ours", "theirs")]
    with serving(data_dir, max_files_per_client=2, max_upload_mib=1, queue_poll_s=0.02) as server:
        server.wait_ready()
        opened = [
            httpx.Client(
                base_url=server.http.base_url, headers={"X-Api-Key": secret}, timeout=120, trust_env=False
            )
            for secret in secrets
        ]
        yield server, opened[0], opened[1]
        for client in opened:
            client.close()


@pytest.fixture
def ours(clients: tuple[Server, httpx.Client, httpx.Client]) -> httpx.Client:
    return clients[1]


@pytest.fixture
def theirs(clients: tuple[Server, httpx.Client, httpx.Client]) -> httpx.Client:
    return clients[2]


def picture() -> bytes:
    """A page with a red picture on it, where the fake reader grounds a region."""
    image = Image.new("RGB", (100, 100), "white")
    ImageDraw.Draw(image).rectangle((20, 20, 60, 60), fill=(200, 40, 40))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def converted(client: httpx.Client, data: bytes, **options: Any) -> httpx.Response:
    return client.post("/v1/convert/file", files={"files": ("a.png", data)}, data=options)


def slow_job(client: httpx.Client) -> str:
    """A job that goes on until it is cancelled."""
    prompt = json.dumps({"delay_s": 100})
    job = client.post("/v1/jobs", files={"file": image_bytes()}, data={"prompt": prompt}).json()
    return str(job["id"])


# --- tickets


@given(st.lists(st.uuids(), min_size=1, max_size=32), st.dictionaries(st.text(), st.text(), max_size=3))
def test_a_ticket_says_what_it_was_made_of(ids: list[Any], answer: dict[str, str]) -> None:
    ticket = Ticket(tuple(one.hex for one in ids), answer)
    assert Ticket.read(str(ticket)) == ticket


@given(st.text(max_size=60))
def test_whatever_is_no_ticket_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        Ticket.read("t-" + text)


# --- docling-serve


def test_docling_contents_as_asked(ours: httpx.Client) -> None:
    formats = ["md", "json", "html", "text", "doctags"]
    found = converted(ours, pdf_bytes(A4, A4, A4), to_formats=formats, page_range=["2", str(2**63 - 1)])
    document = found.json()["document"]
    assert found.json()["status"] == "success"
    assert document["md_content"].startswith("# Page 2")
    assert "# Page 3" in document["md_content"]
    assert document["json_content"]["schema_name"] == "DoclingDocument"
    assert document["json_content"]["name"] == "a"
    assert "<h1>Page 2</h1>" in document["html_content"]
    assert document["text_content"].startswith("Page 2\n")
    assert document["doctags_content"].startswith("<doctag>")
    broken = converted(ours, pdf_bytes(A4, A4), md_page_break_placeholder="<!-- break -->")
    first, second = broken.json()["document"]["md_content"].split("\n\n<!-- break -->\n\n")
    assert (first[:8], second[:8]) == ("# Page 1", "# Page 2")
    clamped = converted(ours, pdf_bytes(A4, A4), page_range="2,10")
    assert clamped.json()["document"]["md_content"].startswith("# Page 2")


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, "<!-- image -->"),
        ({"image_export_mode": "embedded"}, "![](data:image/png;base64,"),
        ({"image_export_mode": "referenced"}, "/images/p1-1.png)"),
        ({"include_images": "false"}, None),
    ],
)
def test_docling_figures_as_asked(ours: httpx.Client, options: dict[str, str], reference: str | None) -> None:
    text = converted(ours, picture(), **options).json()["document"]["md_content"]
    assert "# Page 1" in text
    assert (reference in text) if reference else ("image" not in text)
    if reference is not None and reference.startswith("/images"):
        address = text.partition("](")[2].partition(")")[0]
        assert ours.get(address).headers["content-type"] == "image/png"


def test_docling_refuses_what_is_not_done_and_ignores_what_it_does_not_know(ours: httpx.Client) -> None:
    assert (
        converted(ours, image_bytes(), do_ocr="true", ocr_engine="easyocr", no_option="1").status_code == 200
    )
    for options in ({"do_picture_description": "true"}, {"to_formats": "yaml"}, {"target_type": "s3"}):
        refused = converted(ours, image_bytes(), **options)
        assert refused.status_code == 422
        assert next(iter(options)).removesuffix("_type") in refused.json()["detail"]
    for answer in (
        converted(ours, image_bytes(), target_type="presigned_url"),
        ours.post(
            "/v1/convert/source/async",
            json={
                "sources": [{"kind": "file", "base64_string": base64.b64encode(image_bytes()).decode()}],
                "target": {"kind": "presigned_url"},
            },
        ),
    ):
        assert answer.status_code == 400
        assert "artifact storage to be configured" in answer.json()["detail"]
    text = converted(ours, b"hello")
    assert (text.status_code, text.json()["code"]) == (415, "unsupported_format")
    local = ours.post("/v1/convert/source", json={"sources": [{"url": "http://127.0.0.1:1/a.pdf"}]})
    assert (local.status_code, local.json()["code"]) == (400, "url_refused")
    assert ours.post("/v1/convert/source", json={"sources": []}).status_code == 422


def test_docling_makes_a_zip_of_several_documents(ours: httpx.Client) -> None:
    files = [("files", ("a.png", picture())), ("files", ("../a.pdf", pdf_bytes(A4)))]
    options = {"to_formats": ["md", "json"], "image_export_mode": "referenced"}
    refused = ours.post("/v1/convert/file", files=files, data=options)
    assert (refused.status_code, "zip" in refused.json()["detail"]) == (400, True)
    packed = ours.post("/v1/convert/file", files=files, data=options | {"target_type": "zip"})
    assert packed.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        names = ["a/a.md", "a/a.json", "a/images/p1-1.png", "a_2/a_2.md", "a_2/a_2.json"]
        assert archive.namelist() == names
        assert "](images/p1-1.png)" in archive.read("a/a.md").decode()
        assert archive.read("a/images/p1-1.png").startswith(b"\x89PNG")


def test_a_docling_task_is_its_clients(ours: httpx.Client, theirs: httpx.Client) -> None:
    files = {"files": ("a.pdf", pdf_bytes(A4))}
    headers = {"Idempotency-Key": "one"}
    task = ours.post("/v1/convert/file/async", files=files, headers=headers).json()
    again = ours.post("/v1/convert/file/async", files=files, headers=headers).json()
    assert task["task_id"] == again["task_id"]
    status = ours.get(f"/v1/status/poll/{task['task_id']}", params={"wait": 60}).json()
    assert (status["task_status"], status["task_meta"]["num_succeeded"]) == ("success", 1)
    result = ours.get(f"/v1/result/{task['task_id']}").json()
    assert result["document"]["filename"] == "a.pdf"
    for client, task_id in ((theirs, task["task_id"]), (ours, "0" * 32), (ours, "t-no")):
        for path in ("status/poll", "result"):
            missing = client.get(f"/v1/{path}/{task_id}")
            assert (missing.status_code, missing.json()["detail"]) == (404, TASK)
    open_id = slow_job(ours)
    early = ours.get(f"/v1/result/{open_id}")
    assert early.status_code == 404
    assert early.json()["detail"].startswith("Task result not found")
    ours.delete(f"/v1/jobs/{open_id}")
    ended = ours.get(f"/v1/status/poll/{open_id}").json()
    assert (ended["task_status"], ended["failure"]["category"]) == ("failure", "policy")
    assert ours.get("/v1/status/poll/x").status_code == 404


def test_a_websocket_tells_of_a_task_until_it_ends(
    clients: tuple[Server, httpx.Client, httpx.Client], ours: httpx.Client
) -> None:
    server = clients[0]
    key = ours.headers["x-api-key"]
    job_id = slow_job(ours)
    address = f"ws://127.0.0.1:{server.port}/v1/status/ws/{job_id}"
    with pytest.raises(websockets.InvalidStatus) as refused:
        connect(address)
    assert refused.value.response.status_code == 403
    with connect(f"{address}?api_key={key}") as socket:
        assert json.loads(socket.recv(60))["message"] == "connection"
        first = json.loads(socket.recv(60))
        assert (first["message"], first["task"]["task_id"]) == ("update", job_id)
        socket.send("next")
        ours.delete(f"/v1/jobs/{job_id}")
        while (last := json.loads(socket.recv(60)))["task"]["task_status"] in {"pending", "started"}:
            pass
        assert last["task"]["task_status"] == "failure"
        with pytest.raises(websockets.ConnectionClosedOK):
            socket.recv(60)
    other = clients[2].headers["x-api-key"]
    with connect(address, additional_headers={"X-Api-Key": other}) as socket:
        assert json.loads(socket.recv(60)) == {"message": "error", "task": None, "error": TASK}


# --- Mistral OCR


def test_mistral_files_are_their_clients(ours: httpx.Client, theirs: httpx.Client) -> None:
    data = pdf_bytes(A4, A4)
    file = ours.post("/v1/files", files={"file": ("a.pdf", data)}, data={"purpose": "ocr"}).json()
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(data), "a.pdf", "ocr")
    path = f"/v1/files/{file['id']}"
    assert ours.get(f"{path}/content").content == data
    assert [one["id"] for one in ours.get("/v1/files").json()["data"]] == [file["id"]]
    assert theirs.get("/v1/files").json()["data"] == []
    for missing in (
        theirs.get(path),
        theirs.get(f"{path}/content"),
        theirs.delete(path),
        ours.get("/v1/files/x"),
    ):
        assert (missing.status_code, missing.json()["object"]) == (404, "error")
    address = ours.get(f"{path}/url").json()["url"]
    named = {"type": "document_url", "document_url": address}
    read = ours.post("/v1/ocr", json={"model": "m", "document": named, "pages": "1"}).json()
    assert [page["index"] for page in read["pages"]] == [1]
    assert (read["model"], read["usage_info"]["doc_size_bytes"]) == ("m", len(data))
    assert theirs.post("/v1/ocr", json={"model": "m", "document": named}).status_code == 404
    other = ours.post("/v1/files", files={"file": image_bytes()}).json()
    third = ours.post("/v1/files", files={"file": image_bytes()})
    assert (third.status_code, third.json()["code"]) == (429, "too_many_files")
    for one in (file, other):
        assert ours.delete(f"/v1/files/{one['id']}").json()["deleted"] is True
    assert ours.get(path).status_code == 404


def test_mistral_options_are_honoured_or_refused(ours: httpx.Client) -> None:
    document = {"type": "image_url", "image_url": data_url(picture())}
    body: dict[str, Any] = {"model": "m", "document": document}
    plain = ours.post("/v1/ocr", json=body).json()["pages"][0]
    assert "image_base64" not in plain["images"][0]
    assert "![p1-1.png](p1-1.png)" in plain["markdown"]
    full = {"include_image_base64": True, "include_blocks": True, "confidence_scores_granularity": "page"}
    page = ours.post("/v1/ocr", json=body | full).json()["pages"][0]
    [image] = page["images"]
    assert image["image_base64"].startswith("data:image/png;base64,")
    assert image["top_left_x"] == 20
    assert page["blocks"][0]["image_id"] == image["id"]
    assert 0 < page["confidence_scores"]["average_page_confidence_score"] <= 1
    assert page["rtprune"]["tokens"]["kept"] > 0
    assert ours.post("/v1/ocr", json=body | {"image_limit": 0}).json()["pages"][0]["images"] == []
    assert ours.post("/v1/ocr", json=body | {"image_min_size": 99}).json()["pages"][0]["images"] == []
    for refused in (
        {"document_annotation_format": {"type": "json_schema"}},
        {"confidence_scores_granularity": "word"},
        {"no_option": 1},
        {"document": {"type": "document_url"}},
    ):
        answer = ours.post("/v1/ocr", json=body | refused)
        assert answer.status_code == 422, refused
        assert answer.json()["detail"][0]["msg"]
    assert ours.post("/v1/ocr", json=body | {"pages": "1-"}).status_code == 400


def test_mistral_parts_stand_apart_as_asked() -> None:
    table = '<table><tr><td>a|b</td><td>2</td></tr><tr><td colspan="2">c</td></tr></table>'
    blocks = (
        Block("page_header", (0, 0, 999, 20), "Annual report"),
        Block("image", (0, 100, 500, 500), "", "![x](images/p1-1.png)", Figure("p1-1.png", 50, 40)),
        Block("table", (0, 500, 999, 900), table),
        Block("page_number", (0, 980, 999, 999), "7"),
    )
    markdown = "\n\n".join(block.markdown or block.text for block in blocks)
    page = PageResult(0, 1000, 2000, markdown, blocks)
    document = ParsedDocument("0" * 32, "fake", "succeeded", (page,), {})
    embedding = Embedding(pytest.fail)

    def shown(**options: Any) -> Any:
        chunk = {"type": "file", "file_id": "x"}
        asked = OcrBody.checked({"model": None, "document": chunk, **options})
        return ocr_answer(document, asked, 1, embedding).pages[0]

    whole = shown(include_blocks=True)
    assert whole.markdown == markdown.replace("![x](images/p1-1.png)", "![p1-1.png](p1-1.png)")
    assert [block.type for block in whole.blocks] == ["header", "image", "table", "footer"]
    assert whole.blocks[1].bottom_right_y == 1001
    apart = shown(table_format="markdown", extract_header=True, extract_footer=True)
    assert (apart.header, apart.footer) == ("Annual report", "7")
    assert apart.markdown == "![p1-1.png](p1-1.png)\n\n[tbl-p1-1.md](tbl-p1-1.md)"
    assert apart.tables[0].content == "| a\\|b | 2 |\n| --- | --- |\n| c |  |"
    assert shown(table_format="html").tables[0].content == table


# --- OpenAI chat


def chat(data: bytes, **options: Any) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": data_url(data)}}
    return {"model": "m", "messages": [{"role": "user", "content": [image]}], **options}


def test_a_chat_streams_what_it_answers_whole(ours: httpx.Client) -> None:
    body = chat(pdf_bytes(A4, A4, A4))
    body["messages"][0]["content"] += chat(picture())["messages"][0]["content"]
    whole = ours.post("/v1/chat/completions", json=body).json()
    text = whole["choices"][0]["message"]["content"]
    assert text.count("# Page") == 4
    assert text.index("# Page 2") < text.index("# Page 3")
    assert whole["usage"]["total_tokens"] > whole["usage"]["completion_tokens"] > 0
    assert len(whole["rtprune"]["job_ids"]) == 2
    options = {"stream": True, "stream_options": {"include_usage": True}}
    sent = ours.post("/v1/chat/completions", json=body | options)
    assert sent.headers["content-type"].startswith("text/event-stream")
    data = [line[6:] for line in sent.text.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(one) for one in data]
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == text
    assert len([delta for delta in deltas if delta]) == 4, "a chunk a page"
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_a_chat_honours_what_vllm_is_sent(ours: httpx.Client) -> None:
    raw = ours.post("/v1/chat/completions", json=chat(picture(), skip_special_tokens=False)).json()
    assert "<|ref|>image<|/ref|><|det|>" in raw["choices"][0]["message"]["content"]
    short = ours.post("/v1/chat/completions", json=chat(image_bytes(), max_tokens=2)).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 2
    arguments = {"ngram_size": 30, "window_size": 90, "whitelist_token_ids": [128821, 128822]}
    asked = ChatBody.checked(chat(b"", vllm_xargs=arguments, max_tokens=10**6))
    options = asked.fields(Settings()).options(Settings())
    assert options.read.ngram == (30, 90)
    assert options.read.ngram_exempt == (128821, 128822)
    as_text = ChatBody.checked(chat(b"", vllm_xargs={"whitelist_token_ids": "[7, 8]"}))
    assert as_text.fields(Settings()).options(Settings()).read.ngram_exempt == (7, 8)
    assert options.read.max_output_tokens == Settings().max_output_tokens
    parts = [{"type": "document_url", "document_url": data_url(pdf_bytes(A4))}]
    as_mistral = {"messages": [{"role": "user", "content": parts}]}
    assert ours.post("/v1/chat/completions", json=as_mistral).status_code == 200
    prompt = ChatBody.checked({"messages": [{"role": "user", "content": "<image>\nFree OCR."}]}).prompt
    assert prompt == "Free OCR."
    assert [model["id"] for model in ours.get("/v1/models").json()["data"]] == ["fake"]
    assert ours.get("/v1/models/fake").json()["object"] == "model"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"messages": [{"role": "user", "content": "hello"}]}, 400),
        ({"n": 2}, 400),
        ({"response_format": {"type": "json_object"}}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 1}]}]}, 400),
        ({"vllm_xargs": {"ngram_size": 9, "window_size": 8}}, 400),
    ],
)
def test_a_chat_refuses_in_openais_shape(ours: httpx.Client, change: dict[str, Any], status: int) -> None:
    refused = ours.post("/v1/chat/completions", json=chat(image_bytes()) | change)
    assert refused.status_code == status
    assert refused.json()["error"]["type"] == "invalid_request_error"


def streamed(ours: httpx.Client, directions: dict[str, Any], *pages: str) -> list[str]:
    """The pieces of a chat about a document, as the model writes them."""
    body = chat(pdf_bytes(*pages), stream=True, skip_special_tokens=False)
    body["messages"][0]["content"].append({"type": "text", "text": json.dumps(directions)})
    sent = ours.post("/v1/chat/completions", json=body).text
    data = [json.loads(line[6:]) for line in sent.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"].get("content") or "" for chunk in data for choice in chunk["choices"]]
    return [delta for delta in deltas if delta]


def test_tokens_are_streamed_as_they_are_decoded(ours: httpx.Client) -> None:
    text = "one two\nthree\u2028 \0 é four five"
    pieces = streamed(ours, {"text": text, "token_s": 0.1}, A4, A4)
    assert "".join(pieces) == f"{text}\n\n{text}"
    assert len(pieces) > 4


def test_a_page_that_is_read_again_is_shown_once(ours: httpx.Client) -> None:
    directions = {"loop": "one two two two", "text": "one two three", "token_s": 0.1}
    assert "".join(streamed(ours, directions, A4)) == "one two two two\nhree"


@pytest.mark.parametrize(
    ("sent", "text", "rest"),
    [
        ("", "all", "all"),
        ("one", "one two", " two"),
        ("one two", "one two", ""),
        ("one two two", "one two three", "\nhree"),
        ("one two", "one", ""),
        ("x", "", ""),
    ],
)
def test_what_was_sent_is_not_sent_again(sent: str, text: str, rest: str) -> None:
    assert unsent(sent, text) == rest


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_leaves_a_chat_cancels_it(ours: httpx.Client, stream: bool) -> None:
    known = {job["id"] for job in ours.get("/v1/jobs").json()["jobs"]}
    body = chat(image_bytes(), stream=stream)
    body["messages"][0]["content"].append({"type": "text", "text": json.dumps({"delay_s": 100})})

    def new_jobs() -> list[dict[str, Any]]:
        return [job for job in ours.get("/v1/jobs").json()["jobs"] if job["id"] not in known]

    if stream:
        with ours.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
            assert new_jobs()
    else:
        with pytest.raises(httpx.ReadTimeout):
            ours.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(60, read=2))
    [job] = eventually(new_jobs)
    assert eventually(lambda: ours.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled")


def test_a_chat_says_why_a_page_failed(ours: httpx.Client) -> None:
    body = chat(image_bytes())
    body["messages"][0]["content"].append({"type": "text", "text": json.dumps({"fail_on": [0]})})
    whole = ours.post("/v1/chat/completions", json=body)
    assert (whole.status_code, whole.json()["error"]["code"]) == (500, "page_failed")
    sent = ours.post("/v1/chat/completions", json=body | {"stream": True}).text
    assert '"code": "page_failed"' in sent
    assert "[DONE]" not in sent


# --- MinerU


def test_mineru_results_by_name(ours: httpx.Client) -> None:
    files = [("files", ("a.pdf", pdf_bytes(A4, A4))), ("files", ("a.png", picture()))]
    options = {
        "return_images": "true",
        "return_content_list": "true",
        "start_page_id": "0",
        "end_page_id": "0",
    }
    parsed = ours.post("/mineru/file_parse", files=files, data=options | {"lang_list": ["en", "ch"]}).json()
    assert parsed["status"] == "completed"
    assert parsed["file_names"] == list(parsed["results"]) == ["a", "a_2"]
    first, second = parsed["results"].values()
    assert first["md_content"].count("# Page") == 1
    assert second["images"]["p1-1.png"].startswith("data:image/png;base64,")
    [entry] = json.loads(second["content_list"])
    assert (entry["type"], entry["img_path"], entry["page_idx"]) == ("image", "images/p1-1.png", 0)
    again = ours.get(httpx.URL(parsed["result_url"]).raw_path.decode()).json()
    assert again["results"] == parsed["results"]


def test_mineru_tasks_fail_and_are_missing_as_its_clients_expect(
    ours: httpx.Client, theirs: httpx.Client
) -> None:
    job_id = slow_job(ours)
    going_on = ours.get(f"/mineru/tasks/{job_id}/result")
    assert (going_on.status_code, going_on.json()["message"]) == (202, "Task result is not ready yet")
    ours.delete(f"/v1/jobs/{job_id}")
    assert ours.get(f"/mineru/tasks/{job_id}").json()["status"] == "failed"
    assert ours.get(f"/mineru/tasks/{job_id}/result").status_code == 409
    missing = theirs.get(f"/mineru/tasks/{job_id}")
    assert (missing.status_code, missing.json()["detail"]) == (404, "Task not found")
    refused = ours.post(
        "/mineru/tasks", files={"files": image_bytes()}, data={"client_side_output_generation": "true"}
    )
    assert refused.status_code == 422


# --- Open WebUI, and all


def test_a_body_that_is_a_document_is_loaded(ours: httpx.Client) -> None:
    loaded = ours.put("/process", content=pdf_bytes(A4, A4), headers={"X-Filename": "a%20b.pdf"}).json()
    assert loaded["page_content"].startswith("# Page 1")
    assert (loaded["metadata"]["source"], loaded["metadata"]["num_pages"]) == ("a b.pdf", 2)
    refused = ours.put("/process", content=b"hello")
    assert (refused.status_code, "text" in refused.json()["detail"]) == (415, True)
    large = ours.put("/process", content=bytes(2**20 + 1))
    assert (large.status_code, large.json()["code"]) == (413, "too_large")


def test_one_health_satisfies_all(clients: tuple[Server, httpx.Client, httpx.Client]) -> None:
    server = clients[0]
    for path in ("/health", "/mineru/health"):
        health = server.http.get(path).json()
        assert (health["status"], health["protocol_version"]) == ("healthy", 2)
        assert health["max_concurrent_requests"] > 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/convert/file"),
        ("POST", "/v1/ocr"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/mineru/tasks"),
        ("PUT", "/process"),
    ],
)
def test_without_a_key_each_refuses_in_its_shape(
    clients: tuple[Server, httpx.Client, httpx.Client], method: str, path: str
) -> None:
    refused = clients[0].http.request(method, path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json().keys() & {"detail", "error", "object"}
