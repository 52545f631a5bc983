"""Checkpoint folders: find them, read them, and report everything that can be wrong with them.

Only this module reads weights, and only from safetensors. A folder is data: nothing in it is executed,
unpickled or followed to another place.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
HUB_PATTERNS = [
    "model*.safetensors",
    INDEX_FILE,
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "rtprune.json",
    "fixation.json",
]
SHARD_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors")
POSITION_BUFFER = ".embeddings.position_ids"
FLOAT_DTYPES = frozenset({"F32", "F16", "BF16"})

LazyTensor = Any
"""A slice of safetensors, which has no public type: ``get_shape()``, ``get_dtype()``, and values once
indexed.
"""


class CheckpointError(Exception):
    """A checkpoint cannot be used.

    The text is for the operator and names the file, key or setting that is wrong.
    """


Progress = Callable[[int, int], None]
"""Called with the bytes that have arrived and the total, as far as it is known."""


def is_hub_id(path_or_id: str | Path) -> bool:
    """Tell whether ``locate`` would ask the hub, or the hub's cache on this machine."""
    return (
        not Path(path_or_id).is_dir()
        and isinstance(path_or_id, str)
        and HUB_ID.fullmatch(path_or_id) is not None
    )


def locate(path_or_id: str | Path, progress: Progress | None = None) -> Path:
    """Return the local folder of a folder path or a hub id, ``owner/name`` or ``owner/name@revision``.

    An existing folder wins over a hub id of the same spelling. A hub id is downloaded once (only weights,
    config and tokenizer files); with ``HF_HUB_OFFLINE=1`` it must already be in the cache. Raise
    ``CheckpointError`` if there is neither.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if is_hub_id(path_or_id):
        return _download(str(path_or_id), progress)
    raise CheckpointError(f"{path_or_id}: neither a folder nor a hub id like owner/name")


class _NullFile(io.StringIO):
    """A file that discards what a progress bar draws."""

    def write(self, text: str) -> int:
        return len(text)


def _bar_that_tells(progress: Progress) -> type[tqdm]:
    """Return a progress bar class that draws nothing and reports how many bytes have arrived."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False, "file": _NullFile()})

        def update(self, n: float | None = 1) -> bool | None:
            updated: bool | None = super().update(n)
            if self.unit == "B":  # other bars count files
                progress(int(self.n), int(self.total or 0))
            return updated

    return Bar


def _download(hub_id: str, progress: Progress | None) -> Path:
    repository, _, revision = hub_id.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=HUB_PATTERNS,
            tqdm_class=None if progress is None else _bar_that_tells(progress),
        )
    except LocalEntryNotFoundError as error:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = (
            "HF_HUB_OFFLINE is set and it is not in the cache" if offline else "the hub cannot be reached"
        )
        raise CheckpointError(f"{hub_id}: {reason}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{hub_id}: cannot be downloaded: {error}") from error
    return Path(folder)


def read_text(folder: Path, name: str) -> str:
    """Read a UTF-8 file of the folder. Raise a ``CheckpointError`` that names it."""
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: {name} cannot be read: {error}") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of the folder. Raise a ``CheckpointError`` that names the file."""
    try:
        value = json.loads(read_text(folder, name))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder}: {name} must hold a JSON object, not {type(value).__name__}")
    return value


@contextmanager
def open_weights(folder: Path) -> Iterator[dict[str, LazyTensor]]:
    """Open all tensors of the folder by key.

    They are unread until indexed, and valid inside the ``with`` block. Headers are checked first: every file
    is whole, every indexed key is where the index says, no key occurs twice, and all values are floats. Raise
    ``CheckpointError`` otherwise.
    """
    placed = {key: name for key, name in _weight_map(folder).items() if not _is_position_buffer(key)}
    tensors: dict[str, LazyTensor] = {}
    with ExitStack() as open_files:
        for name in sorted(set(placed.values())) if placed else [SINGLE_FILE]:
            for key, tensor in _open_file(folder, name, open_files).items():
                if placed and placed.get(key) != name:
                    raise CheckpointError(
                        f"{folder}: {INDEX_FILE} does not place {key} in {name}, where it is"
                    )
                tensors[key] = tensor
        absent = sorted(set(placed) - set(tensors))
        if absent:
            raise CheckpointError(
                f"{folder}: {placed[absent[0]]} lacks {some(absent)}, listed in {INDEX_FILE}"
            )
        yield tensors


def _weight_map(folder: Path) -> Mapping[str, str]:
    """Read the index: key -> shard file name. Empty when one file holds everything."""
    if (folder / SINGLE_FILE).is_file():
        return {}
    if not (folder / INDEX_FILE).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"; {some(pickles)} is a pickle, which is never loaded" if pickles else ""
        raise CheckpointError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE}{found}")
    placed = read_json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{folder}: {INDEX_FILE} has no weight_map")
    for key, name in placed.items():
        # A plain name: the index must not reach outside of the folder. Hub caches link files, so links are
        # followed.
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise CheckpointError(
                f"{folder}: {INDEX_FILE} places {key} in {name!r}, which is no file of this folder"
            )
    return placed


def _open_file(folder: Path, name: str, open_files: ExitStack) -> dict[str, LazyTensor]:
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder}: {name} is missing")
    try:
        handle = open_files.enter_context(safe_open(folder / name, framework="pt"))
        tensors = {key: handle.get_slice(key) for key in handle.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}: {name} is corrupt or cut short: {error}") from error
    for key, tensor in tensors.items():
        if _is_position_buffer(key):
            _check_positions(folder, key, tensor)
        elif tensor.get_dtype() not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{folder}: {key} in {name} has dtype {tensor.get_dtype()}; quantised weights do not load"
            )
    return {key: tensor for key, tensor in tensors.items() if not _is_position_buffer(key)}


def _is_position_buffer(key: str) -> bool:
    """Tell whether ``key`` is the position buffer that the released code's ``save_pretrained`` writes."""
    return key.endswith(POSITION_BUFFER)


def _check_positions(folder: Path, key: str, tensor: LazyTensor) -> None:
    """Refuse a position buffer that does not count from 0; the model here creates that one itself."""
    shape = tensor.get_shape()
    is_row = tensor.get_dtype() == "I64" and len(shape) == 2 and shape[0] == 1
    if not is_row or tensor[:].tolist() != [list(range(shape[1]))]:
        raise CheckpointError(f"{folder}: {key} is no row of positions from 0")


def some(names: list[str], most: int = 5) -> str:
    """Join the first few names and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
