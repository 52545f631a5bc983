"""What the decoder sees of the visual tokens: all of them, or only those that RTPrune keeps."""

from dataclasses import dataclass

import torch

from rtprune import VisualTokens, prune_batch, text_density
from training.batches import IGNORED
from training.render import PATCH_PX


@dataclass(frozen=True, slots=True)
class Seen:
    """Visual tokens of pages, (B, L, D), and (B, L) bool, which of them are kept; ``None`` keeps all."""

    embeds: torch.Tensor
    kept: torch.Tensor | None = None

    def __getitem__(self, rows: torch.Tensor) -> "Seen":
        return Seen(self.embeds[rows], None if self.kept is None else self.kept[rows])


def prune(visual: torch.Tensor, views: torch.Tensor) -> Seen:
    """Prune visual tokens (B, L, D) of pages with views (B, V, V); add what RTPrune folds into the kept ones.

    The fold is a constant to the gradient, because RTPrune's result has none.
    """
    side = views.shape[-1] // PATCH_PX
    is_patch = torch.tensor(([True] * side + [False]) * side + [False], device=visual.device)
    pixels = (views.float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    pruned = prune_batch(
        [VisualTokens(one, is_patch) for one in visual.detach()],
        [text_density(one, side, side) for one in pixels],
    )
    kept = torch.zeros(visual.shape[:2], dtype=torch.bool, device=visual.device)
    folded = torch.zeros_like(visual)
    for row, one in enumerate(pruned):
        at = one.kept.to(visual.device)
        kept[row, at] = True
        folded[row, at] = one.embeds - visual.detach()[row, at]
    return Seen(visual + folded, kept)


def attention_masks(hidden: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """Make the masks of the decoder. ``hidden``: (B, T) bool, keys that no query may see.

    Without hidden keys there is no mask at all, so that attention kernels skip later keys, not mask them.
    """
    if hidden is None:
        return {"full_attention": None, "reference_sliding_attention": None}
    length = hidden.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
    mask = causal & ~hidden[:, None, None, :]  # (B, 1, T, T)
    return {"full_attention": mask, "reference_sliding_attention": mask}


def visual_index(patches: torch.Tensor, side: int, kept: torch.Tensor | None) -> torch.Tensor:
    """Convert (B, T) row-major patch numbers to places among the visual tokens; ``IGNORED`` where pruned."""
    number = patches.clamp(min=0)
    place = number // side * (side + 1) + number % side
    is_there = patches != IGNORED
    if kept is not None:
        is_there &= kept.gather(1, place)
    return torch.where(is_there, place, IGNORED)
