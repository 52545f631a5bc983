"""How much memory there is to take: machine, containers, and what a process holds itself."""

import mmap
import os
from pathlib import Path

import pytest
import torch
from ocr_checkpoints import original_tensors, random_small_network, write_checkpoint

from app import processes
from app.ocr.models.deepseek import SEQUENTIAL, load_model
from app.processes import available_mib, memory_mib, own_mib

MIB = 2**20


def group(at: Path, limit: str, used: int, cached: int, *, version: int = 2) -> None:
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    at.mkdir(parents=True, exist_ok=True)
    (at / names[0]).write_text(limit + "\n")
    (at / names[1]).write_text(f"{used}\n")
    (at / "memory.stat").write_text(f"anon 5\nactive_file {cached}\ninactive_file {cached}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_around_the_process_counts_and_cached_files_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    root = tmp_path / "memory" if version == 1 else tmp_path
    group(root / "outer", str(100 * MIB), 60 * MIB, 10 * MIB, version=version)
    group(root / "outer" / "inner", "max", 30 * MIB, 0, version=version)
    own = tmp_path / "own"
    own.write_text("4:memory:/outer/inner\n" if version == 1 else "0::/outer/inner\n")
    monkeypatch.setattr(processes, "CGROUPS", tmp_path)
    monkeypatch.setattr(processes, "OWN_CGROUPS", own)
    assert memory_mib() == 100
    assert available_mib() == 60, "of 100, 60 used, 20 of them files"


def test_without_groups_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CGROUPS", tmp_path)
    monkeypatch.setattr(processes, "OWN_CGROUPS", tmp_path / "none")
    assert 0 < available_mib() <= memory_mib()


def test_files_that_are_mapped_are_not_a_process_s_own(tmp_path: Path) -> None:
    size = 64 * MIB
    path = tmp_path / "weights"
    path.write_bytes(bytes(size))
    before = own_mib(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        after = own_mib(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before < 32


def test_weights_are_read_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads the library holds nearly all of them twice."""
    folder = write_checkpoint(tmp_path, original_tensors(random_small_network()))
    monkeypatch.setattr(
        "transformers.core_model_loading.ThreadPoolExecutor", lambda *_, **__: pytest.fail("threads")
    )
    monkeypatch.delenv(SEQUENTIAL, raising=False)
    load_model(folder, dtype=torch.bfloat16)
    assert SEQUENTIAL not in os.environ, "others may load as they like"
