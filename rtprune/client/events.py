"""Parse server-sent events from a byte stream."""

import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

END_OF_LINE = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``id`` is empty where the service gave none."""

    name: str
    id: str
    data: str


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """Yield complete events; drop one that is cut off at the end of the stream."""
    found: dict[str, list[str]] = {}
    async for line in _lines(chunks):
        if not line:
            if "data" in found:
                name, event_id = found.get("event", ["message"])[-1], found.get("id", [""])[-1]
                yield Event(name, event_id, "\n".join(found["data"]))
            found = {}
            continue
        field, _, value = line.partition(":")
        found.setdefault(field, []).append(value.removeprefix(" "))  # a comment has an empty name


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Split the stream at its own line ends only. Text may contain other separators, such as U+2028."""
    parts: list[bytes] = []
    async for chunk in chunks:
        parts.append(chunk)
        # a CR at the end may be half of a CRLF
        if b"\n" not in chunk and b"\r" not in chunk:
            continue
        pending = b"".join(parts)
        held = b"\r" if pending.endswith(b"\r") else b""
        *lines, rest = END_OF_LINE.split(pending.removesuffix(held) if held else pending)
        for line in lines:
            yield line.decode("utf-8", "replace")
        parts = [rest + held]
