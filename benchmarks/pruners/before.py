"""Weights of the pocket checkpoint from before the first step of training that read pruned tokens."""

import json
import shutil
import subprocess
from pathlib import Path

from app.ocr.models.checkpoint_spec import SPEC_FILE
from app.pocket.opening import WEIGHTS
from benchmarks.report import ROOT

BEFORE = "before"
COMMIT = "b89b15fe4a662b1108ba178180ad46825a30cd5c"
FOLDER = "app/ocr/pocket"
FILES = ("config.json", "tokenizer.json", "training.json", "model.safetensors")
PAGES_SEEN = 12_800 + 76_000 + 64_000
"""Pages of the three stages before that one, in the settings of that commit: all had ``pruned_share = 0``."""


class NoHistoryError(FileNotFoundError):
    """This checkout does not hold the commit with the weights."""


def export_before(folder: Path, root: Path = ROOT) -> Path:
    """Write the weights into ``folder``, to be read as the packaged ones are, and return it.

    They come out of git's history. Raise ``NoHistoryError`` outside a checkout and in a shallow one, and
    ``ValueError`` when they had seen other pages than those of the stages before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        command = ["git", "show", f"{COMMIT}:{FOLDER}/{name}"]
        try:
            content = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoHistoryError(f"the weights of {COMMIT[:7]} are not in this checkout's history") from error
        (folder / name).write_bytes(content)
    seen = json.loads((folder / "training.json").read_text(encoding="utf-8"))["pages_seen"]
    if seen != PAGES_SEEN:
        raise ValueError(f"these weights have seen {seen} pages, not the {PAGES_SEEN} of before pruning")
    shutil.copy(WEIGHTS / SPEC_FILE, folder)
    return folder
