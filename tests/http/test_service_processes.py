"""Processes that die: the worker, the API, poppler. Nobody is left behind, and answers still come."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from service_client import A4, ROOT, Server, alive, descendants, eventually, image_bytes, pdf_bytes, serving

from app.documents.spool import Spool
from app.settings import misspelt_variables


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One page of a document at a time, so that a test knows which page is with the model."""
    limits = {"max_pages_in_flight": 1, "max_worker_rss_mib": 400, "worker_check_s": 0.1}
    limits |= {"worker_silence_s": 6, "max_restart_delay_s": 0.5}
    with serving(tmp_path_factory.mktemp("data"), **limits) as started:
        yield started


@pytest.fixture
def server(running: Server) -> Server:
    return running.wait_ready()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def num_read(server: Server, since: int, index: int) -> int:
    lines = list(server.log)[since:]
    return sum(line["message"] == "page" and line["index"] == index for line in lines)


def test_a_killed_worker_costs_no_answer_and_no_page_twice(server: Server, pool: ThreadPoolExecutor) -> None:
    since = len(server.log)
    answer = pool.submit(server.parse, pdf_bytes(A4, A4, A4), dpi=36, prompt={"delay_s": 0.7})
    eventually(lambda: num_read(server, since, 0))
    os.kill(server.worker_pid(), signal.SIGKILL)
    document = answer.result().json()
    assert document["status"] == "succeeded"
    assert [page["index"] for page in document["pages"]] == [0, 1, 2]
    # the answer may be here before the line that is logged of it
    eventually(lambda: all(num_read(server, since, index) for index in range(3)))
    assert [num_read(server, since, index) for index in range(3)] == [1, 1, 1]


def test_readiness_follows_the_worker_and_liveness_does_not(server: Server) -> None:
    os.kill(server.worker_pid(), signal.SIGKILL)
    statuses = set()

    def restarted() -> bool:
        assert server.http.get("/livez").status_code == 200
        statuses.add(server.http.get("/readyz").status_code)
        return statuses >= {200, 503} and server.http.get("/readyz").status_code == 200

    eventually(restarted)
    assert statuses == {200, 503}
    assert server.metric("rtprune_worker_ready") == 1


def test_a_page_that_kills_the_worker_fails_alone(server: Server, pool: ThreadPoolExecutor) -> None:
    innocent: list[Future[httpx.Response]] = [
        pool.submit(server.parse, pdf_bytes(A4, A4), dpi=36, prompt={"delay_s": 0.5}) for _ in range(3)
    ]
    eventually(lambda: server.metric("rtprune_documents_in_flight") == 3)
    guilty = server.parse(pdf_bytes(A4, A4, A4), dpi=36, prompt={"die_on": [1]}).json()
    assert guilty["status"] == "partial"
    assert [page.get("error", {}).get("code") for page in guilty["pages"]] == [None, "worker_lost", None]
    assert guilty["pages"][1]["height"] > 0
    assert [answer.result().json()["status"] for answer in innocent] == ["succeeded"] * 3


def test_a_worker_that_grows_is_restarted(server: Server) -> None:
    pid = server.worker_pid()
    response = server.parse(image_bytes(), prompt={"grow_mib": 600, "delay_s": 1000})
    assert response.json()["code"] == "worker_lost"
    assert not alive(pid)
    assert server.wait_ready().parse(image_bytes()).status_code == 200


def test_a_worker_that_hangs_is_restarted(server: Server) -> None:
    pid = server.worker_pid()
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: not alive(pid))
    assert server.wait_ready().parse(image_bytes()).status_code == 200


def test_a_killed_api_leaves_no_process(tmp_path: Path) -> None:
    server = Server(tmp_path).wait_ready()
    family = descendants(server.process.pid)
    assert len(family) >= 3, "a worker and two rasterizers"
    server.kill()
    eventually(lambda: not any(alive(pid) for pid in family))
    assert list(tmp_path.glob("spool/*"))
    with serving(tmp_path) as successor:
        successor.wait_ready()
        assert len(list(tmp_path.glob("spool/*"))) == 1, "what the dead one left is swept"


def stalling_poppler(folder: Path) -> dict[str, str]:
    """A PATH whose pdftoppm hangs, as poppler does on some files."""
    stall = folder / "pdftoppm"
    stall.write_text(
        '#!/bin/sh\nif [ "$1" = -v ]; then echo "pdftoppm version 22.12.0" >&2; exit; fi\nsleep 1000\n'
    )
    stall.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it ended while we looked


def stalled(server: Server) -> set[int]:
    """The processes of poppler that hang, once they do."""
    commands = {pid: command_of(pid) for pid in descendants(server.process.pid)}
    hanging = {pid for pid, command in commands.items() if b"sleep" in command or b"pdftoppm" in command}
    return hanging if any(b"sleep" in commands[pid] for pid in hanging) else set()


