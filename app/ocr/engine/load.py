"""Report how busy the engine is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Counts of one moment: pages in each stage, KV bytes and decode steps so far."""

    queued: int
    preparing: int
    encoding: int
    running: int
    slots: int
    kv_bytes: int
    steps: int
