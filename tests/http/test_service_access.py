"""API keys, names, origins and proxies, against real servers."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from jobs_client import Client, environment
from service_client import A4, ROOT, Server, eventually, image_bytes, pdf_bytes, serving

from app.jobs.keys import open_keys
from app.settings import Settings


def keys_command(data_dir: Path, *arguments: str, database_url: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "keys", *arguments]
    env = environment(data_dir, database_url)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def make_keys(data_dir: Path) -> dict[str, str]:
    """A key for each purpose, by name."""
    with open_keys(Settings(data_dir=data_dir)) as keys:
        return {
            "ann": keys.add("ann"),
            "ann-reads": keys.add("ann-reads", "read", owner="ann"),
            "bob": keys.add("bob"),
            "admin": keys.add("admin", "admin"),
            "few": keys.add("few", max_jobs=1),
            "slow": keys.add("slow", pages_per_minute=3),
            "gone": keys.add("gone"),
        }


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    data_dir = tmp_path_factory.mktemp("keyed")
    secrets = make_keys(data_dir)
    with open_keys(Settings(data_dir=data_dir)) as keys:
        assert keys.revoke("gone")
        assert not keys.revoke("gone")
    with serving(data_dir) as server:
        yield server.wait_ready(), secrets


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def submitted(server: Server, secret: str, data: bytes = b"", **fields: str) -> httpx.Response:
    files = {"file": data or image_bytes()}
    return server.http.post("/v1/jobs", files=files, data=fields, headers=bearer(secret))


# --- keys


def test_without_a_key_only_what_tells_nothing_is_answered(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    document = server.http.get("/openapi.json").json()
    for path, verbs in document["paths"].items():
        for verb in verbs:
            for headers in ({}, bearer("rtp_made-up"), {"X-API-Key": "x" * 9000}, bearer(secrets["gone"])):
                answer = server.http.request(verb, path.replace("{job_id}", "0" * 32), headers=headers)
                if path in {"/livez", "/readyz", "/health", "/mineru/health"}:
                    assert answer.status_code == 200
                    continue
                problem = answer.json()  # in which a dialect's own shape has the code, too
                code = problem.get("error", problem)["code"]
                assert (answer.status_code, code) == (401, "unauthorized"), (verb, path)
                assert answer.headers["www-authenticate"] == "Bearer"
    page = server.http.get("/docs")
    assert page.status_code == 200
    assert "API key" in page.text


def test_both_headers_carry_a_key(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    for headers in (
        bearer(secrets["ann"]),
        {"X-API-Key": secrets["ann"]},
        {"Authorization": f"bearer  {secrets['ann']}"},
    ):
        assert server.http.get("/v1/jobs", headers=headers).status_code == 200


def test_a_job_belongs_to_its_key_and_others_do_not_find_it(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    job = submitted(server, secrets["ann"], image_bytes(size=(51, 40))).json()
    address = job["links"]["self"]
    eventually(
        lambda: server.http.get(f"{address}/result", headers=bearer(secrets["ann"])).status_code == 200
    )
    images = (f"{address}/images/p1.jpg", f"{address}/pages/1/image")
    for path in (address, f"{address}/result", f"{address}/events", *images):
        for name in ("ann", "ann-reads", "admin"):
            assert server.http.get(path, headers=bearer(secrets[name])).status_code == 200, (path, name)
        others = server.http.get(path, headers=bearer(secrets["bob"]))
        missing = server.http.get(path.replace(job["id"], "0" * 32), headers=bearer(secrets["bob"]))
        assert (others.status_code, others.json()["detail"]) == (404, missing.json()["detail"])
    assert server.http.delete(address, headers=bearer(secrets["bob"])).status_code == 404

    def listed(name: str) -> list[str]:
        jobs = server.http.get("/v1/jobs?limit=100", headers=bearer(secrets[name])).json()["jobs"]
        return [one["id"] for one in jobs]

    assert job["id"] in listed("ann")
    assert job["id"] in listed("ann-reads")
    assert job["id"] in listed("admin")
    assert job["id"] not in listed("bob")


def test_scopes(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    for method, path in (("POST", "/v1/jobs"), ("POST", "/v1/parse"), ("DELETE", f"/v1/jobs/{'0' * 32}")):
        files = {"file": image_bytes()} if method == "POST" else None
        answer = server.http.request(method, path, files=files, headers=bearer(secrets["ann-reads"]))
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    for path in ("/v1/jobs", "/metrics"):
        assert server.http.get(path, headers=bearer(secrets["ann-reads"])).status_code == 200


def test_the_same_document_is_the_same_job_for_its_owner_alone(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    data = image_bytes(size=(52, 40))
    ids = [submitted(server, secrets[name], data).json()["id"] for name in ("ann", "ann", "bob")]
    assert ids[0] == ids[1]
    assert ids[1] != ids[2]
    keys = [{**bearer(secrets[name]), "Idempotency-Key": "same"} for name in ("ann", "bob")]
    both = [server.http.post("/v1/jobs", files={"file": data}, headers=key).json()["id"] for key in keys]
    assert both[0] != both[1]


def test_a_key_has_limits_of_its_own(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    held = submitted(server, secrets["few"], image_bytes(size=(53, 40)), prompt='{"delay_s": 1000}')
    assert held.status_code == 202
    more = submitted(server, secrets["few"], image_bytes(size=(54, 40)))
    assert (more.status_code, more.json()["code"]) == (429, "too_many_jobs")
    server.http.delete(held.headers["location"], headers=bearer(secrets["few"]))
    # in threads: what two requests see of the minute, only one may take
    sizes = [(55 + number, 40) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        statuses = list(
            pool.map(
                lambda size: submitted(server, secrets["slow"], image_bytes(size=size)).status_code, sizes
            )
        )
    assert sorted(statuses) == [202] * 3 + [429] * 3
    late = submitted(server, secrets["slow"], pdf_bytes(A4, A4))
    assert late.json()["code"] == "rate_limited"
    assert 1 <= int(late.headers["retry-after"]) <= 61
    assert submitted(server, secrets["bob"], pdf_bytes(A4, A4)).status_code == 202


def test_a_document_larger_than_a_minute_is_let_in_and_paid_for(tmp_path: Path) -> None:
    with open_keys(Settings(data_dir=tmp_path)) as keys:
        secret = keys.add("slow", pages_per_minute=2)
    with serving(tmp_path) as server:
        assert submitted(server, secret, pdf_bytes(*[A4] * 6)).status_code == 202
        refused = submitted(server, secret)
        assert refused.status_code == 429
        assert 120 < int(refused.headers["retry-after"]) <= 181, "until what is owed leaves room for a page"


def test_keys_are_made_listed_and_revoked_while_the_service_runs(database_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, database_url=database_url) as server:
        assert server.http.get("/v1/jobs").status_code == 200, "open, on this machine"
        added = keys_command(tmp_path, "add", "ann", "--scope", "admin", database_url=database_url)
        assert added.returncode == 0, added.stderr
        secret = added.stdout.strip()
        assert added.stdout == f"{secret}\n"
        eventually(lambda: server.http.get("/v1/jobs").status_code == 401)
        assert server.http.get("/v1/jobs", headers=bearer(secret)).status_code == 200
        again = keys_command(tmp_path, "add", "ann", database_url=database_url)
        assert again.returncode == 2
        assert "ann" in again.stderr
        listed = keys_command(tmp_path, "list", database_url=database_url).stdout
        assert "ann\tann\tadmin" in listed
        assert secret not in listed
        assert keys_command(tmp_path, "revoke", "ann", database_url=database_url).returncode == 0
        eventually(lambda: server.http.get("/v1/jobs", headers=bearer(secret)).status_code == 401)
        assert server.http.get("/v1/jobs").status_code == 401, "the last key's end opens nothing"
    if not database_url:
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("jobs.sqlite*"))
        assert secret.encode() not in stored


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "x" * 65])
def test_what_is_no_name_makes_no_key(tmp_path: Path, name: str) -> None:
    with open_keys(Settings(data_dir=tmp_path)) as keys:
        with pytest.raises(ValueError, match="name"):
            keys.add(name)
        assert keys.all() == []


# --- without keys


def serve_command(data_dir: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "serve"]
    env = environment(data_dir, "", port=0, **settings)
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_service_without_keys_does_not_listen_beyond_this_machine(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::"):  # noqa: S104
        refused = serve_command(tmp_path, host=host)
        assert refused.returncode == 2
        [line] = [line for line in refused.stderr.splitlines() if not line.startswith("{")]
        assert "rtprune keys add" in line
        assert "RTPRUNE_ALLOW_OPEN" in line


def test_it_does_when_that_is_allowed_and_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, host="0.0.0.0", allow_open="true") as server:  # noqa: S104
        warnings = [line for line in server.log if line["level"] == "warning"]
        assert any("no API keys" in line["message"] for line in warnings)
        # compose's and Kubernetes' names of services, their addresses, probes by any name
        for host in ("api:8000", "10.0.0.7:8000", "[fd00::1]:8000", "rtprune-api.default.svc", "localhost"):
            assert server.http.get("/v1/jobs", headers={"Host": host}).status_code == 200, host
        assert server.http.get("/v1/jobs", headers={"Host": "rebound.example.com"}).status_code == 421
        assert server.http.get("/livez", headers={"Host": "rebound.example.com"}).status_code == 200


def test_it_does_with_a_key(tmp_path: Path) -> None:
    with open_keys(Settings(data_dir=tmp_path)) as keys:
        secret = keys.add("ann")
    with serving(tmp_path, host="0.0.0.0") as server:  # noqa: S104
        assert server.http.get("/v1/jobs").status_code == 401
        named = {**bearer(secret), "Host": "ocr.example.com"}
        assert server.http.get("/v1/jobs", headers=named).status_code == 200, "a page elsewhere has no key"


def test_a_made_up_key_passes_no_limit(tmp_path: Path) -> None:
    with serving(tmp_path, max_jobs_per_client=2) as server:
        client = Client(server)
        slow = {"prompt": {"delay_s": 1000}}
        for number in range(3):
            headers = bearer(f"made up {number}")
            answer = client.submit(image_bytes(size=(60 + number, 40)), headers=headers, **slow)
            assert answer.status_code == (202 if number < 2 else 429)


# --- names, origins, proxies


def test_a_web_page_cannot_rebind_its_name_to_a_local_service(server: Server) -> None:
    for host in (
        "rebound.example.com",
        "rebound.example.com:8000",
        "10.1.2.3",
        "api",
        "",
        "localhost.evil.com",
    ):
        answer = server.http.get("/v1/jobs", headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (421, "host_refused"), host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8000", "127.8.8.8", "app.localhost"):
        assert server.http.get("/v1/jobs", headers={"Host": host}).status_code == 200, host


def test_a_web_page_elsewhere_cannot_send_documents_to_a_local_service(server: Server) -> None:
    for origin in ("https://evil.example", "null", f"http://127.0.0.1.evil.example:{server.port}"):
        answer = server.http.post("/v1/jobs", files={"file": image_bytes()}, headers={"Origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), origin
        assert "access-control-allow-origin" not in answer.headers
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.http.post("/v1/jobs", files={"file": image_bytes()}, headers=own).status_code == 202


def test_names_origins_and_proxies_that_are_set(tmp_path: Path) -> None:
    settings = {
        "allowed_hosts": "ocr.example.com, *.example.org",
        "cors_origins": "https://app.example.com",
        "trusted_proxies": "127.0.0.1,10.0.0.0/8",
        "max_jobs_per_client": 1,
    }
    with serving(tmp_path, **settings) as server:
        server.wait_ready()
        for host, status in (("ocr.example.com", 200), ("a.example.org:1", 200), ("example.org", 421)):
            assert server.http.get("/v1/jobs", headers={"Host": host}).status_code == status, host
        assert_cors(server)
        assert_prefix(server)
        assert_clients_behind_a_proxy(server)


def assert_cors(server: Server) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = server.http.options("/v1/jobs", headers={"Origin": "https://app.example.com", **asked})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"
    refused = server.http.options("/v1/jobs", headers={"Origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
    seen = server.http.get("/v1/jobs", headers={"Origin": "https://app.example.com"})
    assert (seen.status_code, seen.headers["access-control-allow-origin"]) == (200, "https://app.example.com")
    assert "Location" in seen.headers["access-control-expose-headers"]


def assert_prefix(server: Server) -> None:
    for prefix, path in (("/ocr", "/v1/parse"), ("/ocr/", "/ocr/v1/parse"), ("/a/b", "/v1/parse")):
        root = prefix.rstrip("/")
        headers = {"X-Forwarded-Prefix": prefix}
        fields = {"prompt": '{"delay_s": 0.1}', "wait_seconds": "0"}
        answer = server.http.post(path, files={"file": image_bytes()}, data=fields, headers=headers)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert answer.headers["location"] == job["links"]["self"] == f"{root}/v1/jobs/{job['id']}"
        page = server.http.get("/docs", headers=headers).text
        assert f'action="{root}/v1/parse"' in page
        assert f'href="{root}/openapi.json"' in page
        assert server.http.get("/openapi.json", headers=headers).json()["servers"][0]["url"] == root
        listed = server.http.get("/v1/jobs?limit=1", headers=headers).json()
        assert listed.get("next", root).startswith(root)
        assert server.http.post(f"{root}/livez", headers=headers).headers["allow"] == "GET, HEAD"
        Client(server).ended(job["id"])
    for forged in ("//evil.example", "https://evil.example", "/a b", "/<script>"):
        page = server.http.get("/docs", headers={"X-Forwarded-Prefix": forged}).text
        assert 'action="/v1/parse"' in page


def assert_clients_behind_a_proxy(server: Server) -> None:
    """Each has its own limit of one job; what a client writes itself is nothing."""
    slow = {"prompt": '{"delay_s": 1000}'}
    statuses = [
        server.http.post(
            "/v1/jobs", files={"file": image_bytes()}, data=slow, headers={"X-Forwarded-For": forwarded}
        ).status_code
        for forwarded in ("8.8.8.8", "8.8.8.8", "1.1.1.1, 9.9.9.9", "2.2.2.2, 9.9.9.9, 10.0.0.1")
    ]
    assert statuses == [202, 429, 202, 429]


def test_strangers_forward_nothing(server: Server) -> None:
    headers = {"X-Forwarded-Prefix": "/ocr", "X-Forwarded-For": "8.8.8.8", "X-Forwarded-Proto": "https"}
    page = server.http.get("/docs", headers=headers).text
    assert 'action="/v1/parse"' in page
    assert "https://" not in page


def test_a_prefix_that_is_set_is_in_links(tmp_path: Path) -> None:
    with serving(tmp_path, root_path="/ocr") as server:
        for path in ("/v1/jobs", "/ocr/v1/jobs"):
            answer = server.http.post(path, files={"file": image_bytes()})
            assert answer.headers["location"].startswith("/ocr/v1/jobs/")
            assert server.http.get(answer.headers["location"]).status_code == 200
