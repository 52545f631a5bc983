"""Decide who may use the service: by API keys, or by what a service without keys accepts."""

import asyncio
import hashlib
import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope as AsgiScope

from app.errors import Forbidden, StorageFull, StorageUnavailable, Unauthorized
from app.jobs.database import promptly
from app.jobs.keys import Key, Scope, key_hash
from app.settings import Settings, is_loopback, listed

FRESH_S = 2.0
"""How long keys once read are trusted. A revoked key opens nothing after this time."""
IPV6_NETWORK_BITS = 64
"""Length of the IPv6 prefix that identifies a client, because one client usually has a whole network."""
MAX_KEY_CHARS = 512
CALLER = "rtprune.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request.

    ``client``: whose jobs it makes. ``key``: ``None`` if the service has no keys.
    """

    client: str
    key: Key | None = None

    @property
    def sees(self) -> str | None:
        """The client whose jobs it may see; ``None``: any, as with the scope ``admin``.

        Without keys anyone who knows a job's id may see the job: an id has 122 random bits.
        """
        return None if self.key is None or self.key.reaches("admin") else self.client

    @property
    def lists(self) -> str | None:
        """The client whose jobs are listed to it; ``None``: those of all clients."""
        return None if self.key is not None and self.key.reaches("admin") else self.client


class Access:
    """Checks requests against the keys in the database. ``load`` reads them, in a thread."""

    def __init__(self, settings: Settings, load: Callable[[], list[Key]]) -> None:
        self._may_be_open = settings.allow_open or is_loopback(settings.host)
        self._origins = frozenset(listed(settings.cors_origins))
        self._load = load
        self._by_hash: dict[str, Key] = {}
        self._had_keys = False
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def has_keys(self) -> bool:
        """Tell whether requests need a key, because one was ever made. Raise ``StorageUnavailable``."""
        await self._refresh()
        return self._had_keys

    async def caller(self, scope: AsgiScope, needed: Scope) -> Caller:
        """Return the sender of a request. Raise ``Unauthorized`` or ``Forbidden``.

        An invalid key costs one hash and one dictionary lookup, however many are tried.
        """
        headers = Headers(scope=scope)
        if not await self.has_keys():
            if not self._may_be_open:
                raise Unauthorized("no API key exists yet; make one with: rtprune keys add NAME")
            self._check_origin(headers)
            return Caller(_address_client(scope))
        secret = _secret(headers)
        if not secret:
            raise Unauthorized("send an API key, as Authorization: Bearer KEY or X-API-Key: KEY")
        key = self._by_hash.get(key_hash(secret)) if len(secret) <= MAX_KEY_CHARS else None
        if key is None or key.revoked_at is not None:
            raise Unauthorized("this is no API key, or it was revoked")
        if not key.reaches(needed):
            raise Forbidden(f"this needs a key with the scope {needed}, and this one has {key.scope}")
        return Caller(f"key:{key.owner}", key)

    def _check_origin(self, headers: Headers) -> None:
        """Refuse requests that another site's page makes a browser send.

        They do harm even if it cannot read the answer.
        """
        origin = headers.get("origin")
        if origin is None or origin in self._origins or urlsplit(origin).netloc == headers.get("host", ""):
            return
        raise Forbidden("web pages of other origins may not use this service; see RTPRUNE_CORS_ORIGINS")

    async def _refresh(self) -> None:
        if asyncio.get_running_loop().time() - self._read_at < FRESH_S:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="keys")
        # Shared: requests that come meanwhile wait for the same read, and one that leaves does not stop it.
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        began_at = asyncio.get_running_loop().time()
        try:
            keys = await promptly(self._load)
        except (StorageUnavailable, StorageFull):
            if self._read_at == -math.inf:
                raise
            # Trust the last known keys while the database is away: without it there are no jobs to show.
            self._read_at = asyncio.get_running_loop().time()
            return
        self._by_hash = {key.hash: key for key in keys}
        self._had_keys = bool(keys)
        self._read_at = began_at


def _secret(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _address_client(scope: AsgiScope) -> str:
    """Identify the client by a hash of its address, because addresses themselves are not stored."""
    address = scope["client"][0] if scope.get("client") else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        parsed = None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        address = str(ipaddress.ip_network((parsed, IPV6_NETWORK_BITS), strict=False))
    return hashlib.sha256(f"address:{address}".encode()).hexdigest()[:32]


def needs(scope: Scope) -> Any:
    """Make a route's dependency that admits callers with this scope."""

    async def admit(request: Request) -> None:
        request.scope[CALLER] = await request.app.state.service.access.caller(request.scope, scope)

    admit.__name__ = f"needs_{scope}"
    return Depends(admit)


def caller_of(request: Request) -> Caller:
    """Return the sender of a request, on a route that ``needs`` a scope."""
    caller: Caller = request.scope[CALLER]
    return caller
