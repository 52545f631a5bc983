"""How published methods choose patch tokens before the decoder: patches of one page -> scores.

They are written from the formulas in the papers named. Parameters are those of the papers' code, or of
RTPrune's authors where they ported a method to DeepSeek-OCR. All run in float64, so that no comparison
depends on rounding.
"""

import torch
from torch import Tensor

from rtprune.evidence import Evidence, Patches, highest, marked, spread, unit_rows

MAX_CONTEXTUAL = 30
"""VisionZip: how many of the kept tokens at most receive merged ones."""
IMPORTANT_SHARE = 0.5
"""VisPruner: share of the kept tokens that is chosen by attention."""
MAX_DROPPED_AT_ONCE = 8
"""VisPruner: tokens dropped in one round."""
PILLAR_QUANTILE = 0.55
"""Nuewa: kept tokens whose attention reaches this quantile are pillars, which take nothing in."""
REACH_SQUARED = 280 / 24**2
"""Nuewa: squared distance, in sides of the grid, from which on nothing is taken in; 280 on a 24 x 24 grid."""
SMALLEST = 1e-12
RELEVANCE_FLOOR = 1e-6


def uniform(patches: Patches) -> Tensor:
    """Keep every N/k-th token."""
    return marked(spread(len(patches), patches.num_kept, patches.row.device), len(patches))


def checkerboard(patches: Patches) -> Tensor:
    """Keep the black squares of a checkerboard, evenly spaced; add evenly spaced white ones when black ones
    are too few.
    """
    is_white = (patches.row + patches.column) % 2
    black, white = (is_white == 0).nonzero()[:, 0], (is_white == 1).nonzero()[:, 0]
    device = patches.row.device
    from_black = min(len(black), patches.num_kept)
    chosen = [black[spread(len(black), from_black, device)]]
    chosen.append(white[spread(len(white), patches.num_kept - from_black, device)])
    return marked(torch.cat(chosen), len(patches))


