"""Who may ask: API keys, and what a service without keys accepts."""

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
"""How long what was read of the keys holds: a key that is revoked opens nothing after this."""
IPV6_NETWORK_BITS = 64
"""What one client of IPv6 has for its own: an address of it says no more than the network does."""
MAX_KEY_CHARS = 512
CALLER = "rtprune.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``client``: whose jobs it makes. ``key``: ``None`` where the service has none."""

    client: str
    key: Key | None = None

    @property
    def sees(self) -> str | None:
        """The client whose jobs it may see; ``None``: any, as ``admin`` does.

        Without keys whoever knows a job's id may see it: an id has 122 random bits.
        """
        return None if self.key is None or self.key.reaches("admin") else self.client

    @property
    def lists(self) -> str | None:
        """The client whose jobs are listed to it; ``None``: those of all."""
        return None if self.key is not None and self.key.reaches("admin") else self.client


class Access:
    """Decides of requests by the keys that are in the database. ``load`` reads them, in a thread."""

    def __init__(self, settings: Settings, load: Callable[[], list[Key]]) -> None:
        self._may_be_open = settings.allow_open or is_loopback(settings.host)
        self._origins = frozenset(listed(settings.cors_origins))
        self._load = load
        self._by_hash: dict[str, Key] = {}
        self._had_keys = False
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def has_keys(self) -> bool:
        """Tell whether keys are asked for: one was made at any time. Raise ``StorageUnavailable``."""
        await self._refresh()
        return self._had_keys

    async def caller(self, scope: AsgiScope, needed: Scope) -> Caller:
        """Return who asks. Raise ``Unauthorized`` or ``Forbidden``.

        A key that is none costs a hash and a look into a dictionary, however many are tried.
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
        """Refuse what a web page of elsewhere makes a browser send; it needs no answer to do harm."""
        origin = headers.get("origin")
        if origin is None or origin in self._origins or urlsplit(origin).netloc == headers.get("host", ""):
            return
        raise Forbidden("web pages of other origins may not use this service; see RTPRUNE_CORS_ORIGINS")

    async def _refresh(self) -> None:
        if asyncio.get_running_loop().time() - self._read_at < FRESH_S:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="keys")
        # shared: whoever asks meanwhile gets the same answer, and one who leaves takes it from nobody
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        began_at = asyncio.get_running_loop().time()
        try:
            keys = await promptly(self._load)
        except (StorageUnavailable, StorageFull):
            if self._read_at == -math.inf:
                raise
            # what was known holds while the database is away: without it there is nothing of anybody to show
            self._read_at = asyncio.get_running_loop().time()
            return
        self._by_hash = {key.hash: key for key in keys}
        self._had_keys = bool(keys)
        self._read_at = began_at


def _secret(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _address_client(scope: AsgiScope) -> str:
    """Name the client by its address, as a hash: addresses themselves are kept nowhere."""
    address = scope["client"][0] if scope.get("client") else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        parsed = None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        address = str(ipaddress.ip_network((parsed, IPV6_NETWORK_BITS), strict=False))
    return hashlib.sha256(f"address:{address}".encode()).hexdigest()[:32]


def needs(scope: Scope) -> Any:
    """Make a route's dependency that admits callers of this scope."""

    async def admit(request: Request) -> None:
        request.scope[CALLER] = await request.app.state.service.access.caller(request.scope, scope)

    admit.__name__ = f"needs_{scope}"
    return Depends(admit)


def caller_of(request: Request) -> Caller:
    """Return who asks, on a route that ``needs`` a scope."""
    caller: Caller = request.scope[CALLER]
    return caller
