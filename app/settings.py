"""Settings of the service. A test compares ``docs/settings.md`` with this class."""

import base64
import binascii
import difflib
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 2**20
SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64

PREFIX = "RTPRUNE_"
NO_SETTINGS = frozenset({"RTPRUNE_WORKER_ID", "RTPRUNE_MODELS", "RTPRUNE_SERVER", "RTPRUNE_KEY"})
"""Variables with our prefix that are read elsewhere: by a worker, the compose files, ``rtprune parse``."""

ORIGIN = re.compile(r"https?://[^/?#@\s,]+")
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
"""A prefix of addresses. Nothing in it could be taken for another host."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def listed(text: str) -> list[str]:
    """Split ``"a, b"`` into its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a socket that listens at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_networks(text: str) -> list[Network]:
    """Parse networks such as ``"10.0.0.0/8,fd00::/8"``. Raise ``ValueError``."""
    return [ipaddress.ip_network(part) for part in listed(text)]


def allowed_ports(text: str) -> frozenset[int] | None:
    """Parse ports such as ``"80,443"``; return ``None`` for ``any``. Raise ``ValueError``."""
    if text.strip() == "any":
        return None
    ports = frozenset(int(part) for part in text.split(",") if part.strip())
    if not all(0 < port < 2**16 for port in ports):
        raise ValueError("a port is a number from 1 to 65535")
    return ports


def webhook_keys(text: str) -> tuple[bytes, ...]:
    """Return the HMAC keys in ``"whsec_MfKQ... whsec_w8Bq..."``.

    Raise ``ValueError``, which shows no secret.
    """
    return tuple(map(_webhook_key, text.split()))


def _webhook_key(secret: str) -> bytes:
    encoded = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        key = b""
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"each must be {SECRET_PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes; "
            f'make one with: echo "{SECRET_PREFIX}$(openssl rand -base64 32)"'
        )
    return key


