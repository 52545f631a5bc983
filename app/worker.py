"""Run a worker: one process, one device, one model. It claims batches of pages and writes their results.

``python -m app.worker`` takes its settings from the environment; SIGTERM ends it. With ``--embedded``, as the
API starts it, standard input is a socket. Its first line has the settings, later lines are wake-ups both
ways, and the worker ends when the other end closes. Standard output and error are for logs alone.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from app import tracing
from app.documents.raster.pool import Rasterizers
from app.documents.safe_http import SafeHttp
from app.errors import ParseError, StorageFull, StorageUnavailable
from app.jobs.api.supervisor import UNUSABLE_STATUS, max_worker_rss_mib
from app.jobs.blobs import Blobs
from app.jobs.database import migrate_dbos, open_dbos_engine, open_engine, storage_errors
from app.jobs.leases import HEARTBEAT_S, Leases, WorkerState
from app.jobs.notifications import Notifications, open_notifications
from app.jobs.queues import WorkQueue
from app.jobs.store import Store
from app.jobs.worker.maintenance import Maintenance
from app.jobs.worker.page_store import PageStore
from app.jobs.worker.reading import BatchRunner
from app.jobs.worker.result_writer import ResultWriter
from app.jobs.worker.webhooks import Webhooks
from app.jobs.worker.workflows import Workflows
from app.metrics import WorkerMetrics
from app.processes import exit_after, keep_private, when_orphaned
from app.reader import PageReader, reads_together
from app.settings import Settings
from app.telemetry import log_to_stderr

logger = logging.getLogger("rtprune.worker")

STARTING = "the worker is being started"
LOADING = "the model is being loaded"
DOWNLOAD_LEASE_S = 30.0
"""How long a download without news still counts as running."""
GB = 1e9
ORPHAN_GRACE_S = 3.0
EMBEDDED_GRACE_S = 1.0
"""Grace of an embedded worker. The API has already given waiting clients theirs before it ends its worker."""
STORAGE_RETRY_S = 1.0
SPARE_THREADS = 16
FAKE_PAGES_IN_FLIGHT = 64
MOST_FETCHES = 128
"""Most documents fetched at a time if the number of pages in flight is not set."""
KEPT_CPU_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""Environment that bounds the kernels that oneDNN and torch compile and keep, one a shape.

By default each keeps 1,024. That is 200 MiB, which a worker takes over its first 1,500 pages, like a leak.
With fewer than one batch has shapes they cost time: 64 took 15 % more on pages of three lines
(2026-11-29, processor time of 200 pages).
"""
SWITCH_S = 0.001
"""Interval at which threads hand over the interpreter's lock.

The engine releases the lock at every operation of the model. It gets it back from a thread that writes to
the database when that thread's interval ends. At Python's default of 5 ms, decoding is a quarter slower.
"""


def open_reader(settings: Settings) -> PageReader:
    """Open the reader that the settings name. The model's code and torch are imported only here."""
    if settings.reader == "fake":
        from app.fake import FakeReader  # noqa: PLC0415

        return FakeReader()
    for name, most in KEPT_CPU_KERNELS.items():
        os.environ.setdefault(name, most)  # torch reads them when it is first imported
    from app.ocr.sizing import engine_settings  # noqa: PLC0415
    from app.open_reader import open_reader as open_model_reader  # noqa: PLC0415

    # an engine that died reads nothing more: end the process, and leave its pages to the next worker
    reader: PageReader = open_model_reader(
        settings.model,
        settings.device,
        engine_settings(settings),
        on_death=exit_after(0),
        max_rss_mib=max_worker_rss_mib(settings),
    )
    return reader


def pages_in_flight(settings: Settings) -> int:
    """Return how many pages to have in flight.

    Only the process with the open reader knows what the device takes.
    """
    if settings.max_pages_in_flight:
        return settings.max_pages_in_flight
    if settings.reader == "fake":
        return FAKE_PAGES_IN_FLIGHT
    from app.ocr.sizing import pages_in_flight as of_device  # noqa: PLC0415

    return of_device(settings)


