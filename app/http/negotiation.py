"""Negotiate content (RFC 9110 section 12.5.1)."""

import re
from collections.abc import Sequence

from app.errors import NotAcceptable

QUALITY = re.compile(r"q=(0(\.[0-9]{0,3})?|1(\.0{0,3})?)", re.IGNORECASE)


def negotiate(accept: str | None, offers: Sequence[str]) -> str:
    """Return the offer that ``accept`` prefers; among equals the earliest. Raise ``NotAcceptable``.

    Of several ranges that match, the most specific counts: ``*/*, text/plain;q=0`` refuses text/plain.
    """
    if accept is None or not accept.strip():
        return offers[0]
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(f"answers are {', '.join(offers)}")
    return best


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Tell whether a client says that it accepts gzip."""
    codings = [_media_range(part) for part in (accept_encoding or "").split(",")]
    return any(coding in {"gzip", "x-gzip"} and quality > 0 for coding, quality in codings)


def _media_range(part: str) -> tuple[str, float]:
    """Parse ``text/*;q=0.5`` into its type and quality. Ignore other parameters: no offer has any."""
    media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        if (match := QUALITY.fullmatch(parameter)) is not None:
            return media_type, float(match[1])
    return media_type, 1.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    family = offer.partition("/")[0] + "/*"
    for wanted in (offer, family, "*/*"):
        matching = [quality for media_type, quality in ranges if media_type == wanted]
        if matching:
            return max(matching)
    return 0.0
