"""Handle a request before routing: find the client behind a proxy, and check the host name."""

import ipaddress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import HostRefused
from app.settings import ROOT_PATH, Network, Settings, allowed_networks, is_loopback, listed

if TYPE_CHECKING:
    from app.http.service import Service

PROBES = frozenset({"/livez", "/readyz", "/health"})
"""Paths that answer under any host name, because orchestrators use any. They reveal nothing about clients."""
PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".svc")
"""Suffixes of names that no public name server has, such as those of Kubernetes services."""


class Proxies:
    """Takes the client's address, the scheme and the path prefix, but only from trusted proxies.

    The prefix may also be a setting.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._trusted = allowed_networks(settings.trusted_proxies)
        self._root_path = settings.root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            prefix = self._root_path
            if scope.get("client") and self._is_trusted(scope["client"][0]):
                prefix = self._believe(scope, Headers(scope=scope)) or prefix
            if prefix:
                scope["root_path"] = prefix
                # some proxies strip the prefix and some leave it; the router expects it
                if scope["path"] == prefix:
                    scope["path"] = f"{prefix}/"
                elif not scope["path"].startswith(f"{prefix}/"):
                    scope["path"] = prefix + scope["path"]
        await self._app(scope, receive, send)

    def _believe(self, scope: Scope, headers: Headers) -> str:
        """Take the client and scheme from a trusted proxy's headers. Return the prefix that they name."""
        scope["client"] = self._client(headers, scope["client"])
        scheme = headers.get("x-forwarded-proto", "")
        if scheme in {"http", "https"} and scope["type"] == "http":
            scope["scheme"] = scheme
        forwarded = headers.get("x-forwarded-prefix", "").rstrip("/")
        return forwarded if ROOT_PATH.fullmatch(forwarded) else ""

    def _client(self, headers: Headers, peer: tuple[str, int]) -> tuple[str, int]:
        """Return the address nearest to us that is no trusted proxy.

        Addresses further left could be forged by it.
        """
        for hop in reversed(listed(",".join(headers.getlist("x-forwarded-for")))):
            try:
                address = str(ipaddress.ip_address(hop))
            except ValueError:
                break
            peer = (address, 0)
            if not self._is_trusted(address):
                break
        return peer

    def _is_trusted(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        networks: list[Network] = [one for one in self._trusted if one.version == address.version]
        return any(address in network for network in networks)


class Hosts:
    """Refuses requests under other host names than the service's, so that no web page can rebind its name to
    it.

    With API keys and no configured names, any name is accepted: a page that rebinds its name has no key.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = [name.lower() for name in listed(settings.allowed_hosts)]
        self._is_local = is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if "path" in scope else ""
        if scope["type"] in {"http", "websocket"} and path not in PROBES:
            host = Headers(scope=scope).get("host", "")
            name = host_name(host)
            if not self._is_known(name):
                service: Service = scope["app"].state.service
                if self._names or not await service.access.has_keys():
                    raise HostRefused(
                        f"add {name[:80]} to RTPRUNE_ALLOWED_HOSTS if it is this service's name"
                    )
        await self._app(scope, receive, send)

    def _is_known(self, name: str) -> bool:
        if is_loopback(name) or name.endswith(".localhost"):
            return True
        if self._names:
            return any(_matches(name, pattern) for pattern in self._names)
        # a page cannot rebind an address or a private name: it has such an origin only if it comes from there
        return not self._is_local and (
            _is_address(name) or ("." not in name and name != "") or _is_private(name)
        )


def host_name(host: str) -> str:
    """Return the name in a Host header: ``Example.com:80`` -> ``example.com``, ``[::1]:80`` -> ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in {"*", name}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_private(name: str) -> bool:
    return name.endswith(PRIVATE_SUFFIXES)
