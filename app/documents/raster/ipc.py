"""Encode messages between our processes: four bytes of length, then a JSON object; raw bytes may follow."""

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

MAX_FRAME_BYTES = 16 * 2**20
LENGTH = struct.Struct("!I")


class FrameError(Exception):
    """The other side sent an invalid frame, or a message is too large for one."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Encode a message. Raise ``FrameError`` if it is too large or has numbers that JSON does not have."""
    try:
        body = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise FrameError(f"message is not JSON: {error}") from error
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return LENGTH.pack(len(body)) + body


def read_frame_blocking(stream: BinaryIO) -> dict[str, Any] | None:
    """Read the next message; return ``None`` when the other side is gone, even in the middle of a message."""
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    length = frame_length(header)
    body = stream.read(length)
    return message_of(body) if len(body) == length else None


def frame_length(header: bytes | bytearray) -> int:
    """Return the length in a frame's first ``LENGTH.size`` bytes. Raise ``FrameError`` over the limit."""
    length: int = LENGTH.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return length


def message_of(body: bytes | bytearray) -> dict[str, Any]:
    """Decode the message in a frame's body. Raise ``FrameError`` if it is not a JSON object."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise FrameError(f"frame is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise FrameError(f"frame is a JSON {type(message).__name__}, not an object")
    return message
