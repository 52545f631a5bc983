"""Network of the pocket checkpoint: transformers' own classes at small sizes, and a head for training."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

from training.render import CELLS_PER_PATCH
from training.settings import ModelSettings
from training.vocabulary import BOS, EOS, IMAGE, PAD, tokens


def pocket_config(sizes: ModelSettings) -> UnlimitedOcrConfig:
    return UnlimitedOcrConfig(
        image_token_id=IMAGE,
        tie_word_embeddings=False,
        text_config={
            "vocab_size": len(tokens()),
            "hidden_size": sizes.decoder_width,
            "intermediate_size": sizes.decoder_ffn,
            "num_hidden_layers": sizes.decoder_layers,
            "num_attention_heads": sizes.decoder_heads,
            "num_key_value_heads": sizes.decoder_heads,
            # The default is sliding attention, and `sliding_window=None` is refused.
            "layer_types": ["full_attention"] * sizes.decoder_layers,
            "mlp_layer_types": ["dense"] * (sizes.decoder_layers - 1) + ["sparse"],
            "n_routed_experts": sizes.experts,
            "num_experts_per_tok": sizes.experts_per_token,
            "moe_intermediate_size": sizes.expert_ffn,
            "n_shared_experts": sizes.decoder_ffn // sizes.expert_ffn,
            "max_position_embeddings": sizes.max_positions,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        },
        vision_config={
            "sam_config": {
                "hidden_size": sizes.sam_width,
                "num_hidden_layers": sizes.sam_layers,
                "num_attention_heads": sizes.sam_heads,
                "mlp_dim": 4 * sizes.sam_width,
                "output_channels": sizes.sam_neck,
                "downsample_channels": list(sizes.sam_downsample),
                # Position tables are small and stretched to the view, so they give rough places on the page.
                "image_size": sizes.sam_table_px,
                "patch_size": 16,
                "window_size": sizes.sam_window,
                # Attention over all 16 px patches of a whole page would cost more than all else.
                "global_attn_indexes": list(sizes.sam_global),
            },
            "encoder_config": {
                "hidden_size": sizes.vision_width,
                "num_hidden_layers": sizes.vision_layers,
                "num_attention_heads": sizes.vision_heads,
                "intermediate_size": 4 * sizes.vision_width,
                # Its patches are the SAM part's output, one for 64 px: "16 px" of a quarter-size image.
                "image_size": sizes.view_px // 4,
                "patch_size": 16,
            },
        },
    )


def fresh_network(sizes: ModelSettings, seed: int) -> Any:
    """Build a network with random weights.

    The library initialises the SAM part with 1e-10, from which it never learns; so it is initialised anew.
    """
    torch.manual_seed(seed)
    network = UnlimitedOcrForConditionalGeneration(pocket_config(sizes))
    for name, module in network.named_modules():
        if "vision_tower" not in name and "projector" not in name:
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=min(0.05, 1 / math.sqrt(module.in_features)))
    for name, parameter in network.named_parameters():
        if "pos_embed" in name or "rel_pos" in name or "position_embedding" in name:
            nn.init.normal_(parameter, std=0.02)
    return network


def grow_from(network: Any, folder: Path) -> None:
    """Copy an earlier checkpoint of the same widths into the network, in place, so that it computes the same.

    Position tables of other sizes are stretched and windows of attention widened. Rows of the vocabulary
    beyond the earlier one keep their fresh values. Where the earlier one has a dense FFN and the network a
    mixture, the FFN becomes the shared expert, and the routed experts start silent. Decoder layers beyond the
    earlier ones are inserted before the last and start silent.

    Raise ``KeyError`` or ``RuntimeError`` when the two do not fit.
    """
    grown_from = UnlimitedOcrForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    earlier = grown_from.state_dict()
    own = dict(network.named_parameters())
    last_earlier = grown_from.config.text_config.num_hidden_layers - 1
    last_own = len(network.model.language_model.layers) - 1
    with torch.no_grad():
        for name, tensor in earlier.items():
            target = own[_own_name(name, own, last_earlier, last_own)]
            if target.shape == tensor.shape:
                target.copy_(tensor)
            elif "rel_pos" in name:
                target.copy_(_wider(tensor, len(target)))
            elif "pos_embed" in name:
                target.copy_(_stretched(tensor[0], target.shape[1])[None])
            elif "position_embedding" in name:
                side, earlier_side = (math.isqrt(len(table) - 1) for table in (target, tensor))
                grid = tensor[1:].view(earlier_side, earlier_side, -1)
                target.copy_(torch.cat([tensor[:1], _stretched(grid, side).flatten(0, 1)]))
            else:
                target[: tensor.shape[0]].copy_(tensor)
        for name, parameter in own.items():
            if name.endswith("experts.down_proj") and name not in earlier and last_earlier == last_own:
                nn.init.normal_(parameter, std=1e-3)
            is_new = any(f"language_model.layers.{layer}." in name for layer in range(last_earlier, last_own))
            if is_new and name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                nn.init.zeros_(parameter)


def _wider(table: torch.Tensor, length: int) -> torch.Tensor:
    """Widen a table of relative positions. (2w - 1, d) -> (length, d).

    Distances beyond the table get the values of the farthest one it has.
    """
    missing = (length - len(table)) // 2
    return torch.cat([table[:1].expand(missing, -1), table, table[-1:].expand(missing, -1)])


def _stretched(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Resize a position table by bicubic interpolation. (S, S, d) -> (side, side, d)."""
    channels_first = grid.permute(2, 0, 1)[None]
    return functional.interpolate(channels_first, size=(side, side), mode="bicubic")[0].permute(1, 2, 0)


def _own_name(name: str, own: dict[str, nn.Parameter], last_earlier: int, last_own: int) -> str:
    name = name.replace(f"language_model.layers.{last_earlier}.", f"language_model.layers.{last_own}.")
    return name if name in own else name.replace(".mlp.", ".mlp.shared_experts.")


class DenseHead(nn.Module):
    """Names the character centred in each cell. (B, N, D) patch tokens -> (B, N, 32, classes).

    It is thrown away after training.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, CELLS_PER_PATCH * num_classes)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.norm(patches))
        return logits.view(*logits.shape[:-1], CELLS_PER_PATCH, -1)
