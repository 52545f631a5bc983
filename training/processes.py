"""Run several processes that train one network, each with a core or GPU of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch import distributed


def start_processes(count: int, arguments: Sequence[str]) -> int:
    """Run this program ``count`` times as one training. Return the largest exit status, 0 if none failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "training.train", *arguments]
    started = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)})  # noqa: S603 - our own
        for rank in range(count)
    ]
    try:
        return max(abs(process.wait()) for process in started)
    finally:
        for process in started:
            process.terminate()


def rank_and_world() -> tuple[int, int]:
    """Read rank and world size from the environment and join the process group.

    On a CPU each process gets a core of its own.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1:
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
            torch.set_num_threads(1)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if on_gpu else "gloo")
    return rank, world
