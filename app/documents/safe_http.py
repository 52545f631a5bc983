"""Send HTTP requests to addresses that strangers name, in public networks only.

Every hop is checked after its name is resolved. The name is resolved once and the connection goes to the
address that was checked, so a name server that answers differently the second time gains nothing.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import httpx

from app.errors import TooLarge, UrlFailed, UrlRefused
from app.settings import Settings, allowed_networks, allowed_ports

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 5
MAX_URL_CHARS = 2000
CONNECT_S = 10.0
RESOLVE_S = 10.0
NUM_RESOLVERS = 64
MAX_LOOKUPS_OF_DOMAIN = 8
"""Most lookups at a time of names under one domain.

Its name server may hang, and a thread that waits for it cannot be stopped.
"""
PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""All IPv6 addresses ever assigned to the public. Others are local, or embed IPv4 in ways that change."""
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("2002::/16", "3fff::/20", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
    )
)
"""Networks that this Python's ``is_global`` wrongly takes for public.

They are IPv4 in IPv6, documentation, protocol assignments, relays, and the address at which a large cloud
serves secrets to its machines.
"""
ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""The middle of an IPv6 address that embeds an IPv4 address at its end (RFC 5214)."""
UNREACHABLE = "the address leads to no host that may be reached from here"
"""The message for both a private name and a missing one, so that it does not reveal which names exist."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _NotFound(UrlFailed):
    """The name has no address at the moment."""


class SafeHttp:
    """A client that only reaches addresses that pass ``check``. It keeps no cookies."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._allowed = allowed_networks(settings.url_allow)
        self._ports = allowed_ports(settings.url_ports)
        # a shared jar would carry cookies from one client's host to another's
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = httpx.AsyncClient(
            trust_env=False, timeout=CONNECT_S, follow_redirects=False, cookies=no_cookies
        )
        # separate threads: strangers' name servers that hang must not block the threads of the database
        self._resolvers = ThreadPoolExecutor(NUM_RESOLVERS, "resolve")
        self._lookups: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        await self._client.aclose()

    async def check(self, url: str) -> tuple[httpx.URL, str]:
        """Return the URL and the checked address of its host. Raise ``UrlRefused``."""
        try:
            return await self._checked(url)
        except _NotFound as error:
            raise UrlRefused(UNREACHABLE) from error

    async def _checked(self, url: str) -> tuple[httpx.URL, str]:
        """Do as ``check``, but raise ``_NotFound`` for a name without an address: it may have one later."""
        parsed = parse_url(url)
        port = (443 if parsed.scheme == "https" else 80) if parsed.port is None else parsed.port
        found = await self._lookup(parsed.host, port)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not addresses or not all(self._may_reach(address, port) for address in addresses):
            raise UrlRefused(UNREACHABLE)
        return parsed, str(addresses[0])

    async def _lookup(self, host: str, port: int) -> list[Any]:
        """Look up a name's addresses. Only a few lookups of one domain run at a time; the others wait."""
        domain = ".".join(host.rsplit(".", 2)[-2:])
        limit = self._lookups.setdefault(domain, asyncio.Semaphore(MAX_LOOKUPS_OF_DOMAIN))
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(limit.release)

        try:
            async with asyncio.timeout(RESOLVE_S):
                await limit.acquire()
                asking = self._resolvers.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
                # released when the thread ends, not when the wait does: a thread that hangs keeps its place
                asking.add_done_callback(release)
                return await asyncio.wrap_future(asking)
        except (OSError, UnicodeError) as error:  # UnicodeError: an invalid label
            raise _NotFound(UNREACHABLE) from error

    def _may_reach(self, address: Address, port: int) -> bool:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._allowed if network.version == address.version):
            return True
        if self._ports is not None and port not in self._ports:
            return False
        if any(address in network for network in NOT_PUBLIC if network.version == address.version):
            return False
        if address.version == 6 and (
            address not in PUBLIC_IPV6 or int(address) >> 32 & 0xFFFF_FFFF in ISATAP
        ):
            return False
        return address.is_global and not address.is_multicast

    async def download(self, url: str, path: Path) -> None:
        """Save the document at ``url`` to a new file. Limit its size while it streams.

        Raise ``UrlRefused``, ``UrlFailed`` or ``TooLarge``.
        """
        try:
            async with asyncio.timeout(self._settings.url_deadline_s):
                for _ in range(MAX_REDIRECTS + 1):
                    async with self._request("GET", url) as response:
                        if response.status_code not in REDIRECTS:
                            await self._save(response, path)
                            return
                        url = str(httpx.URL(url).join(response.headers.get("location", "")))
        except TimeoutError as error:
            raise UrlFailed("the document was not fetched in time") from error
        except _NotFound as error:
            raise UrlRefused(UNREACHABLE) from error
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            ValueError,
        ) as error:  # ValueError: an invalid location
            raise UrlFailed(f"the document cannot be fetched ({type(error).__name__})") from error
        raise UrlFailed(f"the address redirects more than {MAX_REDIRECTS} times")

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Post a body and return the status. Neither read the answer's body nor follow redirects."""
        try:
            async with (
                asyncio.timeout(CONNECT_S),
                self._request("POST", url, content=body, headers=headers) as response,
            ):
                return response.status_code
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise UrlFailed(f"no answer ({type(error).__name__})") from error

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        parsed, address = await self._checked(url)
        host = parsed.netloc.decode("ascii")
        pinned = parsed.copy_with(host=address)
        request = self._client.build_request(
            method,
            pinned,
            content=content,
            # gzip could grow without bound after the length was checked
            headers={**(headers or {}), "Host": host, "Accept-Encoding": "identity"},
            extensions={"sni_hostname": parsed.host},
        )
        response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _save(self, response: httpx.Response, path: Path) -> None:
        if response.status_code != 200:
            raise UrlFailed(f"the address answered {response.status_code}")
        limit, num_bytes = self._settings.max_upload_bytes, 0
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise TooLarge(f"the document at the address has {length} bytes")
        with path.open("xb") as file:
            async for chunk in response.aiter_raw():
                num_bytes += len(chunk)
                if num_bytes > limit:
                    raise TooLarge(f"the document is larger than {self._settings.max_upload_mib} MiB")
                await asyncio.to_thread(file.write, chunk)


def parse_url(url: str) -> httpx.URL:
    """Parse an address. Raise ``UrlRefused`` unless it is a plain http(s) address with a host."""
    try:
        parsed = httpx.URL(url)
        host = parsed.host  # decoded only here: it raises for an invalid label
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused("this is no address") from error
    if len(url) > MAX_URL_CHARS or parsed.scheme not in {"http", "https"} or not host:
        raise UrlRefused("the address must be http:// or https:// with a host")
    if parsed.userinfo:
        raise UrlRefused("the address must not carry a user name or password")
    return parsed
