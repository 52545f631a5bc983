"""What is answered, against a real server process with a real worker and the fake reader."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_client import A4, Server, eventually, image_bytes, pdf_bytes

from app.errors import all_errors
from app.http.schemas.parse import ParseFields
from app.output.formats import BY_MEDIA_TYPE


def post_json(server: Server, data: bytes, **fields: Any) -> httpx.Response:
    return server.http.post("/v1/parse", json={"file": base64.b64encode(data).decode(), **fields})


def test_answer_has_every_promised_field(server: Server) -> None:
    response = server.parse(pdf_bytes(A4, "/MediaBox[0 0 300 200]"))
    assert response.status_code == 200
    document = response.json()
    assert (document["status"], document["model"]) == ("succeeded", "fake")
    assert document["markdown"] == "\n\n".join(page["markdown"] for page in document["pages"])
    first, second = document["pages"]
    assert (first["index"], second["index"]) == (0, 1)
    assert (second["width"], second["height"], second["dpi"]) == (1250, 834, 300)
    assert first["dpi"] == 150
    assert set(first["tokens"]) == {
        *("visual", "kept", "retention", "patches", "kept_patches", "keep_ratio"),
        *("text_density", "diversity", "prompt", "output", "drafted", "accepted"),
    }
    assert set(first["timing_ms"]) == {
        *("queue", "rasterize", "preprocess", "encode", "prune", "prefill", "decode", "total")
    }
    assert first["attempts"][0]["mode"] == "base"
    assert first["finish_reason"] == "stop"
    assert document["usage"]["visual_tokens"] == sum(page["tokens"]["visual"] for page in document["pages"])
    assert document["usage"]["pages"] == 2
    assert document["timing_ms"]["total"] > 0


def test_fixation_reaches_the_reader_and_its_cost_is_told(server: Server) -> None:
    [page] = server.parse(pdf_bytes(A4), fixation=0.25).json()["pages"]
    tokens = page["tokens"]
    assert (tokens["attended_patches"], tokens["attended_share"]) == (0.25 * tokens["kept_patches"], 0.25)


def test_pages_share_prompts_as_asked_and_the_answer_says_so(server: Server) -> None:
    data = pdf_bytes(*[A4] * 5)
    pages = server.parse(data, pages_per_prompt=3).json()["pages"]
    assert [page["attempts"][-1]["pages"] for page in pages] == [2, 2, 3, 3, 3]
    assert [page["markdown"].splitlines()[0] for page in pages] == [f"# Page {n}" for n in range(1, 6)]


def test_pages_that_could_not_be_told_apart_say_how_they_were_read(server: Server) -> None:
    answer = server.parse(pdf_bytes(A4, A4), pages_per_prompt=2, prompt='{"apart": true}').json()
    assert answer["status"] == "succeeded"
    for page in answer["pages"]:
        assert [(one["pages"], one["reason"]) for one in page["attempts"]] == [(2, "asked"), (1, "apart")]
        assert page["markdown"].startswith(f"# Page {page['index'] + 1}")


def test_form_and_json_say_the_same(server: Server) -> None:
    options: dict[str, Any] = {
        "mode": "large",
        "keep_ratio": 0.5,
        "pages": "2",
        "dpi": 72,
        "max_output_tokens": 10,
    }
    data = pdf_bytes(A4, A4)
    form = server.parse(data, **options).json()
    from_json = post_json(server, data, **options).json()
    for document in (form, from_json):
        del document["id"], document["timing_ms"]
        del document["pages"][0]["timing_ms"]
    assert form == from_json
    assert form["pages"][0]["tokens"]["kept_patches"] == 200
    assert form["pages"][0]["index"] == 1
    assert form["pages"][0]["height"] == 842


def test_what_became_of_each_patch_token_is_told_to_who_asks(server: Server) -> None:
    [plain] = server.parse(pdf_bytes(A4)).json()["pages"]
    [page] = server.parse(pdf_bytes(A4), tokens="detail", keep_ratio=0.5).json()["pages"]
    assert "views" not in plain
    assert set(page) == {*plain, "views"}
    [view] = page["views"]
    assert view["columns"] * view["rows"] == page["tokens"]["patches"]
    assert len(view["kept"]) == page["tokens"]["kept_patches"]
    assert view["folded"][0] == [len(view["kept"]), 0, 0]


@pytest.mark.parametrize("spelling", ["plain", "escaped", "wrapped", "last"])
def test_json_may_spell_base64_in_its_own_ways(server: Server, spelling: str) -> None:
    text = base64.b64encode(image_bytes(size=(123, 45))).decode()
    assert "/" in text or "+" in text
    spelled = {
        "plain": text,
        "escaped": text.replace("/", "\\/").replace("+", "\\u002B"),
        "wrapped": "\\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        "last": text,
    }[spelling]
    body = (
        f'{{"file":"{spelled}","mode":"tiny"}}'
        if spelling != "last"
        else f'{{"mode":"tiny", "file" : "{spelled}"}}'
    )
    response = server.http.post("/v1/parse", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    assert response.json()["pages"][0]["width"] == 123
    assert response.json()["pages"][0]["mode"] == "tiny"


@pytest.mark.parametrize("media_type", ["text/markdown", "text/plain"])
def test_markdown_by_accept(server: Server, media_type: str) -> None:
    response = server.parse(pdf_bytes(A4, A4), headers={"Accept": media_type}, dpi=72)
    assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
    mark = "# " if media_type == "text/markdown" else ""
    assert response.text == "\n\n".join(f"{mark}Page {n}\n\n595 x 842 pixels" for n in (1, 2)) + "\n"


def test_blocks_and_hostile_text(server: Server) -> None:
    text = "<|ref|>title<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|># Hi <script>alert(1)</script>"
    page = server.parse(image_bytes(), prompt={"text": text}).json()["pages"][0]
    assert page["blocks"] == [
        {"type": "title", "bbox": [1, 2, 30, 40], "text": "# Hi <script>alert(1)</script>"}
    ]
    assert page["markdown"] == "# Hi &lt;script>alert(1)&lt;/script>"


def test_math_is_as_asked_for(server: Server) -> None:
    prompt = {"text": r"So \(x<y\) and `\(a\)`."}
    tex, dollars = r"So \(x<y\) and `\(a\)`.", r"So $x<y$ and `\(a\)`."
    for asked, shown in ((None, tex), ("latex", tex), ("dollar", dollars)):
        document = server.parse(image_bytes(), prompt=prompt, math=asked or "").json()
        assert document["markdown"] == document["pages"][0]["markdown"] == shown
    for asked, shown in ((None, dollars), ("latex", tex), ("dollar", dollars)):
        answer = server.parse(image_bytes(), {"Accept": "text/markdown"}, prompt=prompt, math=asked or "")
        assert answer.text == shown + "\n"


def test_a_gap_is_seen_in_text(server: Server) -> None:
    data, prompt = pdf_bytes(A4, A4, A4), {"fail_on": [1], "text": "Said."}
    said = {
        ("text/markdown", "comment"): "Said.\n\n<!-- page 2 was not read: page_failed -->\n\nSaid.\n",
        ("text/markdown", "none"): "Said.\n\nSaid.\n",
        ("text/plain", "comment"): "Said.\n\n[page 2 was not read: page_failed]\n\nSaid.\n",
    }
    for (media_type, marks), text in said.items():
        answer = server.parse(data, {"Accept": media_type}, prompt=prompt, page_marks=marks)
        assert answer.text == text


def test_a_failed_page_leaves_the_others(server: Server) -> None:
    response = server.parse(pdf_bytes(A4, A4, A4), prompt={"fail_on": [1]})
    assert response.status_code == 200
    document = response.json()
    assert document["status"] == "partial"
    failed = document["pages"][1]
    assert (failed["markdown"], failed["error"]["code"]) == ("", "page_failed")
    assert "error" not in document["pages"][0]
    assert document["usage"]["pages"] == 3


def test_a_lying_page_count_fails_the_pages_that_are_missing(server: Server) -> None:
    document = server.parse(pdf_bytes(A4, count=3)).json()
    assert document["status"] == "partial"
    assert [page.get("error", {}).get("code") for page in document["pages"]] == [
        None,
        *["unreadable_page"] * 2,
    ]


def test_documents_are_read_side_by_side(server: Server) -> None:
    sizes = [(50 + number, 20) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda size: server.parse(image_bytes(size=size), prompt={"delay_s": 0.3}), sizes)
        )
    assert [answer.json()["pages"][0]["width"] for answer in answers] == [width for width, _ in sizes]
    assert len({answer.json()["id"] for answer in answers}) == 8


def test_request_ids(server: Server) -> None:
    assert server.http.get("/livez", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    forged = server.http.get("/livez", headers={"X-Request-Id": 'x" y'}).headers["x-request-id"]
    assert forged.isalnum()
    eventually(lambda: any(line.get("request") == "abc-1" for line in server.log))


def test_metrics_count_pages_and_tokens(server: Server) -> None:
    before = server.metric("rtprune_visual_tokens_total")
    counts = server.parse(image_bytes()).json()["pages"][0]["tokens"]
    assert server.metric("rtprune_visual_tokens_total") - before == counts["visual"]
    assert server.metric('rtprune_pages_total{outcome="stop"}') > 0
    assert server.metric('rtprune_stage_seconds_count{stage="rasterize"}') > 0


def test_labels_do_not_come_from_requests(server: Server) -> None:
    server.http.get("/surprising-address")
    server.http.request("BREW", "/livez")
    text = server.http.get("/metrics").text
    assert "surprising" not in text
    assert "BREW" not in text


def test_docs_load_nothing_from_elsewhere(server: Server) -> None:
    page = server.http.get("/docs").text
    assert "/v1/parse" in page
    assert "src=" not in page
    assert "https://" not in page


def test_openapi_describes_bodies_answers_and_problems(server: Server) -> None:
    action = server.http.get("/openapi.json").json()["paths"]["/v1/parse"]["post"]
    bodies = action["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json", "application/octet-stream"}
    for body in (bodies["multipart/form-data"], bodies["application/json"]):
        assert set(body["schema"]["properties"]) == {"file", *ParseFields.model_fields}
        assert body["schema"]["required"] == ["file"]
    assert set(action["responses"]["200"]["content"]) == set(BY_MEDIA_TYPE)
    described = {
        code.partition(":")[0]
        for status, response in action["responses"].items()
        if status >= "400"
        for code in response["description"].split("; ")
    }
    assert described == {error.code for error in all_errors()}
    assert set(action["responses"]["413"]["content"]) == {"application/problem+json"}
    assert "JobShape" in str(action["responses"]["202"]["content"]["application/json"]["schema"])


def test_openapi_has_the_headers_and_types_that_jobs_and_events_have(server: Server) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    for action in (paths["/v1/parse"]["post"], paths["/v1/jobs"]["post"]):
        assert [header["name"] for header in action["parameters"]] == ["Idempotency-Key"]
    events = paths["/v1/jobs/{job_id}/events"]["get"]
    assert [parameter["name"] for parameter in events["parameters"]] == ["job_id", "Last-Event-ID"]
    for action in (events, paths["/metrics"]["get"]):
        [described] = action["responses"]["200"]["content"]
        address = "/metrics"
        if action is events:
            job_id = server.http.post("/v1/jobs", files={"file": image_bytes()}).json()["id"]
            address = f"/v1/jobs/{job_id}/events"
        for method in ("GET", "HEAD"):
            assert server.http.request(method, address).headers["content-type"].startswith(described)


def test_head_is_get_without_a_body(server: Server) -> None:
    for address in ("/livez", "/readyz", "/metrics", "/v1/jobs", "/docs", "/openapi.json", "/v1/jobs/none"):
        head, got = server.http.head(address), server.http.get(address)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    refused = server.http.options("/v1/jobs")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
    assert server.http.head("/v1/parse").headers["allow"] == "POST"


def test_the_api_process_has_no_model_code(server: Server) -> None:
    server.parse(image_bytes())
    try:
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    except PermissionError:
        pytest.skip("only root may look into a process that keeps its secrets")
    assert "pydantic_core" in maps
    assert "torch" not in maps


def test_a_mode_that_the_model_does_not_have_is_refused_at_once(server: Server) -> None:
    ready = server.http.get("/readyz").json()
    sandbox = ready.pop("sandbox")
    assert set(sandbox) == {"files", "network", "privileges"}
    assert ready.pop("worker_sandbox") == sandbox, "on one machine it is the same"
    assert ready == {
        "status": "ready",
        "phase": "ready",
        "model": "fake",
        "modes": ["base", "large", "small", "tiny"],
    }
    for address in ("/v1/jobs", "/v1/parse"):
        answer = server.http.post(address, files={"file": image_bytes()}, data={"mode": "huge"})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_option")
        assert "base, large, small, tiny" in answer.json()["detail"]


def test_what_is_said_of_a_document_is_said_with_the_first_page_that_is_read(server: Server) -> None:
    files = "/Names<</EmbeddedFiles<</Names[(a)<</Type/Filespec/F(a.txt)/EF<</F 3 0 R>>>>]>>>>"
    data = pdf_bytes(A4, A4, A4, catalog=files)
    for asked in ("1-3", "2-3"):
        pages = server.parse(data, pages=asked).json()["pages"]
        codes = [[warning["code"] for warning in page["warnings"]] for page in pages]
        assert codes == [["attachments_not_read"], *[[]] * (len(pages) - 1)]
