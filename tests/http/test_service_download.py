"""A checkpoint that comes from a hub: shown while it comes, and resumed where a connection broke."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, serving_hub
from jobs_bench import open_store
from ocr_checkpoints import original_config, original_tensors, random_small_network, write_checkpoint
from service_client import Server, eventually, image_bytes, serving

from app.jobs.api.supervisor import Supervisor
from app.jobs.leases import Leases, WorkerState
from app.metrics import Metrics
from app.ocr.models.config import read_config
from app.settings import Settings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 33 MB: the library writes what has come in pieces of 10 MiB."""
    config = original_config()
    config["language_config"]["vocab_size"] = 130_000
    network = random_small_network(config=read_config(config))
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), original_tensors(network), config=config)


def settings(hub: FakeHub, cache: Path) -> dict[str, Any]:
    env = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": "600",
    }
    return {"reader": "model", "model": "owner/tiny", "device": "cpu", "env": env}


def downloading(server: Server) -> dict[str, Any] | None:
    """The problem of ``/readyz`` once it tells that the first piece has come."""
    answer = server.http.get("/readyz")
    problem: dict[str, Any] = answer.json()
    is_told = problem.get("phase") == "downloading" and re.search(r": 0\.0[1-9] of 0\.0", problem["detail"])
    return problem if is_told else None


def test_a_download_is_shown_resumed_and_then_read(tmp_path: Path, checkpoint: Path) -> None:
    with (
        serving_hub(checkpoint) as hub,
        serving(tmp_path / "data", **settings(hub, tmp_path / "hf")) as server,
    ):
        problem = eventually(lambda: downloading(server))
        eventually(lambda: len(hub.starts) == 2)
        assert hub.starts == [0, 10 * 2**20], "a broken connection goes on where it was"
        assert problem["code"] == "not_ready"
        assert problem["detail"].startswith("downloading owner/tiny: ")
        hub.gate.set()
        ready = server.wait_ready().http.get("/readyz").json()
        assert (ready["phase"], ready["model"]) == ("ready", "small")
        assert set(ready["modes"]) == {"plain", "flat", "tiled"}
        refused = server.parse(image_bytes(), mode="huge")
        assert (refused.status_code, "plain" in refused.json()["detail"]) == (400, True)


def test_a_download_is_no_time_of_loading(tmp_path: Path) -> None:
    limits = Settings(data_dir=tmp_path, worker_load_s=0.2, worker_check_s=0.01)
    leases = Leases(open_store(limits))
    asyncio.run(_watch_a_worker_that_downloads_then_loads(limits, leases))


async def _watch_a_worker_that_downloads_then_loads(limits: Settings, leases: Leases) -> None:
    unheard: Any = None
    supervisor = Supervisor(limits, limits.data_dir, Metrics(), leases, unheard, changed=lambda: None)
    supervisor.worker_id = "w"
    leases.renew(WorkerState("w", "here", "downloading", "downloading owner/tiny"), lease_s=600)
    process = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    began = asyncio.get_running_loop().time()
    check = asyncio.create_task(supervisor.check(process, began))
    await asyncio.sleep(5 * limits.worker_load_s)
    assert not check.done()
    leases.renew(WorkerState("w", "here", "loading", "the model is being loaded"), lease_s=600)
    await asyncio.wait_for(check, 60)
    assert await process.wait() < 0, "loading has a deadline"
