"""Serve the web page at ``/``: files of ``app/web`` as they are. They load nothing from other hosts."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.errors import NotFound
from app.http.negotiation import accepts_gzip
from app.http.service import root_of

router = APIRouter()

INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types tables",
    )
)
"""Content-Security-Policy: nothing inline, nothing from elsewhere, and no text becomes markup except
copied tables."""
HEADERS = {
    "Cache-Control": "no-cache",  # cached but revalidated, so a new version is seen at once
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page, ready to be sent. ``tag``: an entity tag made from its content."""

    media_type: str
    content: bytes
    compressed: bytes
    tag: str


@cache
def assets() -> dict[str, Asset]:
    """Read every file of the page, by name."""
    found = {}
    for path in files("app.web").iterdir():
        media_type = MEDIA_TYPES.get(f".{path.name.rpartition('.')[2]}")
        if media_type is not None:
            content = path.read_bytes()
            tag = hashlib.sha256(content).hexdigest()[:16]
            found[path.name] = Asset(media_type, content, gzip.compress(content, mtime=0), tag)
    return found


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """Answer with the page. Its addresses are relative, so its own address must end in a slash."""
    if not request.scope.get("raw_path", b"/").endswith(b"/"):
        return RedirectResponse(f"{root_of(request)}/")
    return _answer(request, INDEX)


@router.get("/web/{name}", include_in_schema=False)
async def asset(request: Request, name: str) -> Response:
    """Answer with a file that the page loads."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = assets().get(name)
    if found is None:
        raise NotFound("there is nothing at this address; see /docs")
    is_gzip = accepts_gzip(request.headers.get("accept-encoding"))
    tag = f'"{found.tag}{"-gzip" if is_gzip else ""}"'
    headers = {**HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if is_gzip:
        headers["Content-Encoding"] = "gzip"
    body = found.compressed if is_gzip else found.content
    return Response(body, headers=headers, media_type=found.media_type)