def test_a_hanging_poppler_is_killed_with_all_it_started(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    env = stalling_poppler(tmp_path)
    with serving(tmp_path / "data", env=env, rasterize_deadline_s=2) as server:
        server.wait_ready()
        answer = pool.submit(server.parse, pdf_bytes(A4))
        hanging = eventually(lambda: stalled(server))
        response = answer.result()
        assert (response.status_code, response.json()["code"]) == (422, "rasterize_timeout")
        eventually(lambda: not any(alive(pid) for pid in hanging))
        assert server.parse(image_bytes()).status_code == 200


def test_a_client_that_leaves_stops_poppler(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with serving(tmp_path / "data", env=stalling_poppler(tmp_path)) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.http.base_url, timeout=2, trust_env=False) as impatient:
            leaving = pool.submit(impatient.post, "/v1/parse", files={"file": pdf_bytes(A4)})
            hanging = eventually(lambda: stalled(server))
            assert isinstance(leaving.exception(), httpx.ReadTimeout)
        eventually(lambda: not any(alive(pid) for pid in hanging))


def test_poppler_hanging_dies_with_the_api(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    server = Server(tmp_path / "data", env=stalling_poppler(tmp_path)).wait_ready()
    answer = pool.submit(server.parse, pdf_bytes(A4))
    hanging = eventually(lambda: stalled(server))
    family = descendants(server.process.pid)
    assert hanging <= family
    server.kill()
    assert answer.exception() is not None
    eventually(lambda: not any(alive(pid) for pid in family))


def test_without_poppler_the_service_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, env={"PATH": str(tmp_path)}) as server:
        eventually(lambda: "poppler" in server.http.get("/readyz").json()["detail"])
        assert server.http.get("/readyz").status_code == 503
        response = server.parse(image_bytes())
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        eventually(lambda: server.metric("rtprune_worker_starts_total") > 1)
        assert server.http.get("/livez").status_code == 200


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, reader="model", model=str(tmp_path / "none")) as server:
        eventually(lambda: "cannot be loaded" in server.http.get("/readyz").json()["detail"])
        assert server.http.get("/readyz").json()["phase"] == "failed"
        assert server.http.get("/readyz").status_code == 503
        assert server.http.get("/livez").status_code == 200


def test_a_spool_in_use_is_not_swept(tmp_path: Path) -> None:
    first = Spool.open(tmp_path)
    with first.file() as path:
        path.write_bytes(b"x")
        Spool.open(tmp_path).close()
        assert path.exists()
    assert not path.exists()
    first.close()
    assert list((tmp_path / "spool").iterdir()) == []


def run_cli(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {"RTPRUNE_READER": "fake", "RTPRUNE_DATA_DIR": str(tmp_path / "data"), **env}
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_parse_from_the_command_line(tmp_path: Path) -> None:
    document, text = tmp_path / "a.pdf", tmp_path / "b.txt"
    document.write_bytes(pdf_bytes(A4, A4))
    text.write_text("hello")
    read = run_cli(tmp_path, "parse", str(document), "--pages", "2", "--dpi", "72")
    assert (read.returncode, read.stdout, read.stderr) == (0, "# Page 2\n\n595 x 842 pixels\n", "")
    both = run_cli(tmp_path, "parse", "--json", str(document), str(text))
    assert both.returncode == 1
    assert both.stdout.count("\n") == 1
    assert '"status":"succeeded"' in both.stdout
    assert "looks like text" in both.stderr
    assert run_cli(tmp_path, "parse", str(document), "--dpi", "1").returncode == 2
    assert list(tmp_path.glob("data/spool/*")) == []


def test_the_command_line_gives_up_when_nothing_can_be_read(tmp_path: Path) -> None:
    failed = run_cli(tmp_path, "parse", "x.pdf", PATH=str(tmp_path))
    assert failed.returncode == 1
    assert "poppler" in failed.stderr


def test_a_port_that_is_none_ends_the_start_with_a_message(tmp_path: Path) -> None:
    refused = run_cli(tmp_path, "serve", "--port", "99999")
    assert refused.returncode == 2
    assert "less than or equal to 65535" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("module", ["app.cli", "app.worker"])
def test_a_webhook_secret_that_is_none_ends_the_start_with_a_message(tmp_path: Path, module: str) -> None:
    environment = {**os.environ, "RTPRUNE_WEBHOOK_SECRET": "a plain old password", "RTPRUNE_PORT": "0"}
    command = [sys.executable, "-m", module, "serve"]
    refused = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode in {1, 2}
    assert "openssl rand -base64 32" in refused.stderr
    assert "plain old password" not in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_data_folder_that_cannot_be_ends_the_start_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run_cli(tmp_path, "serve", "--port", "0", RTPRUNE_DATA_DIR=str(tmp_path / "file" / "data"))
    assert refused.returncode == 2
    assert str(tmp_path / "file" / "data") in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_worker_says_which_setting_is_wrong() -> None:
    environment = {**os.environ, "RTPRUNE_BATCH_PAGES": "none"}
    command = [sys.executable, "-m", "app.worker"]
    refused = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert "RTPRUNE_BATCH_PAGES" in refused.stderr or "batch_pages" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_misspelt_setting_is_told() -> None:
    assert misspelt_variables(["RTPRUNE_MAX_PAGE", "RTPRUNE_MAX_PAGES", "RTPRUNE_WORKER_ID", "PORT"]) == [
        "RTPRUNE_MAX_PAGE is no setting; did you mean RTPRUNE_MAX_PAGES?"
    ]
    assert misspelt_variables(["RTPRUNE_ZZ"]) == ["RTPRUNE_ZZ is no setting"]


def test_the_api_imports_no_model_code() -> None:
    code = (
        "import sys, app.cli, app.main; app.main.create_app();"
        "sys.exit(bool({'torch', 'transformers', 'rtprune', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_nobody_else_can_read_what_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        server.wait_ready()
        assert server.parse(pdf_bytes()).status_code == 200
        modes = {path: path.stat().st_mode & 0o077 for path in (data, *data.rglob("*"))}
    assert len(modes) > 3
    assert [str(path) for path, others in modes.items() if others] == []


FRAGMENTED = """
import os
from app.processes import give_back_freed_memory, resident_mib
kept = [bytes(1000) for _ in range(100_000)]
kept = kept[::1000]
before = resident_mib(os.getpid())
give_back_freed_memory()
print(before - resident_mib(os.getpid()))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what other C libraries keep is not known")
def test_freed_memory_goes_back_to_the_system_though_some_of_it_is_in_use() -> None:
    command = [sys.executable, "-c", FRAGMENTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 50
