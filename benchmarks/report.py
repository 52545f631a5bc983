"""Report hardware, commit and figures of a benchmark as one JSON document, the last line of stdout."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def hardware(device: torch.device) -> str:
    """Name the hardware in one line, such as "NVIDIA H200, 139 GiB" or "AMD EPYC, 2 cores, 2 threads"."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"{_processor()}, no CUDA device"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def commit() -> str:
    """Return the commit measured, with "+" when tracked files differ from it.

    Return "unknown" outside a checkout.
    """
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def publish(figures: Mapping[str, object], device: torch.device, out: Path | None = None) -> None:
    """Print the document as the last line of stdout, and write it to ``out``."""
    document = {
        **figures,
        "hardware": hardware(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document), flush=True)


def _git(*words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
