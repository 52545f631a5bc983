"""Which addresses may be reached in a stranger's name."""

import asyncio
import base64
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.documents.safe_http import SafeHttp
from app.errors import UrlFailed, UrlRefused
from app.jobs.worker.webhooks import signature
from app.settings import Settings, webhook_keys


def check(url: str, **settings: str) -> str:
    """The address that would be connected to."""

    async def run() -> str:
        http = SafeHttp(Settings.model_validate(settings))
        try:
            _, address = await http.check(url)
        finally:
            await http.close()
        return address

    return asyncio.run(run())


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),  # noqa: S104
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "2130706433", "0x7f.1", "127.1"),
        *("[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "[::ffff:a00:1]", "[ff02::1]"),
        *("[64:ff9b::7f00:1]", "[64:ff9b:1::a00:1]", "[2002:7f00:1::]", "[::7f00:1]", "[::ffff:0:7f00:1]"),
        *("[fec0::1]", "192.0.0.192", "192.88.99.1", "a" * 70, "a..b"),
        *("168.63.129.16", "[3fff::1]", "[3fff:fff:ffff::1]", "[2001:db8::1]", "[2001::1]", "198.18.0.1"),
        *("[2001:4860::5efe:7f00:1]", "[2001:4860::200:5efe:a00:1]", "[100::1]", "[5f00::1]"),
        *("8.8.8.8:22", "8.8.8.8:8080", "[2001:4860:4860::8888]:6379", "8.8.8.8:0"),
    ],
)
def test_networks_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises((UrlRefused, UrlFailed)):
        check(f"http://{host}/x")


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://8.8.8.8/", "http://", "//8.8.8.8/", "http://u:p@8.8.8.8/", "x" * 3000),
        *("http://xn--/", "https://xn--a/x", "http://[::1", "http://8.8.8.8:99999/", "http://\x00/"),
    ],
)
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        check(url)


def test_public_and_allowed_addresses_are_reached() -> None:
    assert check("http://8.8.8.8/") == "8.8.8.8"
    assert check("https://[2001:4860:4860::8888]:8443/", url_ports="443,8443") == "2001:4860:4860::8888"
    assert check("https://8.8.8.8:22/", url_ports="any") == "8.8.8.8"
    assert check("http://10.1.2.3:9000/", url_allow="10.1.0.0/16, fd00::/8") == "10.1.2.3"
    with pytest.raises(UrlRefused):
        check("http://10.2.2.3/", url_allow="10.1.0.0/16")


def test_name_servers_that_hang_keep_nobody_from_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def resolve(*_: Any, **__: Any) -> list[Any]:
        released.wait()
        raise OSError("no answer")

    async def run() -> None:
        http = SafeHttp(Settings())
        waiting = [asyncio.create_task(http.check(f"http://{n}.example/")) for n in range(100)]
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)  # every thread would be taken
        released.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(answer, UrlRefused) for answer in answers)
        await http.close()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    asyncio.run(run())


def test_private_and_missing_names_are_told_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if host.startswith("missing"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    said: set[str] = set()
    for host in ("missing.example", "private.example"):
        with pytest.raises(UrlRefused) as refused:
            check(f"http://{host}/")
        said.add(str(refused.value))
    assert len(said) == 1


def test_a_domain_whose_name_server_hangs_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        if host.endswith("hangs.example"):
            released.wait()
            raise OSError("no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))]

    async def run() -> None:
        http = SafeHttp(Settings())
        waiting = [asyncio.create_task(http.check(f"http://{n}.hangs.example/")) for n in range(100)]
        await asyncio.sleep(0.1)
        assert (await http.check("http://answers.test/"))[1] == "8.8.8.8"
        released.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(answer, UrlRefused) for answer in answers)
        await http.close()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    asyncio.run(run())


def test_no_cookie_goes_to_anyone(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Cookie"])
            self.send_response(200)
            self.send_header("Set-Cookie", "secret=1; Path=/")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    async def run(url: str) -> None:
        http = SafeHttp(Settings.model_validate({"url_allow": "127.0.0.0/8"}))
        await http.download(url, tmp_path / "first")
        await http.download(url, tmp_path / "second")
        await http.close()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        asyncio.run(run(f"http://127.0.0.1:{server.server_port}/"))
        server.shutdown()
        serving.join()
    assert seen == [None, None]


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        addresses = ["8.8.8.8", "10.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UrlRefused):
        check("http://two-faced.example/")


def test_a_signature_depends_on_all_it_signs() -> None:
    known = signature(b"secret", "id", 1, b"body")
    others = [
        signature(b"other", "id", 1, b"body"),
        signature(b"secret", "id2", 1, b"body"),
        signature(b"secret", "id", 2, b"body"),
        signature(b"secret", "id", 1, b"body2"),
    ]
    assert known not in others
    assert known.startswith("v1,")


def test_networks_that_are_no_networks_end_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="url_allow"):
        Settings.model_validate({"url_allow": "everything"})


GOOD_SECRET = f"whsec_{base64.b64encode(bytes(24)).decode()}"


@pytest.mark.parametrize(
    "secret",
    [
        "short",
        "a plain password, as long as it may be",
        "whsec-a-long-enough-test-secret",
        f"whsec_{base64.b64encode(bytes(23)).decode()}",
        f"whsec_{base64.b64encode(bytes(65)).decode()}",
        f"{GOOD_SECRET} short",
        f"WHSEC_{base64.b64encode(bytes(32)).decode()}",
    ],
)
def test_a_secret_that_no_receiver_could_use_ends_the_start_and_is_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="openssl rand -base64 32") as refused:
        Settings.model_validate({"webhook_secret": secret})
    assert secret not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", ()),
        (GOOD_SECRET, (bytes(24),)),
        (f" {base64.b64encode(bytes(64)).decode()}\n", (bytes(64),)),
        (base64.b64encode(bytes(32)).decode().rstrip("="), (bytes(32),)),
        (f"{GOOD_SECRET} {base64.b64encode(b'x' * 30).decode()}", (bytes(24), b"x" * 30)),
    ],
)
def test_secrets_are_what_standard_webhooks_says(text: str, keys: tuple[bytes, ...]) -> None:
    assert webhook_keys(Settings.model_validate({"webhook_secret": text}).webhook_secret) == keys
