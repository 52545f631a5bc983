"""A folder of results, which knows what is in it: a run that was stopped goes on where it was."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.commands.inputs import Input

JOURNAL = ".rtprune-done.jsonl"


class ResultFolder:
    """Results named after their inputs, and a journal of what each was made of."""

    def __init__(self, folder: Path, suffix: str, options: Mapping[str, Any]) -> None:
        """Raise ``OSError`` for a folder that cannot be."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._suffix = suffix
        self._options = json.dumps([suffix, options], sort_keys=True)
        self._journal = folder / JOURNAL
        self._made = self._read()

    def path(self, one: Input) -> Path:
        """Return where the result of an input goes."""
        return self._folder / f"{one.result}{self._suffix}"

    def is_done(self, one: Input) -> bool:
        """Tell whether the result is there, whole, of this very input and with these options."""
        path = self.path(one)
        mark = self._mark(one)
        return mark is not None and self._made.get(self._name(path)) == mark and path.exists()

    def is_foreign(self, one: Input) -> bool:
        """Tell whether a file is where the result is to go, and no run of this command put it there."""
        path = self.path(one)
        return path.exists() and self._name(path) not in self._made

    def write(self, one: Input, answer: bytes, *, is_whole: bool) -> Path:
        """Write a result. One of which pages are missing is made again by the next run."""
        path = self.path(one)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".rtprune-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(answer)
            # before the file has its name: what a crash leaves is then known to be ours
            self._note(path, (self._mark(one) or "") if is_whole else "")
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    def _mark(self, one: Input) -> str | None:
        identity = one.identity
        if identity is None:
            return None
        text = f"{identity}\n{self._options}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))

    def _note(self, path: Path, mark: str) -> None:
        name = self._name(path)
        self._made[name] = mark
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"result": name, "made_of": mark}) + "\n")

    def _read(self) -> dict[str, str]:
        try:
            lines = self._journal.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        made = {}
        for line in lines:
            try:
                entry = json.loads(line)
                made[str(entry["result"])] = str(entry["made_of"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that was being written when the power went
        return made
