"""Addresses that clients name, in a whole service: 127.0.0.2 plays the public network, 127.0.0.1 the private
one, which nothing may reach; names lead where they like.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_client import Client, api
from service_client import eventually, image_bytes
from strangers import Stranger, names, num_asked, stranger

PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"
NAMES = {
    "moves.example": [PUBLIC, PRIVATE],
    "moves-once-posted.example": [PUBLIC, PRIVATE],
    "private.example": [PRIVATE],
    "public.example": [PUBLIC],
}
SETTINGS: dict[str, Any] = {"embedded_worker": True, "url_allow": f"{PUBLIC}/32", "webhook_secret": "s" * 32}


@pytest.fixture
def public() -> Iterator[Stranger]:
    with stranger(image_bytes(size=(90, 40)), PUBLIC) as running:
        yield running


@pytest.fixture
def private(public: Stranger) -> Iterator[Stranger]:
    """On the same port, so that an address differs by its host alone."""
    with stranger(image_bytes(size=(91, 40)), PRIVATE, public.port) as running:
        yield running


@pytest.fixture
def resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in names(tmp_path / "names", NAMES).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "names"


@pytest.fixture
def client(resolver: Path, tmp_path: Path) -> Iterator[Client]:
    with api(tmp_path / "data", webhook_attempts=2, url_deadline_s=5, **SETTINGS) as started:
        started.server.wait_ready()
        yield started


def fetch(client: Client, url: str) -> tuple[int, str]:
    """Status and, if it is an error, its code."""
    answer = client.http.post("/v1/jobs", files={"url": (None, url)})
    return answer.status_code, answer.json().get("code", "")


def test_a_name_that_moves_leads_to_the_address_that_was_checked(
    client: Client, resolver: Path, public: Stranger, private: Stranger
) -> None:
    url = f"http://moves.example:{public.port}/document"
    assert fetch(client, url) == (202, "")
    assert num_asked(resolver, "moves.example") == 1, "what was checked is what is connected to"
    assert public.asked == ["/document"]
    assert fetch(client, url)[1] == "url_refused", "it leads elsewhere now"
    assert private.asked == []


def test_redirects_of_documents_are_checked_at_every_hop(
    client: Client, public: Stranger, private: Stranger
) -> None:
    start, port = f"http://public.example:{public.port}/to?where=", public.port
    for where in (
        f"http://{PRIVATE}:{port}/document",
        f"http://private.example:{port}/document",
        f"//{PRIVATE}:{port}/document",
        f"http://localhost:{port}/document",
        "http://169.254.169.254/latest/meta-data",
        f"http://[::ffff:{PRIVATE}]:{port}/document",
        f"http://moves.example:{port}/to%3Fwhere=http://moves.example:{port}/document",
        "file:///etc/passwd",
    ):
        assert fetch(client, start + where)[1] == "url_refused", where
    assert fetch(client, start + "/to%3Fwhere=/document") == (202, "")
    assert private.asked == []


def test_documents_that_never_come_or_never_end_are_given_up(client: Client, public: Stranger) -> None:
    for path in ("silent", "headers", "endless"):
        assert fetch(client, f"http://public.example:{public.port}/{path}")[1] == "url_failed", path
    loop = f"http://public.example:{public.port}/to?where=/to"
    assert fetch(client, loop)[1] == "url_failed"
    assert client.ended(client.accepted(image_bytes()))["status"] == "succeeded"


def told(client: Client, url: str, number: int) -> str:
    """A job with this webhook."""
    return client.accepted(image_bytes(size=(100, 40 + number)), webhook=url)


def test_webhooks_go_nowhere_else_and_wait_for_nobody(
    client: Client, public: Stranger, private: Stranger
) -> None:
    """Redirected, moved, silent and endless ones; one that answers is told at once, whoever is in its way."""
    address = f"http://public.example:{public.port}"
    silent = [told(client, f"{address}/silent", number) for number in range(6)]
    eventually(lambda: public.asked.count("/silent") == 6)
    assert webhook(client, told(client, f"{address}/document", 10)) == "delivered"
    assert all(client.job(job_id)["webhook"]["status"] == "queued" for job_id in silent), (
        "and still they wait"
    )
    ended = {
        told(client, f"{address}/endless", 11): "delivered",
        told(client, f"{address}/headers", 12): "failed",
        told(client, f"{address}/to?where=http://{PRIVATE}:{public.port}/document", 13): "failed",
        told(client, f"http://moves-once-posted.example:{public.port}/document", 14): "refused",
        **dict.fromkeys(silent, "failed"),
    }
    for job_id, status in ended.items():
        assert webhook(client, job_id) == status
    assert private.asked == []
    assert public.asked.count("/silent") == 12, "two attempts each"


def webhook(client: Client, job_id: str) -> str:
    """How it stands in the end."""

    def settled() -> str | None:
        status = str(client.job(job_id)["webhook"]["status"])
        return status if status in {"delivered", "failed", "refused"} else None

    return eventually(settled)
