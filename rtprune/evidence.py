"""Input of RTPrune's rivals: evidence besides the visual tokens, and the patch tokens of one page."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rtprune.tokens import TokenBatch, VisualTokens


class MissingEvidenceError(ValueError):
    """A method was called without evidence that it needs."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What encoder, prompt and pixels tell about one page; each method takes the fields it needs.

    All fields but ``text`` have one row for each of the N patch tokens, in the order in which the decoder
    reads them. With tiles that is the order of the stitched grid; the encoder's own order is tile by tile.
    """

    class_attention: Tensor | None = None
    """(N,) attention of CLIP's class token in the last layer but one, summed over heads."""
    features: Tensor | None = None
    """(N, C) output of CLIP, before the projector."""
    hidden: Tensor | None = None
    """(N, C) hidden states of CLIP, averaged over the last third of its layers."""
    text: Tensor | None = None
    """(T, D) decoder embeddings of the prompt after the page."""
    ink: Tensor | None = None
    """(N,) number of edge pixels in each patch."""
    decode_attention: Tensor | None = None
    """(N,) attention that generated tokens paid to each patch, summed over steps, layers and heads."""
    trained: Tensor | None = None
    """(N,) scores of a head that was trained on this checkpoint's encoder."""

    def take(self, name: str, num_rows: int | None) -> Tensor:
        """Return a field as float64.

        Raise ``MissingEvidenceError`` when the field was not given, and ``ValueError`` when its length is not
        ``num_rows`` (``None``: any length) or when it is not finite.
        """
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
    ``grid``: (N,) int64, the grid that the patch is in; a new grid begins where the row width changes.
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
        """(N, D) embeddings scaled to length 1; a token of norm 0 stays 0."""
        return unit_rows(self.embeds)

    @classmethod
    def of_batch(cls, batch: TokenBatch, num_kept: Tensor) -> "Patches":
        """Take the patches out of a batch of one page."""
        return cls._of(batch.parts[0].embeds[0], batch.is_patch[0], batch.norms[0], int(num_kept[0]))

    @classmethod
    def of(cls, tokens: VisualTokens, num_kept: int) -> "Patches":
        """Take the patches out of ``tokens``."""
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
    """Return row, column and grid of each patch, found from the positions of the row breaks."""
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
    """Scale each row of an (N, C) tensor to length 1; a row of zeros stays zero."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.inf)


def highest(scores: Tensor, count: int) -> Tensor:
    """Return positions of the ``count`` highest scores, highest first; of equal scores the earlier wins.

    Sorts, because ``topk`` promises no order among equal scores.
    """
    return scores.sort(descending=True, stable=True).indices[:count]


def marked(indices: Tensor, length: int) -> Tensor:
    """Return (length,) float64 scores: 1 at ``indices``, 0 elsewhere. As a ranking they keep exactly
    ``indices``.
    """
    scores = torch.zeros(length, dtype=torch.float64, device=indices.device)
    scores[indices] = 1.0
    return scores


def spread(length: int, count: int, device: torch.device) -> Tensor:
    """Return ``count`` evenly spaced positions out of ``length``; the first is 0."""
    return torch.arange(count, device=device) * length // max(1, count)