class Settings(BaseSettings):
    """Read from the environment: ``RTPRUNE_`` and the upper-case name; also ``HOST`` and ``PORT``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        hide_input_in_errors=True,  # some are secrets, and errors are printed
        extra="forbid",
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    host: str = Field("127.0.0.1", validation_alias=AliasChoices("RTPRUNE_HOST", "HOST"))
    """Address to listen on. Other machines reach the service only when this says so."""
    port: int = Field(8000, ge=0, le=65535, validation_alias=AliasChoices("RTPRUNE_PORT", "PORT"))
    """Port to listen on; 0 takes a free one."""
    data_dir: Path = Path("data")
    """Folder for uploads, the job database and documents, unless those are set elsewhere."""
    database_url: str = Field("", validation_alias=AliasChoices("RTPRUNE_DATABASE_URL", "DATABASE_URL"))
    """``postgresql://...`` for many machines. Empty: SQLite in the data folder."""
    blob_url: str = Field("", validation_alias=AliasChoices("RTPRUNE_BLOB_URL", "BLOB_URL"))
    """Where documents lie until they are read: a shared folder or ``s3://...``. Empty: the data folder."""
    allow_open: bool = False
    """Whether a service without API keys may listen beyond this machine: anyone who reaches it may use it."""
    allowed_hosts: str = ""
    """Names the service is asked by: ``ocr.example.com,*.example.org``, or ``*``. Empty: local ones."""
    cors_origins: str = ""
    """Web pages that may ask from a browser: ``https://app.example.com``. Empty: none."""
    trusted_proxies: str = ""
    """Networks whose ``X-Forwarded-For``, ``-Proto`` and ``-Prefix`` are believed: ``10.0.0.0/8,::1``."""
    root_path: str = ""
    """Path under which a proxy serves this: ``/ocr``. Links, ``Location`` and webhooks begin with it."""
    embedded_worker: bool = True
    """Whether the API starts and supervises a worker. ``false``: workers run elsewhere."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged."""
    log_format: Literal["json", "text"] = "json"
    """``json``: one object a line, for programs. ``text``: the same for people."""
    worker_metrics_port: int = Field(0, ge=0, le=65535)
    """Port of a worker's own ``/metrics``, without keys; 0: none."""
    worker_metrics_host: str = "127.0.0.1"
    """Address to which that port belongs."""

    reader: Literal["model", "fake"] = "model"
    """``fake`` reads nothing and answers at once: for trying clients without a model."""
    model: str = "pocket"
    """Checkpoint: ``pocket`` (in the package), a folder, or a hub id such as ``deepseek-ai/DeepSeek-OCR``."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""

    max_running_pages: int = Field(0, ge=0, le=1024)
    """Pages decoded together; 0 chooses 24 on a CPU and 128 on a GPU, or fewer if memory is short."""
    max_page_tokens: int = Field(0, ge=0, le=1_048_576)
    """Most tokens of a page, with its prompt and output; 0: room for ``RTPRUNE_MAX_OUTPUT_TOKENS``."""
    kv_memory_share: float = Field(0.7, gt=0, le=0.95)
    """Share of the GPU memory free after loading that holds keys and values of running pages."""
    kv_memory_mib: int = Field(1024, ge=1)
    """The same on a CPU, in MiB; memory that no page uses is never touched."""

    router_blank: bool = True
    """Whether pages that are blank by a strict test are answered without the model."""
    router_mode: bool = True
    """Whether small print is rendered larger and read in a sharper mode, where the client names none."""
    recall_retry: bool = False
    """Whether a page whose text lacks many words of its PDF's text layer is read once more."""
    drafts: bool = True
    """Whether, on a CPU, a text layer proposes the next tokens, which the model then verifies."""

    max_upload_mib: int = Field(64, ge=1, le=4096)
    """Largest file, in MiB."""
    max_files: int = Field(32, ge=1, le=1000)
    """Most files of one request, each a job; together they may be as large as one."""
    max_form_kib: int = Field(64, ge=1, le=1024)
    """Largest request body besides the file: option fields, part headers, JSON around the file."""
    max_pages: int = Field(2000, ge=1, le=10_000)
    """Most pages read of one document."""
    max_dpi: int = Field(600, ge=72, le=2400)
    """Highest ``dpi`` a client may ask for."""
    max_page_megapixels: float = Field(16.0, gt=0, le=500)
    """Largest page handed to the model; larger ones are rendered or scaled down to it."""
    max_image_megapixels: float = Field(100.0, gt=0, le=1000)
    """Largest image that is decoded at all, before scaling down."""
    restore_risk: float = Field(0.0, ge=0, le=1)
    """Risk above which a pruned page is read once more unpruned; 1: none is; 0: as the checkpoint says."""
    max_output_tokens: int = Field(8192, ge=1)
    """Highest ``max_output_tokens`` a client may ask for, and what a page has that does not say."""

    keep_page_images: bool = True
    """Whether a JPEG of each page, some 0.2 MB of an A4, is kept with the result, to be shown beside it."""
    max_figures: int = Field(64, ge=0, le=1000)
    """Most figures cut from a page; 0: none."""
    max_figure_kib: int = Field(2048, ge=16)
    """Most bytes of a figure, as PNG; larger ones are scaled down."""

    max_documents: int = Field(128, ge=1)
    """Requests with a document served at a time, from first byte to answer; more are refused with 503."""
    max_queued_pages: int = Field(10_000, ge=1)
    """Accepted pages that wait, over all clients; more are refused with 429."""
    max_jobs_per_client: int = Field(64, ge=1)
    """Unfinished jobs of an API key's owner, unless the key says otherwise, or of an address; then 429."""
    max_files_per_client: int = Field(100, ge=0)
    """Files that an API key's owner, or an address, may keep at ``/v1/files``; then 429."""
    result_lifetime_s: float = Field(86_400.0, gt=0)
    """How long the result of an ended job, and a file at ``/v1/files``, is kept; then 410, or 404."""
    wait_s: float = Field(50.0, gt=0, le=3600)
    """How long ``/v1/parse`` waits unless the client says otherwise; then 202. Less than proxies wait."""
    sync_wait_s: float = Field(600.0, gt=0, le=3600)
    """How long routes of other services' dialects wait that can answer only once; then 504."""
    queue_poll_s: float = Field(0.02, ge=0.001, le=3600)
    """How often to look for work, results and cancellations while nobody tells of them; else every second."""
    batch_pages: int = Field(8, ge=1, le=1000)
    """Pages of a document that one worker claims together."""
    max_pages_in_flight: int = Field(0, ge=0)
    """Pages a worker renders or reads at a time, over all documents; 0 chooses 8 on a CPU, 128 on a GPU."""

    max_connections: int = Field(0, ge=0)
    """Connections served at a time; more get 503. 0: as many as the limit of open files has room for."""
    head_s: float = Field(10.0, gt=0)
    """Longest time from a connection, or a request's first byte, to the end of the request's head."""
    keep_alive_s: int = Field(30, ge=1)
    """How long a connection is kept between two requests."""
    upload_idle_s: float = Field(30.0, gt=0)
    """Longest silence of a client while it uploads."""
    upload_deadline_s: float = Field(600.0, gt=0)
    """Longest upload."""
    rasterize_deadline_s: float = Field(30.0, gt=0)
    """Longest time to turn one page into pixels."""
    count_deadline_s: float = Field(5.0, gt=0)
    """Longest time to count the pages of a file, before its job exists."""
    page_deadline_s: float = Field(180.0, gt=0)
    """Longest time to read one page, waiting for the model included."""
    document_deadline_s: float = Field(86_400.0, gt=0)
    """Longest time to read a document, from its or its worker's start; what is ready by then is answered."""
    shutdown_grace_s: float = Field(20.0, ge=0)
    """Time after SIGTERM for uploads, and for pages that a worker apart reads; what is left is read later."""
    retry_after_s: int = Field(2, ge=1)
    """``Retry-After`` of a 503."""

    url_deadline_s: float = Field(60.0, gt=0)
    """Longest time to fetch a document from a ``url``."""
    url_allow: str = ""
    """Networks that ``url`` and ``webhook`` may reach although not public: ``10.1.0.0/16,fd00::/8``."""
    url_ports: str = "80,443"
    """Ports of ``url`` and ``webhook`` on public hosts, or ``any``; networks in ``url_allow`` have all."""
    webhook_secret: str = Field("", repr=False)
    """Secrets of webhooks: ``whsec_`` and base64 of 24 to 64 bytes; several with spaces. Empty: none."""
    webhook_attempts: int = Field(8, ge=1, le=20)
    """How often the delivery of a webhook is tried, with growing pauses."""

    num_rasterizers: int = Field(0, ge=0, le=64)
    """Processes that turn files into pixels; 0: one a core, from 3 to 16, as half of the memory allows."""
    max_rasterizer_mib: int = Field(2048, ge=256)
    """Address space of each, and of each poppler process."""

    max_worker_rss_mib: int = Field(0, ge=0)
    """Memory of its own at which the worker is restarted; 0: nine tenths of the machine's or container's."""
    worker_check_s: float = Field(1.0, gt=0)
    """How often the worker's memory and pulse are looked at."""
    worker_silence_s: float = Field(10.0, gt=0)
    """Longest silence of a worker that has loaded its model, before it is restarted."""
    worker_load_s: float = Field(900.0, gt=0)
    """Longest time to load the model, before the worker is restarted."""
    max_restart_delay_s: float = Field(30.0, gt=0)
    """Longest pause before the next start of a worker that keeps dying; the first pause is 0.2 s."""

    @field_validator("url_allow", "trusted_proxies")
    @classmethod
    def _networks(cls, text: str) -> str:
        allowed_networks(text)
        return text

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        for origin in listed(text):
            if ORIGIN.fullmatch(origin) is None:
                raise ValueError("an origin is http:// or https:// with a host, and nothing after it")
        return text

    @field_validator("root_path")
    @classmethod
    def _root_path(cls, text: str) -> str:
        if ROOT_PATH.fullmatch(text) is None:
            raise ValueError("a path such as /ocr, without a slash at its end")
        return text

    @field_validator("url_ports")
    @classmethod
    def _ports(cls, text: str) -> str:
        allowed_ports(text)
        return text

    @field_validator("webhook_secret")
    @classmethod
    def _secrets(cls, text: str) -> str:
        webhook_keys(text)
        return " ".join(text.split())

    @property
    def max_upload_bytes(self) -> int:
        return self.max_upload_mib * MIB


def misspelt_variables(environment: Iterable[str]) -> list[str]:
    """Return a message for each variable with our prefix that is not a setting."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | NO_SETTINGS
    said: list[str] = []
    for name in sorted(set(environment) - known):
        if name.startswith(PREFIX):
            # compared without the prefix, which all have in common
            close = difflib.get_close_matches(name[len(PREFIX) :], [one[len(PREFIX) :] for one in known], n=1)
            said.append(f"{name} is no setting" + (f"; did you mean {PREFIX}{close[0]}?" if close else ""))
    return said
