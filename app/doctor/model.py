"""What reads pages: packages, the GPU and its driver, the files of the checkpoint."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import app
from app.doctor.finding import Finding
from app.settings import Settings

WORKER_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "huggingface-hub")
INSTALL_WORKER = "pip install 'rtprune[worker]'"
DRIVER = Path("/proc/driver/nvidia/version")
QUERY = ("--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader")
PATIENCE_S = 60.0
USES_CUDA = "import torch; print(torch.version.cuda or '', torch.cuda.is_available())"
GB = 1e9


def examine_model(settings: Settings) -> Iterator[Finding]:
    """Look at what a worker of this machine needs."""
    packages = _packages()
    yield packages
    yield from _gpu(settings, has_torch=not packages.is_bad)
    if packages.is_bad:
        return
    yield (
        Finding("checkpoint", "none: pages are not read")
        if settings.reader == "fake"
        else _checkpoint(settings)
    )


def _packages() -> Finding:
    found, missing = [], []
    for name in WORKER_PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        text = f"{', '.join(missing)} not installed; pages have to be read by workers elsewhere"
        return Finding("packages", text, is_bad=True, mend=INSTALL_WORKER)
    return Finding("packages", ", ".join(found))


def _gpu(settings: Settings, *, has_torch: bool) -> Iterator[Finding]:
    wants_gpu = settings.device.startswith("cuda")
    cards = _run("nvidia-smi", *QUERY)
    if not cards:
        what = "the driver is loaded, but nvidia-smi names no GPU" if DRIVER.exists() else "none"
        yield Finding(
            "gpu",
            f"{what}; pages are read on the CPU",
            is_fatal=wants_gpu,
            is_bad=settings.model != "pocket" or DRIVER.exists(),
            mend="set RTPRUNE_DEVICE=cpu" if wants_gpu else "install NVIDIA's driver and nvidia-smi",
        )
        return
    yield from (Finding("gpu", card) for card in cards.splitlines())
    if has_torch and (said := _run(sys.executable, "-P", "-c", USES_CUDA)) is not None:
        cuda, _, is_usable = said.strip().rpartition(" ")
        text = f"torch {'is built for ' + cuda if cuda else 'is a build for CPUs'}"
        yield Finding(
            "cuda",
            text + ("" if is_usable == "True" else "; it does not use this GPU"),
            is_bad=is_usable != "True",
            is_fatal=is_usable != "True" and wants_gpu,
            mend="install a torch that is built for a CUDA that the driver has",
        )


def _checkpoint(settings: Settings) -> Finding:
    """Open the files of the weights: whole, and every tensor where the index says."""
    from app.ocr.models.checkpoint import is_hub_id, open_weights  # noqa: PLC0415 - they need a worker's packages

    where = Path(settings.model)
    if settings.model == "pocket":
        where = Path(next(iter(app.__path__))) / "pocket" / "weights"
    elif is_hub_id(settings.model):
        cached = _in_cache(settings.model)
        if cached is None:
            return Finding("checkpoint", f"{settings.model} is downloaded from the hub at the first start")
        where = cached
    try:
        with open_weights(where) as tensors:
            num_tensors = len(tensors)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with files of others is what this is to say
        mend = "download the files again, or set RTPRUNE_MODEL to their folder"
        return Finding("checkpoint", str(error), is_fatal=True, mend=mend)
    size = sum(path.stat().st_size for path in where.glob("*.safetensors")) / GB
    return Finding("checkpoint", f"{settings.model}: {num_tensors} tensors, {size:.2f} GB, all files whole")


def _in_cache(hub_id: str) -> Path | None:
    import huggingface_hub  # noqa: PLC0415 - of a worker's packages
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    repository, _, revision = hub_id.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, local_files_only=True, allow_patterns=["*.json"]
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _run(program: str, *arguments: str) -> str | None:
    """Give what a program prints; ``None`` if it is not here or fails."""
    if (path := shutil.which(program)) is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a fixed list
            [path, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
