"""Run tesseract and RapidOCR on the same pages. Neither is a dependency: both are used where found.

tesseract is started for each page, and its start is timed. RapidOCR is started for each kind, and its loading
is not timed. Both get PNG files with the pages' resolution and use their own defaults (tesseract: ``eng``).
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from benchmarks.accuracy.pages import Kind
from benchmarks.accuracy.reading import PLAIN, Figures
from benchmarks.accuracy.scores import character_scores

PAGE_SECONDS = 180
RAPIDOCR_SCRIPT = Path(__file__).with_name("rapidocr_folder.py")


class PeerMissing(Exception):
    """A peer cannot be measured here; the message says why and what to do about it."""


def recorded_peers(earlier: Path, readings: Sequence[Figures]) -> Figures:
    """Return the peers' figures from an earlier run, since a new checkpoint does not change them.

    Only kinds whose pages are as many and as long now as then are taken. The figures name that run.
    """
    run: dict[str, Any] = json.loads(earlier.read_text(encoding="utf-8"))
    same = {(row["kind"], row["pages"], row["characters"]) for row in readings if row["prompt"] == PLAIN}
    peers = run["peers"]
    rows = [row for row in peers["rows"] if (row["kind"], row["pages"], row["characters"]) in same]
    source = {name: peers.get(name, run[name]) for name in ("hardware", "commit", "measured_at")}
    return {**peers, "rows": rows, **source}


@dataclass(frozen=True, slots=True)
class Answer:
    """A peer's answer for one page. ``text``: empty for a page that failed."""

    text: str
    seconds: float
    failed: bool = False


class Peer(Protocol):
    name: str
    version: str

    def read(self, pages: Sequence[Path]) -> list[Answer]:
        """Read the pages of one folder, in order."""


class Tesseract:
    name = "tesseract"

    def __init__(self, threads: int, languages: str = "eng") -> None:
        """Find tesseract. ``languages``: of its models, joined by "+". Raise ``PeerMissing``."""
        command = shutil.which("tesseract")
        if command is None:
            raise PeerMissing("tesseract is not on PATH (Debian: apt-get install tesseract-ocr)")
        self._command = command
        self._languages = languages
        self._env = os.environ | {"OMP_THREAD_LIMIT": str(threads)}
        self.version = self._run("--version").stdout.split("\n", 1)[0].strip()

    def read(self, pages: Sequence[Path]) -> list[Answer]:
        return [self._page(page) for page in pages]

    def _page(self, page: Path) -> Answer:
        start = time.perf_counter()
        try:
            done = self._run(str(page), "stdout", "-l", self._languages)
        except subprocess.TimeoutExpired:
            return Answer("", PAGE_SECONDS, failed=True)
        seconds = time.perf_counter() - start
        return Answer(done.stdout, seconds) if done.returncode == 0 else Answer("", seconds, failed=True)

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._command, *words], capture_output=True, encoding="utf-8", errors="replace", env=self._env,
            timeout=PAGE_SECONDS, check=False,
        )  # fmt: skip


class RapidOcr:
    name = "rapidocr"

    def __init__(self, interpreter: str | None) -> None:
        """Find RapidOCR. ``interpreter``: a Python that has it; ``None``: this Python must have it.

        Raise ``PeerMissing``.
        """
        if interpreter is None:
            if not any(importlib.util.find_spec(name) for name in ("rapidocr", "rapidocr_onnxruntime")):
                raise PeerMissing(
                    "RapidOCR is not installed here: give --rapidocr-python the interpreter of an environment"
                    " with rapidocr (or rapidocr-onnxruntime) and onnxruntime"
                )
            interpreter = sys.executable
        self._interpreter = interpreter
        with TemporaryDirectory() as empty:
            self.version = str(self._run(Path(empty), PAGE_SECONDS)["version"])

    def read(self, pages: Sequence[Path]) -> list[Answer]:
        answers = self._run(pages[0].parent, PAGE_SECONDS * (1 + len(pages)))["answers"]
        return [Answer(answers[page.name]["text"], answers[page.name]["seconds"]) for page in pages]

    def _run(self, folder: Path, seconds: int) -> Any:
        command = [self._interpreter, str(RAPIDOCR_SCRIPT), str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerMissing(f"RapidOCR does not run with {self._interpreter}: {error}") from error
        if done.returncode != 0:
            last = done.stderr.strip().rsplit("\n", 1)[-1]
            raise PeerMissing(f"RapidOCR does not run with {self._interpreter}: {last}")
        return json.loads(done.stdout.splitlines()[-1])


def find_peers(rapidocr_python: str | None, threads: int) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers that run here, and why each of the others does not."""
    peers: list[Peer] = []
    absent: dict[str, str] = {}
    try:
        peers.append(Tesseract(threads))
    except PeerMissing as missing:
        absent[Tesseract.name] = str(missing)
    try:
        peers.append(RapidOcr(rapidocr_python))
    except PeerMissing as missing:
        absent[RapidOcr.name] = str(missing)
    return peers, absent


def row(peer: Peer, kind: Kind) -> Figures:
    with TemporaryDirectory() as folder:
        paths = []
        for index, sample in enumerate(kind.samples):
            paths.append(Path(folder) / f"{index:05}.png")
            dpi = sample.image.info.get("dpi")
            sample.image.save(paths[-1], **({"dpi": dpi} if dpi else {}))
        answers = peer.read(paths)
    texts, truth = [answer.text for answer in answers], [sample.text for sample in kind.samples]
    return {
        "reader": peer.name,
        "kind": kind.name,
        "prompt": PLAIN,
        **character_scores(texts, truth, ignores_case=kind.ignores_case),
        "failed": sum(answer.failed for answer in answers),
        "seconds_per_page": round(sum(answer.seconds for answer in answers) / len(answers), 3),
    }