async def open_store(settings: Settings, notifications: Notifications) -> Store:
    """Open the store and its tables. Wait for a database that does not answer yet."""
    store = Store(open_engine(settings), notifications.tell)
    while True:
        try:
            await asyncio.to_thread(_migrate, settings, store)
        except (StorageUnavailable, StorageFull) as error:
            logger.warning("waiting for the database", extra={"reason": str(error)})
            await asyncio.sleep(STORAGE_RETRY_S)
        else:
            return store


def _migrate(settings: Settings, store: Store) -> None:
    with storage_errors():
        migrate_dbos(settings)
    store.migrate()


async def work(settings: Settings, worker_id: str, stop: asyncio.Event, notifications: Notifications) -> int:
    """Load the model, then work until ``stop``. Return the exit status."""
    store = await open_store(settings, notifications)
    state = WorkerState(worker_id, socket.gethostname(), "starting", STARTING)
    leases = Leases(store)
    with tempfile.TemporaryDirectory(prefix="rtprune-") as folder:
        tmp_dir = Path(folder)
        rasterizers = Rasterizers(settings, tmp_dir)
        try:
            reader = await _load(settings, rasterizers, store, state)
        except Exception as error:  # whatever stops a model from loading must show in readiness
            logger.exception("the worker cannot start")
            detail = _why(error)
            failed = replace(state, phase="failed", detail=detail)
            await asyncio.to_thread(leases.renew, failed, settings.max_restart_delay_s)
            await rasterizers.close()
            return UNUSABLE_STATUS
        settings = settings.model_copy(update={"max_pages_in_flight": pages_in_flight(settings)})
        try:
            await _serve(settings, _Parts(store, reader, rasterizers, tmp_dir), state, stop, notifications)
        finally:
            await reader.close()
            await rasterizers.close()
            with contextlib.suppress(StorageUnavailable, StorageFull):
                await asyncio.to_thread(leases.expire, worker_id)
            store.close()
            await asyncio.to_thread(tracing.flush)
    return 0


