"""What rivals of RTPrune look at beside the visual tokens, and one page's patch tokens as they see them."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rtprune.tokens import TokenBatch, VisualTokens


class MissingEvidenceError(ValueError):
    """A method was called without something it chooses by."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What encoder, prompt and pixels of one page say; a method takes what it needs.

    All but ``text`` have one row for each of the N patch tokens, in the order in which the decoder reads
    them. With tiles that is the order of the stitched grid, not tile by tile as the encoder gives it.
    """

    class_attention: Tensor | None = None
    """(N,) attention of CLIP's class token in the layer before the last, summed over heads."""
    features: Tensor | None = None
    """(N, C) output of CLIP, before the projector."""
    hidden: Tensor | None = None
    """(N, C) hidden states of CLIP, averaged over the last third of its layers."""
    text: Tensor | None = None
    """(T, D) decoder embeddings of the prompt after the page."""
    ink: Tensor | None = None
    """(N,) edge pixels of each patch."""
    decode_attention: Tensor | None = None
    """(N,) attention that generated tokens paid, summed over steps, layers and heads."""

    def take(self, name: str, num_rows: int | None) -> Tensor:
        """Return a field as float64. Raises ``MissingEvidenceError``; ``ValueError`` for another length."""
        value = getattr(self, name)
        if value is None:
            raise MissingEvidenceError(f"evidence.{name} is needed and was not given")
        tensor: Tensor = value.double()
        if num_rows is not None and len(tensor) != num_rows:
            raise ValueError(f"evidence.{name} must have {num_rows} rows, one a patch, got {len(tensor)}")
        if not tensor.isfinite().all():
            raise ValueError(f"evidence.{name} must be finite")
        return tensor


NO_EVIDENCE = Evidence()
EVIDENCE_NAMES = tuple(field.name for field in fields(Evidence))


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """The N patch tokens of one page, and how many of them a method must keep.

    ``embeds``: (N, D) float64. ``norms``: (N,) float64. ``row``, ``column``: (N,) int64 places in the grid.
    ``grid``: (N,) int64, which grid; rows of another width begin a new one.
    """

    embeds: Tensor
    norms: Tensor
    row: Tensor
    column: Tensor
    grid: Tensor
    num_kept: int

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def units(self) -> Tensor:
        """(N, D) of length 1; a token of norm 0 stays 0."""
        return unit_rows(self.embeds)

    @classmethod
    def of_batch(cls, batch: TokenBatch, num_kept: Tensor) -> "Patches":
        """The patches of a batch of one page."""
        return cls._of(batch.parts[0].embeds[0], batch.is_patch[0], batch.norms[0], int(num_kept[0]))

    @classmethod
    def of(cls, tokens: VisualTokens, num_kept: int) -> "Patches":
        """The patches of ``tokens``."""
        norms = torch.linalg.vector_norm(tokens.embeds, dim=-1, dtype=torch.float64)
        return cls._of(tokens.embeds, tokens.is_patch.to(tokens.embeds.device), norms, num_kept)

    @classmethod
    def _of(cls, embeds: Tensor, is_patch: Tensor, norms: Tensor, num_kept: int) -> "Patches":
        places = _places(is_patch.tolist())
        row, column, grid = (
            torch.tensor(places, dtype=torch.int64, device=embeds.device).view(-1, 3).unbind(1)
        )
        return cls(embeds[is_patch].double(), norms[is_patch], row, column, grid, num_kept)


def _places(is_patch: list[bool]) -> list[tuple[int, int, int]]:
    """Row, column and grid of each patch, from where the row breaks are."""
    places: list[tuple[int, int, int]] = []
    row = grid = width = 0
    line: list[int] = []
    for patch in [*is_patch, False]:
        if patch:
            line.append(len(line))
        elif line:
            if width not in (0, len(line)):
                grid, row = grid + 1, 0
            width = len(line)
            places += [(row, column, grid) for column in line]
            row, line = row + 1, []
    return places


def unit_rows(rows: Tensor) -> Tensor:
    """(N, C) -> the same of length 1; a row of zeros stays."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.inf)


def highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` highest scores, highest first; of equal ones the earlier.

    ``topk`` promises no order among equal ones.
    """
    return scores.sort(descending=True, stable=True).indices[:count]


def marked(indices: Tensor, length: int) -> Tensor:
    """(length,) float64: 1 at ``indices``, 0 elsewhere. As scores they keep exactly these."""
    scores = torch.zeros(length, dtype=torch.float64, device=indices.device)
    scores[indices] = 1.0
    return scores


def spread(length: int, count: int, device: torch.device) -> Tensor:
    """``count`` positions of ``length``, evenly apart, the first at 0."""
    return torch.arange(count, device=device) * length // max(1, count)
