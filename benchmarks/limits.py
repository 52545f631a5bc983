"""Limits of the hardware, operations and bytes a second, and what a pass of the decoder must read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

FLOPS = 790e12
"""bfloat16 operations a second, measured on an H200."""
BYTES_PER_S = 4.3e12
"""Bytes a second that device memory delivers, measured on an H200."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of the decoder that a step reads: always, and only if their expert is chosen."""

    always: int
    routed: int
    experts: int
    experts_per_token: int
    itemsize: int

    @classmethod
    def of(cls, network: Any) -> "Weights":
        text = network.config.text_config
        routed = always = 0
        for name, weights in (
            *network.model.language_model.named_parameters(),
            ("lm_head", network.lm_head.weight),
        ):
            if ".experts." in name:
                routed += weights.numel()
            elif "embed_tokens" not in name:
                always += weights.numel()
        itemsize = network.lm_head.weight.element_size()
        return cls(always, routed, text.n_routed_experts, text.num_experts_per_tok, itemsize)

    def share_read(self, num_tokens: int) -> float:
        """Return the share of the routed experts that one pass reads.

        Assumes that each of the ``num_tokens`` tokens chooses its experts at random.
        """
        return 1 - (1 - self.experts_per_token / self.experts) ** num_tokens

    def limit_s(self, num_tokens: int, kv_bytes: float = 0.0, share: float | None = None) -> float:
        """Return the least seconds of one pass over ``num_tokens``.

        ``share``: share of the routed experts that are read; by default what random choices give.
        """
        share = self.share_read(num_tokens) if share is None else share
        active = self.always + self.routed * self.experts_per_token / self.experts
        read = self.itemsize * (self.always + self.routed * share)
        return max(2 * active * num_tokens / FLOPS, (read + kv_bytes) / BYTES_PER_S)


class ViewFlops:
    """Counts the operations that a view costs.

    Counts on shapes alone, because kernels and captured graphs cannot be counted. ``network``: the library's
    modules on torch's meta device.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self._counted: dict[int, int] = {}

    def of(self, side: int) -> int:
        if side not in self._counted:
            model = self._network.model
            with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
                features = model.vision_tower(torch.empty(1, 3, side, side)).last_hidden_state
                model.multi_modal_projector(features)
            self._counted[side] = counter.get_total_flops()
        return self._counted[side]
