"""Random weights of realistic magnitude, for tests and benchmarks without a checkpoint.

The library's own initialisation is useless for that: SAM's standard deviation is 1e-10, and its position
embeddings and relative positions are zero, so every page would give the same features.
"""

import copy

import torch
from torch import nn
from transformers import UnlimitedOcrConfig
from transformers.initialization import no_init_weights

from app.ocr.models.config import OcrConfig
from app.ocr.models.deepseek import Network, network_class

WEIGHT_STD = 0.02


def full_size_config() -> UnlimitedOcrConfig:
    """Return DeepSeek-OCR's sizes: 12 layers of 1280 with 64 experts, SAM-B and CLIP-L, 3.3 B parameters."""
    text = {"layer_types": ["full_attention"] * 12, "max_position_embeddings": 8192}
    return UnlimitedOcrConfig(text_config=text)


def random_network(
    config: OcrConfig,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Network:
    """Build a network with random weights, in eval mode, directly on ``device``."""
    config = copy.deepcopy(config)
    config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            network = network_class(config)(config)
    finally:
        torch.set_default_dtype(before)
    initialise_random(network, seed)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def initialise_random(network: nn.Module, seed: int) -> None:
    """Fill every parameter, repeatably by ``seed``.

    Norms are one, biases zero, convolutions Kaiming, the rest normal with standard deviation 0.02.
    """
    normed = {
        id(p) for m in network.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)
    }
    convolved = {id(m.weight) for m in network.modules() if isinstance(m, nn.Conv2d)}
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in network.named_parameters():
        if parameter.device not in generators:
            generators[parameter.device] = torch.Generator(parameter.device).manual_seed(seed)
        generator = generators[parameter.device]
        if name.endswith("bias"):
            parameter.zero_()
        elif id(parameter) in normed:
            parameter.fill_(1.0)
        elif id(parameter) in convolved:
            nn.init.kaiming_normal_(parameter, generator=generator)
        else:
            parameter.normal_(0.0, WEIGHT_STD, generator=generator)