def row_groups(patches: Patches) -> Tensor:
    """Return (N,) int64: the run that each token is averaged into, of k runs along the rows; -1 for a row
    without a run.

    Each row gets its share of the k runs and splits them over its tokens as evenly as possible.
    """
    lines = torch.stack((patches.grid, patches.row), dim=1)
    _, counts = torch.unique_consecutive(lines, dim=0, return_counts=True)
    lengths: list[int] = counts.tolist()
    groups: list[int] = []
    given = 0
    for length in lengths:
        until = (len(groups) + length) * patches.num_kept // len(patches)
        share = until - given
        groups += [given + i * share // length if share else -1 for i in range(length)]
        given = until
    return torch.tensor(groups, dtype=torch.int64, device=patches.row.device)


def row_pooling(patches: Patches) -> Tensor:
    """Keep the first token of each run of ``row_groups``; ``pooled`` replaces it by the mean of the run."""
    groups = row_groups(patches)
    before = groups.roll(1)
    before[0] = -1
    return ((groups != before) & (groups >= 0)).double()


def pooled(patches: Patches, kept: Tensor) -> Tensor:
    """Average each run: (k,) kept positions -> (k, D) means."""
    groups = row_groups(patches)
    inside = groups >= 0
    sums = torch.zeros(len(kept), patches.embeds.shape[1], dtype=torch.float64, device=kept.device)
    sums.index_add_(0, groups[inside], patches.embeds[inside])
    return sums / groups[inside].bincount(minlength=len(kept))[:, None]


def divprune(patches: Patches) -> Tensor:
    """Keep tokens by greedy max-min diversity in cosine distance, after DivPrune (CVPR 2025).

    Starts at the token farthest from its nearest neighbour, then always takes the token farthest from those
    taken. Takes one step a token, so it is fit for comparisons but too slow to serve with.
    """
    units = patches.units
    distances = (1 - units @ units.T).fill_diagonal_(torch.inf)
    scores = torch.full_like(patches.norms, -torch.inf)
    newest = distances.amin(1).argmax()
    nearest = torch.full_like(patches.norms, torch.inf)  # distance to those taken; -inf once taken
    for step in range(patches.num_kept):
        scores[newest] = -step
        nearest = torch.minimum(nearest, distances[newest])
        nearest[newest] = -torch.inf
        newest = nearest.argmax()
    return scores


def cdpruner(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep tokens by greedy MAP of a determinantal point process, after CDPruner (NeurIPS 2025).

    The kernel is relevance times similarity of CLIP's features times relevance. As in the port to
    DeepSeek-OCR, relevance is the mean negative cosine between projected token and prompt embeddings, scaled
    to [0, 1]. In the port the two factors order tiles differently; here both are in decoder order.
    """
    features = unit_rows(evidence.take("features", len(patches)))
    relevance = _scaled(-(patches.units @ unit_rows(evidence.take("text", None)).T).mean(1))
    kernel = relevance[:, None] * (features @ features.T) * relevance
    gain = kernel.diagonal().clone()  # (N,) squared gain of adding each token
    known = kernel.new_zeros(patches.num_kept, len(patches))
    scores = torch.full_like(gain, -torch.inf)
    for step in range(patches.num_kept):
        best = int(gain.argmax())
        row = kernel[best] - known[:step, best] @ known[:step]
        known[step] = row / gain[best].clamp(min=SMALLEST).sqrt()
        gain = (gain - known[step].square()).clamp(min=0)
        scores[best] = -step
        gain[scores > -torch.inf] = -torch.inf
    return scores


def _scaled(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    if high - low < SMALLEST:
        return torch.ones_like(values)
    scaled: Tensor = (values - low + RELEVANCE_FLOOR) / (high - low)
    return scaled


def fastervlm(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep tokens by the attention of CLIP's class token, after FasterVLM."""
    return evidence.take("class_attention", len(patches))


def vispruner(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep half by the class token's attention, half by dissimilarity, after VisPruner (ICCV 2025)."""
    ranked = highest(evidence.take("class_attention", len(patches)), len(patches))
    num_important = int(patches.num_kept * IMPORTANT_SHARE)
    important, rest = ranked[:num_important], ranked[num_important:]
    units = patches.units
    while excess := len(rest) - (patches.num_kept - num_important):
        even, odd = rest[::2], rest[1::2]
        num_dropped = min(MAX_DROPPED_AT_ONCE, excess, len(even))
        likeness = (units[even] @ units[odd].T).amax(1) if len(odd) else torch.ones_like(even).double()
        stays = torch.ones_like(even, dtype=torch.bool)
        stays[highest(likeness, num_dropped)] = False
        rest = torch.cat((even[stays], odd))
    return marked(torch.cat((important, rest)), len(patches))


def visionzip_parts(patches: Patches, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions of dominant tokens, of contextual ones, and of those that are merged into
    contextual ones.
    """
    attention = evidence.take("class_attention", len(patches))
    num_contextual = min(MAX_CONTEXTUAL, patches.num_kept // 2)
    dominant = highest(attention, patches.num_kept - num_contextual)
    is_rest = marked(dominant, len(patches)) == 0
    rest = is_rest.nonzero()[:, 0]
    step = max(1, len(rest) // max(1, num_contextual))
    contextual = rest[::step][:num_contextual]
    is_rest[contextual] = False
    return dominant, contextual, is_rest.nonzero()[:, 0]


def visionzip(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep most tokens by attention of the class token and the others at even spacing from the rest, after
    VisionZip (CVPR 2025).
    """
    dominant, contextual, _ = visionzip_parts(patches, evidence)
    return marked(torch.cat((dominant, contextual)), len(patches))


def visionzip_rows(patches: Patches, evidence: Evidence, kept: Tensor) -> Tensor:
    """Add to each contextual token the mean of the tokens most like it: (k,) kept positions -> (k, D)."""
    _, contextual, merged = visionzip_parts(patches, evidence)
    if len(contextual) == 0 or len(merged) == 0:
        return patches.embeds[kept]
    units = patches.units
    target = (units[merged] @ units[contextual].T).argmax(1)
    gained = torch.zeros_like(patches.embeds)
    gained[contextual] = means(patches.embeds[merged], target, len(contextual))
    return patches.embeds[kept] + gained[kept]


def means(rows: Tensor, target: Tensor, num_targets: int) -> Tensor:
    """Average the rows of each target; 0 for a target without rows. (P, D), (P,) -> (num_targets, D)."""
    sums = rows.new_zeros(num_targets, rows.shape[1]).index_add_(0, target, rows)
    return sums / target.bincount(minlength=num_targets).clamp(min=1)[:, None]


def nuewa(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep the tokens of most attention in each 2 x 2 window, after the first stage of Nuewa."""
    attention = evidence.take("class_attention", len(patches))
    place = torch.stack((patches.grid, patches.row // 2, patches.column // 2), dim=1)
    _, window = torch.unique(place, dim=0, return_inverse=True)
    num_windows = int(window.max()) + 1
    by_attention = highest(attention, len(patches))
    ranked = by_attention[window[by_attention].sort(stable=True).indices]  # by window, best first
    counts = window.bincount(minlength=num_windows)
    starts = counts.cumsum(0) - counts
    place_in_window = torch.empty_like(window)
    place_in_window[ranked] = torch.arange(len(patches), device=window.device) - starts[window[ranked]]
    is_candidate = place_in_window < -(-patches.num_kept // num_windows)
    # candidates first; at odd sides some windows have fewer than four tokens, so others fill up the rest
    order = by_attention[(~is_candidate[by_attention]).long().sort(stable=True).indices]
    return marked(order[: patches.num_kept], len(patches))


def nuewa_rows(patches: Patches, evidence: Evidence, kept: Tensor) -> Tensor:
    """Mix near and similar tokens into each kept token that is no pillar: (k,) kept positions -> (k, D).

    The original mixes CLIP's states and projects them. The projector is linear, so this mixes its output.
    """
    attention = evidence.take("class_attention", len(patches))[kept]
    hidden = unit_rows(evidence.take("hidden", len(patches)))
    side = torch.stack((patches.row, patches.column)).amax().double() + 1
    place = torch.stack((patches.row, patches.column), dim=1).double()
    distance = torch.cdist(place[kept], place) / (side * REACH_SQUARED**0.5)
    same_grid = patches.grid[kept, None] == patches.grid
    weights = (hidden[kept] @ hidden.T).clamp(min=0) * (1 - distance).clamp(min=0) * same_grid
    weights /= weights.sum(1, keepdim=True).clamp(min=SMALLEST)
    weights[attention >= attention.quantile(PILLAR_QUANTILE)] = 0
    weights[torch.arange(len(kept), device=kept.device), kept] = 1.0
    mixed: Tensor = weights @ patches.embeds
    return mixed


def ink(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep the patches of most edge pixels: a choice that could be made before the encoder runs."""
    return evidence.take("ink", len(patches))


def oracle(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep what the decoder attended to when it read the page unpruned: an upper bound, not a method."""
    return evidence.take("decode_attention", len(patches))


def trained(patches: Patches, evidence: Evidence) -> Tensor:
    """Keep what a small head scores highest that was trained on the checkpoint, after LayoutLite."""
    return evidence.take("trained", len(patches))
