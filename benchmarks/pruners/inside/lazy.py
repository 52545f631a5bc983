"""LazyLLM: tokens leave in every pass, and come back when a later one looks at them again."""

import torch

from benchmarks.pruners.inside.layers import Prompts, in_order, look
from benchmarks.pruners.inside.rules import best, evenly_fewer


class LazyAttention:
    """Attention in which each pass, prompt or written token, begins with all patches and loses some by layer.

    What a layer computed of a patch is kept until a pass needs it in the next one (the Aux cache); its key
    and value are computed then, once, at its own position. So a patch that comes back takes part with what it
    was when it left, and no layer computes it twice. Text, row breaks and written tokens never leave.

    ``counts``: (layers, B) patches that enter each layer of a pass. ``held``: keys and values of each layer,
    (B, H, T + written, K); those of a prompt token hold where ``has_kv``, (layers, B, T) bool, says so.
    """

    def __init__(self, prompts: Prompts, num_layers: int) -> None:
        num_rows, length, width = prompts.embeds.shape
        device, dtype = prompts.embeds.device, prompts.embeds.dtype
        wanted = prompts.wanted.tolist()
        counts = [evenly_fewer(prompts.num_patches, one, num_layers) for one in wanted]
        self.counts = torch.tensor(counts, device=device).round().long().T.contiguous()
        self.has_kv = torch.zeros(num_layers, num_rows, length, dtype=torch.bool, device=device)
        self.is_writing = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._is_patch = prompts.is_patch
        self._aux = torch.zeros(num_layers, num_rows, length, width, device=device, dtype=dtype)
        self.held: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._alive = torch.ones(num_rows, length, dtype=torch.bool, device=device)
        self._is_computed = torch.ones_like(self._alive)
        """Prompt tokens that this pass computes in the present layer."""
        self._read: list[float] = []

    @property
    def share_held(self) -> float:
        """Share of the patches' keys and values that are in the cache in the end."""
        return float(self.has_kv[:, :, self._is_patch].double().mean())

    @property
    def share_read(self) -> float:
        """Share of the patches that a pass attended to, on average over layers and passes."""
        return sum(self._read) / len(self._read)

    def begin(self, embeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin a pass with all patches; one that writes has rows for prompt tokens that may come back."""
        self._alive = torch.ones_like(self._alive)
        if not self.held:
            return embeds, positions
        self._is_computed = torch.zeros_like(self._alive)
        num_rows, length = self._alive.shape
        places = torch.arange(length, device=positions.device).expand(num_rows, -1)
        blank = embeds.new_zeros(num_rows, length, embeds.shape[2])
        return torch.cat((blank, embeds), dim=1), torch.cat((places, positions), dim=1)

    def enter(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Put what the layer below computed aside, and take up what this layer has yet to compute."""
        length = self._alive.shape[1]
        prompt, written = hidden[:, :length], hidden[:, length:]
        self._aux[layer] = torch.where(self._is_computed[..., None], prompt, self._aux[layer])
        self._is_computed = self._alive & ~self.has_kv[layer]
        self.has_kv[layer] |= self._is_computed
        return torch.cat((torch.where(self._is_computed[..., None], self._aux[layer], prompt), written), 1)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend to the living prompt tokens and all written ones; then say who stays for the next layer."""
        length = self._alive.shape[1]
        if layer == len(self.held):
            self.held.append((key, value))
        else:
            is_new = self._is_computed[:, None, :, None]
            self.held[layer] = tuple(
                torch.cat((torch.where(is_new, now[:, :, :length], old[:, :, :length]), old[:, :, length:],
                           now[:, :, length:]), dim=2)
                for old, now in zip(self.held[layer], (key, value), strict=True)
            )  # type: ignore[assignment] # fmt: skip
        keys, values = self.held[layer]
        may_look = in_order(self._alive)
        if query.shape[2] > length:
            written = keys.shape[2] - length
            may_look = torch.nn.functional.pad(may_look, (0, written))
            last = torch.nn.functional.pad(self._alive, (0, written), value=True)[:, None, None]
            may_look = torch.cat((may_look, last), dim=2)
        mixed, shares = look(query, keys, values, scale, may_look)
        self._read.append(float(self._alive[:, self._is_patch].double().mean()))
        if layer + 1 < len(self.counts):
            looked_at = shares.mean(1)[:, -1, :length]
            stays = best(looked_at, self._alive & self._is_patch, self.counts[layer + 1])
            self._alive = stays | ~self._is_patch
        return mixed
