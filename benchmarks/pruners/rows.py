"""The rows of the comparison: every method that prunes before the decoder, and every way to merge."""

from collections.abc import Mapping

from rtprune import MERGES, METHODS, Evidence, PrunedTokens, RTPruneConfig, VisualTokens, merge_pruned
from rtprune.baselines import Method, select_by_norm
from rtprune.evidence import NO_EVIDENCE
from rtprune.merges import Merge
from rtprune.prune import DYNAMIC


def merging(merge: Merge) -> Method:
    """Make a method that selects by norm and merges what it drops."""

    def prune(
        tokens: VisualTokens,
        density: float,
        config: RTPruneConfig = DYNAMIC,
        evidence: Evidence = NO_EVIDENCE,
    ) -> PrunedTokens:
        return merge_pruned(tokens, select_by_norm(tokens, density, config, evidence), merge)

    return prune


# without none and transport, with which it is norm and rtprune itself
MERGED = {
    f"norm + {name}": merging(merge) for name, merge in MERGES.items() if name not in {"none", "transport"}
}
ROWS: Mapping[str, Method] = {**METHODS, **MERGED}
"""The rows by name. A method of ``rtprune.METHODS`` has its row by itself; one that is not published there,
such as one that needs weights of its own, is added here.
"""