def _why(error: Exception) -> str:
    """Return one sentence for readiness. The log has the details."""
    if isinstance(error, ParseError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; reading pages needs: pip install 'rtprune[worker]'"
    return "the model cannot be loaded; see the log"


async def _load(settings: Settings, rasterizers: Rasterizers, store: Store, state: WorkerState) -> PageReader:
    """Start the rasterizers and load the model. Show the worker's progress meanwhile."""
    await asyncio.to_thread(PageStore(store).mark_worker_dead, state.id)  # its namesake may have died
    leases = Leases(store)
    await asyncio.to_thread(leases.renew, state, settings.worker_load_s)
    await rasterizers.start()
    if settings.reader == "model":
        settings = await _downloaded(settings, leases, state)
    loading = replace(state, phase="loading", detail=LOADING)
    await asyncio.to_thread(leases.renew, loading, settings.worker_load_s)
    # on this thread, because models' libraries expect the device to be initialised on it
    return open_reader(settings)


async def _downloaded(settings: Settings, leases: Leases, state: WorkerState) -> Settings:
    """Download the checkpoint if it is on the hub. Readiness shows the progress.

    A download may take hours, so its time does not count as loading.
    """
    from app.ocr.models.checkpoint import is_hub_id, locate  # noqa: PLC0415 - not in processes that have no model

    if not is_hub_id(settings.model):
        return settings
    sizes = [0, 0]

    def told(here: int, in_all: int) -> None:
        sizes[:] = [max(sizes[0], here), max(sizes[1], in_all)]

    downloading = asyncio.create_task(asyncio.to_thread(locate, settings.model, told), name="download")
    while not downloading.done():
        size = f": {sizes[0] / GB:.2f} of {sizes[1] / GB:.2f} GB" if sizes[1] else ""
        detail = f"downloading {settings.model}{size}"
        with contextlib.suppress(StorageUnavailable, StorageFull):
            now = replace(state, phase="downloading", detail=detail)
            await asyncio.to_thread(leases.renew, now, DOWNLOAD_LEASE_S)
        await asyncio.wait({downloading}, timeout=HEARTBEAT_S)
    return settings.model_copy(update={"model": str(downloading.result())})


class _Parts:
    """The parts of a worker whose model is loaded."""

    def __init__(self, store: Store, reader: PageReader, rasterizers: Rasterizers, tmp_dir: Path) -> None:
        self.store = store
        self.reader = reader
        self.rasterizers = rasterizers
        self.tmp_dir = tmp_dir


async def _serve(
    settings: Settings, parts: _Parts, state: WorkerState, stop: asyncio.Event, notifications: Notifications
) -> None:
    store, blobs = parts.store, Blobs(settings)
    writer = ResultWriter(PageStore(store), state.id)
    engine = open_dbos_engine(settings)
    queue = WorkQueue(engine)
    batches = BatchRunner(
        settings, parts.reader, parts.rasterizers, store, queue, blobs, writer, parts.tmp_dir
    )
    http = SafeHttp(settings)
    reader = parts.reader
    modes = tuple(reader.modes)
    sandbox = await parts.rasterizers.greeted()
    ready = replace(
        state,
        phase="ready",
        detail="ready",
        model=reader.model_name,
        modes=modes,
        sandbox=sandbox,
        fixates=reader.fixates,
        reads_together=reads_together(reader),
    )
    maintenance = Maintenance(settings, ready, store, blobs, batches, queue, notifications)
    webhooks = Webhooks(settings, store, http)
    workflows = Workflows(settings, state.id, store, queue, batches, webhooks, notifications)
    await asyncio.to_thread(maintenance.resume_own)
    await asyncio.to_thread(workflows.register_queues)
    workflows.launch(engine)
    if settings.worker_metrics_port:
        try:
            WorkerMetrics(reader).serve(settings.worker_metrics_host, settings.worker_metrics_port)
        except OSError as error:  # pages are read even without metrics
            logger.error("metrics cannot be served", extra={"reason": str(error)})
    care = asyncio.create_task(maintenance.run(), name="maintenance")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    logger.info("model loaded", extra={"model": parts.reader.model_name, "pid": os.getpid()})
    try:
        await asyncio.wait({care, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if care.done():
            care.result()  # it only ends by a defect, which ends the worker
        await workflows.close(settings.shutdown_grace_s)
    finally:
        for task in (stopping, care):
            task.cancel()
        await asyncio.gather(stopping, care, return_exceptions=True)
        await http.close()


async def _carry(notifications: Notifications, parent: socket.socket | None, stop: asyncio.Event) -> None:
    """Stop when the parent goes.

    Pages are then taken from the model, so that its death does not count against them.
    """
    if parent is not None:
        await notifications.carry(parent)
        stop.set()


async def _main(settings: Settings, worker_id: str, parent: socket.socket | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # fetching documents, at most one per page, must not keep the lease from being renewed
    num_fetches = settings.max_pages_in_flight or MOST_FETCHES
    loop.set_default_executor(ThreadPoolExecutor(num_fetches + SPARE_THREADS, "io"))
    notifications = open_notifications(settings)
    carrying = asyncio.create_task(_carry(notifications, parent, stop), name="parent")
    try:
        return await work(settings, worker_id, stop, notifications)
    finally:
        carrying.cancel()


def main() -> None:
    keep_private()
    embedded = "--embedded" in sys.argv[1:]
    parent = socket.socket(fileno=os.dup(0)) if embedded else None
    if parent is not None:
        when_orphaned(parent.fileno(), exit_after(ORPHAN_GRACE_S))
        settings = Settings.model_validate_json(_line(parent))
        settings = settings.model_copy(update={"shutdown_grace_s": EMBEDDED_GRACE_S})
    else:
        try:
            settings = Settings()
        except ValidationError as error:
            sys.exit(f"rtprune: {error}")
    log_to_stderr(settings)
    tracing.configure("rtprune-worker")
    sys.setswitchinterval(SWITCH_S)
    worker_id = os.environ.get("RTPRUNE_WORKER_ID") or uuid.uuid4().hex
    sys.exit(asyncio.run(_main(settings, worker_id, parent)))


def _line(end: socket.socket) -> bytes:
    line = bytearray()
    while (byte := end.recv(1)) and byte != b"\n":
        line += byte
    return bytes(line)


if __name__ == "__main__":
    main()
