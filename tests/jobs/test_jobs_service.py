"""Jobs over HTTP: one API and one worker process, on SQLite and on PostgreSQL."""

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import postgres
import pytest
from jobs_client import Client, api
from service_client import A4, ENCRYPTED, PATIENCE_S, eventually, image_bytes, pdf_bytes
from standardwebhooks import Webhook, WebhookVerificationError
from web_site import Site

SECRETS = [
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
    base64.b64encode(b"the secret before, 24 to 64 bytes").decode(),
]
"""The newest, and the one before in its other form."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    url = ""
    if request.param == "postgresql":
        server: postgres.Postgres = request.getfixturevalue("postgres_server")
        url = server.create("service")
    settings = {"embedded_worker": True, "url_allow": "127.0.0.0/8", "webhook_secret": " ".join(SECRETS)}
    settings |= {"batch_pages": 3, "max_pages_in_flight": 8, "max_upload_mib": 1}
    with api(tmp_path_factory.mktemp("data"), url, **settings) as started:
        started.server.wait_ready()
        yield started


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()


def test_a_job_from_202_to_result(client: Client) -> None:
    response = client.submit(pdf_bytes(*[A4] * 7), dpi=36)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["status"] in {"queued", "running"}
    assert job["pages"]["total"] == 7
    ended = client.ended(job["id"])
    pages = {"total": 7, "done": 7, "failed": 0, "incomplete": 0}
    assert (ended["status"], ended["pages"]) == ("succeeded", pages)
    assert ended["timings"]["running_s"] >= 0
    assert ended["expires_at"] > ended["finished_at"]
    result = client.result(job["id"])
    parsed = client.server.parse(pdf_bytes(*[A4] * 7), dpi=36).json()
    for document in (result, parsed):
        del document["id"], document["timing_ms"]
        for page in document["pages"]:
            del page["timing_ms"]
    assert result == parsed, "the result is what /v1/parse answers"
    text = client.http.get(job["links"]["result"], headers={"Accept": "text/markdown"})
    assert text.text.startswith("# Page 1\n")
    assert text.headers["content-type"].startswith("text/markdown")
    data_dir = client.server.data_dir
    eventually(lambda: not [path for path in data_dir.glob("blobs/*/*") if path.is_file()])


def test_events_come_as_pages_do_and_replay(client: Client) -> None:
    job_id = client.accepted(pdf_bytes(*[A4] * 6), dpi=36, prompt={"delay_s": 0.2, "fail_on": [4]})
    first = client.events(job_id, limit=2)
    everything = client.events(job_id)
    assert [number for number, _, _ in everything] == list(range(1, 8))
    assert [name for _, name, _ in everything] == ["page"] * 6 + ["end"]
    assert everything[:2] == first
    assert sorted(page["index"] for _, name, page in everything if name == "page") == list(range(6))
    assert all(
        page["tokens"]["kept"] and page["markdown"] for _, _, page in everything[:6] if "error" not in page
    )
    assert everything[-1][2]["status"] == "partial"
    assert client.events(job_id, after=4) == everything[4:]
    assert client.events(job_id, after=7) == everything[6:]
    assert client.events(job_id, after=99) == everything[6:]
    empty = client.http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": ""})
    assert empty.text.count("event: page") == 6
    for last in ("x", "-1", "9" * 5000, "\N{FULLWIDTH DIGIT TWO}"):
        headers = {b"Last-Event-ID": last.encode()}
        answer = client.http.get(f"/v1/jobs/{job_id}/events", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_option")


def test_what_is_wrong_with_a_document_is_said_at_once(client: Client) -> None:
    refused = {
        "encrypted_pdf": client.submit(pdf_bytes(A4, trailer=ENCRYPTED)),
        "page_not_found": client.submit(pdf_bytes(A4), pages="3"),
        "bad_option": client.submit(image_bytes(), priority=10),
        "unsupported_format": client.submit(b"hello"),
        "not_found": client.http.get("/v1/jobs/none"),
    }
    assert {code: response.json()["code"] for code, response in refused.items()} == {
        code: code for code in refused
    }
    both = client.submit(image_bytes(), url="http://example.com/")
    neither = client.http.post("/v1/jobs", files={"x": b""}, data={"dpi": "72"})
    assert (both.status_code, neither.status_code) == (400, 400)


def test_a_result_is_shown_as_the_job_asked_or_as_asked_then(client: Client) -> None:
    prompt = {"text": r"So \(x<y\) it goes on"}
    job_id = client.accepted(pdf_bytes(A4, A4), prompt=prompt, dpi=36, math="dollar", page_marks="rule")
    client.ended(job_id)
    address = f"/v1/jobs/{job_id}/result"
    assert client.http.get(address).json()["markdown"] == "So $x<y$ it goes on\n\n---\n\nSo $x<y$ it goes on"
    text = client.http.get(f"{address}?math=latex&page_marks=none", headers={"Accept": "text/markdown"}).text
    assert text == "So \\(x<y\\) it goes on\n\nSo \\(x<y\\) it goes on\n"
    for query in ("math=tex", "dpi=72"):
        assert client.http.get(f"{address}?{query}").status_code in (400, 422)


def test_delete_cancels_within_a_moment_and_frees_the_model(client: Client) -> None:
    slow = [
        client.accepted(pdf_bytes(*[A4] * 8), dpi=36, prompt={"delay_s": 1000}, priority=n) for n in (1, 2)
    ]
    # one of them may have taken all the room there is
    eventually(lambda: any(client.job(job_id)["status"] == "running" for job_id in slow))
    for job_id in slow:
        job = client.http.delete(f"/v1/jobs/{job_id}").json()
        assert job["status"] == "cancelled"
    # eight pages are in flight at most: this is read only if the others left the model
    assert client.server.parse(pdf_bytes(*[A4] * 8), dpi=36).status_code == 200
    assert client.http.get(f"/v1/jobs/{slow[0]}/result").json()["code"] == "job_cancelled"
    assert client.events(slow[0])[-1][1] == "end"
    assert client.http.delete(f"/v1/jobs/{slow[0]}").status_code == 200, "again is no error"


def test_a_repeated_request_is_the_same_job(client: Client) -> None:
    data = image_bytes(size=(71, 40))
    first = client.accepted(data)
    assert client.accepted(data) != first, "without API keys, the same address may be another client's"
    key = {"Idempotency-Key": "k1"}
    keyed = client.submit(data, headers=key).json()["id"]
    assert keyed != first
    assert client.submit(data, headers=key).json()["id"] == keyed
    conflict = client.submit(image_bytes(size=(72, 40)), headers=key)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "idempotency_conflict")
    client.ended(keyed)
    assert client.submit(data, headers=key).json()["id"] == keyed, "after it ended, too"
    parsed = [client.server.parse(data, headers={"Idempotency-Key": "k2"}).json()["id"] for _ in range(2)]
    assert parsed[0] == parsed[1]


def test_a_result_asked_for_too_early_says_when_to_come_again(client: Client) -> None:
    job_id = client.accepted(image_bytes(size=(73, 40)), prompt={"delay_s": 1000})
    early = client.http.get(f"/v1/jobs/{job_id}/result")
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")
    assert int(early.headers["retry-after"]) >= 1
    client.http.delete(f"/v1/jobs/{job_id}")


def test_jobs_are_listed_by_pages(client: Client) -> None:
    ids = [client.accepted(image_bytes(size=(80 + number, 40))) for number in range(5)]
    address: str | None = "/v1/jobs?limit=2"
    seen: list[str] = []
    while address is not None:
        page = client.http.get(address).json()
        seen += [job["id"] for job in page["jobs"]]
        address = page.get("next")
    assert seen[:5] == ids[::-1]
    assert len(set(seen)) == len(seen)
    client.ended(ids[-1])
    [listed] = client.http.get("/v1/jobs?limit=1").json()["jobs"]
    assert listed.keys() == client.http.get(f"/v1/jobs/{listed['id']}").json().keys()
    for cursor in (b"nonsense", b"1 \0", b"\xff", b"nan " + b"0" * 32):
        after = base64.urlsafe_b64encode(cursor).decode()
        assert client.http.get("/v1/jobs", params={"after": after}).status_code == 400
    for query in ("limit=1000", "status=lost", "state=running"):
        refused = client.http.get(f"/v1/jobs?{query}")
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert query.partition("=")[0] in refused.json()["detail"]


@pytest.mark.parametrize("name", ["%00", "a%00b", "%ff", "%ed%a0%80", "..", "x" * 5000])
def test_what_is_no_id_is_not_found(client: Client, name: str) -> None:
    for address in (name, f"{name}/events", f"{name}/result"):
        assert client.http.get(f"/v1/jobs/{address}").json()["code"] == "not_found"


def test_who_will_not_wait_at_all_gets_a_job(client: Client) -> None:
    at_once = client.server.parse(image_bytes(size=(78, 40)), wait_seconds=0, prompt={"delay_s": 0.5})
    assert at_once.status_code == 202
    assert client.ended(at_once.json()["id"])["status"] == "succeeded"


def test_parse_gives_a_job_to_who_has_waited_enough(client: Client) -> None:
    late = client.server.parse(image_bytes(size=(74, 40)), wait_seconds=0.2, prompt={"delay_s": 1.5})
    assert late.status_code == 202
    job = late.json()
    assert late.headers["location"] == job["links"]["self"]
    assert client.ended(job["id"])["status"] == "succeeded"
    assert client.result(job["id"])["id"] == job["id"]


def leave(client: Client, data: bytes, **fields: str) -> str:
    """Ask for slow pages and go away; the job that it was."""
    with pytest.raises(httpx.ReadTimeout):
        client.http.post(
            "/v1/parse",
            files={"file": data},
            data={"prompt": '{"delay_s": 2}', "dpi": "36", **fields},
            timeout=1,
        )
    [newest] = client.http.get("/v1/jobs?limit=1").json()["jobs"]
    return str(newest["id"])


def test_a_client_that_leaves_cancels_one_page_unless_it_asked_otherwise(client: Client) -> None:
    page, pages = image_bytes(size=(75, 40)), pdf_bytes(A4, A4)
    statuses = {
        "a page": leave(client, page),
        "a page to go on": leave(client, page, on_disconnect="continue"),
        "pages": leave(client, pages),
        "pages to cancel": leave(client, pages, on_disconnect="cancel"),
    }
    assert {name: client.ended(job_id)["status"] for name, job_id in statuses.items()} == {
        "a page": "cancelled",
        "a page to go on": "succeeded",
        "pages": "succeeded",
        "pages to cancel": "cancelled",
    }


def test_a_request_that_is_sent_again_keeps_its_job(client: Client) -> None:
    """Its first sender leaves while the second one waits."""

    def send(timeout_s: float) -> httpx.Response:
        return client.http.post(
            "/v1/parse",
            files={"file": image_bytes(size=(79, 40))},
            data={"prompt": '{"delay_s": 3}'},
            headers={"Idempotency-Key": "sent twice"},
            timeout=timeout_s,
        )

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, 1.5)
        time.sleep(0.5)
        second = pool.submit(send, PATIENCE_S)
        assert isinstance(first.exception(), httpx.ReadTimeout)
        assert second.result().status_code == 200


def test_a_large_document_does_not_starve_a_single_page(client: Client) -> None:
    large = client.accepted(pdf_bytes(*[A4] * 120), dpi=36, prompt={"delay_s": 0.2})
    eventually(lambda: client.done(large) > 0)
    assert client.server.parse(image_bytes(size=(76, 40))).status_code == 200
    assert client.server.parse(pdf_bytes(A4, A4), dpi=36).status_code == 200
    job = client.job(large)
    assert job["status"] == "running", "it is still at it"
    client.http.delete(f"/v1/jobs/{large}")


def test_a_document_by_address(client: Client, site: Site) -> None:
    site.pages["/a.pdf"] = (200, {}, pdf_bytes(A4, A4))
    site.pages["/hop"] = (302, {"Location": "/a.pdf"}, b"")
    site.pages["/loop"] = (302, {"Location": "/loop"}, b"")
    site.pages["/big"] = (200, {}, b"%PDF-" + bytes(2 * 2**20))
    site.pages["/in"] = (302, {"Location": "http://10.0.0.1/"}, b"")
    response = client.http.post("/v1/jobs", json={"url": f"{site.url}/hop", "dpi": 36})
    assert response.status_code == 202, response.text
    assert client.ended(response.json()["id"])["pages"]["done"] == 2
    codes = {
        path: client.http.post("/v1/jobs", json={"url": site.url + path}).json()["code"]
        for path in ("/none", "/loop", "/big", "/in")
    }
    assert codes == {"/none": "url_failed", "/loop": "url_failed", "/big": "too_large", "/in": "url_refused"}


def test_webhooks_are_signed_and_retried(client: Client, site: Site) -> None:
    site.statuses = [500, 503]
    job_id = client.accepted(image_bytes(size=(77, 40)), webhook=f"{site.url}/hook")
    eventually(lambda: len(site.posted) == 3)
    for secret in SECRETS:
        for headers, body in site.posted:
            told = Webhook(secret).verify(body, headers)
            assert told["type"] == "job.ended"
            assert (told["data"]["id"], told["data"]["status"]) == (job_id, "succeeded")
            assert told["data"]["pages"] == {"total": 1, "done": 1, "failed": 0, "incomplete": 0}
    headers, body = site.posted[-1]
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(body.replace(b"succeeded", b"cancelled"), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(base64.b64encode(b"another secret").decode()).verify(body, headers)
    assert {headers["webhook-id"] for headers, _ in site.posted} == {job_id}, "the same at every try"
    webhook = eventually(lambda: (hook := client.job(job_id)["webhook"])["status"] == "delivered" and hook)
    assert webhook["attempts"] == 3
    refused = client.submit(image_bytes(), webhook="http://192.168.0.1/")
    assert refused.json()["code"] == "url_refused"


def test_pages_of_every_job_are_counted_once(client: Client) -> None:
    name, failed = 'rtprune_pages_total{outcome="stop"}', 'rtprune_pages_total{outcome="page_failed"}'
    before = [client.server.metric(metric) for metric in (name, failed, "rtprune_visual_tokens_total")]
    job_id = client.accepted(pdf_bytes(*[A4] * 5), dpi=36, prompt={"fail_on": [3], "text": "counted"})
    client.ended(job_id)
    visual = sum(page["tokens"]["visual"] for page in client.result(job_id)["pages"] if page["tokens"])
    expected = [before[0] + 4, before[1] + 1, before[2] + visual]
    for _ in range(2):
        counted = [client.server.metric(metric) for metric in (name, failed, "rtprune_visual_tokens_total")]
        assert counted == expected


def test_the_queue_is_in_the_metrics(client: Client) -> None:
    client.server.parse(image_bytes())
    assert client.server.metric("rtprune_pages_per_second") > 0
    assert client.server.metric("rtprune_worker_ready") == 1
