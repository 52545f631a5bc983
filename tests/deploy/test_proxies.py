"""The configurations of proxies in the documentation, run in front of a real service."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from service_client import A4, PATIENCE_S, ROOT, Server, answers, eventually, pdf_bytes, serving

HOST = {"Host": "ocr.example.com"}
LARGE = pdf_bytes(A4, A4) + b"\n%" + b"x" * 3 * 2**20
NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {server}
}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"trusted_proxies": "127.0.0.1", "allowed_hosts": "ocr.example.com"}
    with serving(tmp_path_factory.mktemp("data"), **settings) as started:
        yield started.wait_ready()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def nginx(server: Server, folder: Path, port: int) -> list[str]:
    # a worker of nginx is another user than root, and reaches no folder of the test's
    folder.chmod(0o755)
    text = (ROOT / "docs" / "nginx.conf").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(user + NGINX.format(folder=folder, server=text))
    return ["nginx", "-p", str(folder), "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")]


def caddy(server: Server, folder: Path, port: int) -> list[str]:
    text = (ROOT / "docs" / "Caddyfile").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    text = text.replace("http://ocr.example.com", f"http://ocr.example.com:{port}")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            eventually(lambda: process.poll() is not None or answers(port))
            assert process.poll() is None, (folder / "log").read_text()
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@pytest.mark.parametrize("proxy", [nginx, caddy], ids=["nginx", "caddy"])
def test_a_service_behind_a_proxy_of_the_documentation(
    proxy: Callable[[Server, Path, int], list[str]], server: Server, tmp_path: Path
) -> None:
    if shutil.which(proxy.__name__) is None:
        pytest.skip(f"{proxy.__name__} is not on this machine")
    port = free_port()
    with (
        running(proxy(server, tmp_path, port), tmp_path, port),
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}/ocr", headers=HOST, timeout=PATIENCE_S, trust_env=False
        ) as client,
    ):
        # large uploads pass, links are those that the client can follow
        accepted = client.post("/v1/jobs", files={"file": LARGE}, data={"prompt": '{"delay_s": 0.5}'})
        assert accepted.status_code == 202, accepted.text
        links = accepted.json()["links"]
        assert links["self"].startswith("/ocr/v1/jobs/")
        # events come while pages are still read
        with client.stream("GET", links["events"].removeprefix("/ocr")) as events:
            first = next(line for line in events.iter_lines() if line.startswith("event: "))
            assert first == "event: page"
        result = links["result"].removeprefix("/ocr")
        assert eventually(lambda: client.get(result).status_code == 200)
        # too large is said by the proxy or the service, before it is all read
        assert client.post("/v1/parse", files={"file": b"x" * 70 * 2**20}).status_code == 413
