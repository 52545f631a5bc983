"""What the engine says about itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, for health checks and metrics."""

    queued: int
    preparing: int
    encoding: int
    running: int
    slots: int
    kv_bytes: int
    steps: int
