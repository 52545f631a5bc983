"""Training history of a checkpoint, one entry a run: ``training.json`` beside its weights."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

FILE = "training.json"


class RunFacts(BaseModel):
    """Facts of one run. ``stage`` and ``step``: its position in its settings when it was exported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pages_seen: int
    minutes: float
    device: str
    stage: int
    step: int


_Runs = TypeAdapter(tuple[RunFacts, ...])


def read_facts(checkpoint: Path) -> tuple[RunFacts, ...]:
    """Return the facts of all runs behind a checkpoint folder, the latest last; none without the file.

    Raise pydantic's ``ValidationError`` when the file has another content.
    """
    file = checkpoint / FILE
    return _Runs.validate_json(file.read_bytes()) if file.is_file() else ()


def write_facts(checkpoint: Path, runs: Sequence[RunFacts]) -> None:
    text = json.dumps([run.model_dump() for run in runs], indent=2)
    (checkpoint / FILE).write_text(text + "\n", encoding="utf-8")
