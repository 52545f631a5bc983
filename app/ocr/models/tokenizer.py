"""Convert text to ids with the ``tokenizers`` library, and decode ids that arrive a few at a time.

Decoding works on bytes here, because a token may end inside a UTF-8 sequence. Streamed pieces and the text of
the finished page come from one table, so they cannot differ.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from app.errors import BadOption
from app.ocr.models.checkpoint import CheckpointError, read_json, read_text

TOKENIZER_FILE = "tokenizer.json"
IMAGE_TOKEN = "<image>"  # noqa: S105
PIECE = re.compile(r"\s?\S+")
NO_SUCH_TOKEN = "\N{REPLACEMENT CHARACTER}".encode()


class OcrTokenizer:
    """A checkpoint's vocabulary.

    ``hidden_ids`` (bos, eos, pad) decode to nothing; other special tokens are kept.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, hidden_ids: frozenset[int], image_id: int, byte_level: bool
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._image_id = image_id
        self._unprinted = hidden_ids | {image_id}
        self._bytes = _token_bytes(tokenizer, byte_level=byte_level)
        self._bytes.update(dict.fromkeys(hidden_ids, b""))

    @property
    def highest_id(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Convert a prompt to ids without bos; special tokens are recognised.

        Raise ``BadOption`` for characters that this vocabulary lacks and for image tokens.
        """
        if IMAGE_TOKEN in prompt:
            raise BadOption(
                f"prompt: {IMAGE_TOKEN} must not be part of a prompt; the page takes that place by itself"
            )
        try:
            ids = list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)
        # tokenizers raises bare Exception: for lone surrogates, and for characters outside a closed
        # vocabulary.
        except Exception as error:
            raise BadOption("prompt: has characters that this checkpoint's vocabulary lacks") from error
        if self._image_id in ids:
            raise BadOption("prompt: the image token must not be part of a prompt")
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Convert text that may be on a page to ids. Never raises.

        Words with characters that this vocabulary lacks are left out, and so are image tokens, bos, eos and
        pad.
        """
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception:  # noqa: BLE001 - as in ``prompt_ids``
            ids = [token for piece in PIECE.findall(text) for token in self._piece_ids(piece)]
        return [token for token in ids if token not in self._unprinted]

    def _piece_ids(self, piece: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(piece, add_special_tokens=False).ids)
        except Exception:  # noqa: BLE001 - as in ``prompt_ids``
            return []

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text.

        Bytes that are not UTF-8 and ids without a token become U+FFFD. Never raises.
        """
        spelled = b"".join(self._bytes.get(token_id, NO_SUCH_TOKEN) for token_id in ids)
        return spelled.decode("utf-8", "replace")


def read_tokenizer(
    folder: Path, *, bos_id: int, eos_id: int, pad_id: int | None, image_id: int
) -> OcrTokenizer:
    """Read the folder's ``tokenizer.json``.

    Raise ``CheckpointError`` if it is missing, broken or of an unknown kind.
    """
    text = read_text(folder, TOKENIZER_FILE)
    try:
        tokenizer = Tokenizer.from_str(text)
    # tokenizers raises bare Exception for whatever is wrong with the file.
    except Exception as error:
        raise CheckpointError(f"{folder}: {TOKENIZER_FILE} is not a tokenizer: {error}") from error
    byte_level = _is_byte_level(folder, json.loads(text).get("decoder"))
    pad_id = pad_id if pad_id is not None else _declared_pad(folder, tokenizer)
    hidden = frozenset(i for i in (bos_id, eos_id, pad_id) if i is not None)
    return OcrTokenizer(tokenizer, hidden_ids=hidden, image_id=image_id, byte_level=byte_level)


def _is_byte_level(folder: Path, decoder: dict[str, Any] | None) -> bool:
    """Tell byte-level BPE from a vocabulary of characters. Refuse any other kind."""
    kind = None if decoder is None else decoder.get("type")
    if kind not in (None, "Fuse", "ByteLevel"):
        raise CheckpointError(
            f"{folder}: {TOKENIZER_FILE}: decoder {kind} is not supported (ByteLevel, Fuse or none)"
        )
    return kind == "ByteLevel"


def _declared_pad(folder: Path, tokenizer: Tokenizer) -> int | None:
    """Return the id of the pad token named in ``tokenizer_config.json``.

    DeepSeek-OCR's config.json does not have it.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return None
    declared = read_json(folder, "tokenizer_config.json").get("pad_token")
    token = declared.get("content") if isinstance(declared, dict) else declared
    return tokenizer.token_to_id(token) if isinstance(token, str) else None


def _token_bytes(tokenizer: Tokenizer, *, byte_level: bool) -> dict[int, bytes]:
    alphabet = _byte_alphabet()
    table = {}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        spelled = [alphabet.get(character) for character in token] if byte_level else [None]
        # An added token with a character outside of the byte alphabet stands for its own text.
        table[token_id] = token.encode() if None in spelled else bytes(b for b in spelled if b is not None)
    return table


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of the 256 bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
