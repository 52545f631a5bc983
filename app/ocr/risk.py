"""Estimate how likely a text is wrong in many places, from the probabilities of its tokens.

The mean hides what matters: nine sure tokens in ten leave it high, whatever the tenth is. A low quantile says
how unsure the model was where it was unsure. It is measured in nats of surprise, -log p, and mapped to [0, 1]
by a curve of two constants, which ``benchmarks.confidence`` fits on pages whose text is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LOG = 700.0
"""Natural logarithm of about the largest float; larger exponents overflow."""
LOW_QUANTILE = 0.1
"""Quantile of a page's token probabilities. benchmarks/results/confidence.json compares it with others and
the mean.
"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Data from which a page's risk is estimated.

    ``logprobs``: one for each token of its text. ``noise_share``: share of its print that was left out as
    noise.

    >>> Evidence([-3.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).nats()
    2.0
    """

    logprobs: Sequence[float] = ()
    noise_share: float = 0.0

    def nats(self, quantile: float = LOW_QUANTILE) -> float:
        """Return -log of the probability at this quantile of the tokens; 0 without tokens."""
        if not self.logprobs:
            return 0.0
        return max(0.0, -sorted(self.logprobs)[int(quantile * (len(self.logprobs) - 1))])


@dataclass(frozen=True, slots=True)
class RiskCurve:
    """Logistic curve over log x that maps x nats to x^s / (x^s + h^s): 0 where the model was sure, 1/2 at h.

    ``half_nats``: h, surprise at the low quantile where half of the pages are wrong in many places.
    ``steepness``: s.
    """

    half_nats: float
    steepness: float

    def __post_init__(self) -> None:
        if not (self.half_nats > 0 and self.steepness > 0):
            raise ValueError(
                f"half_nats and steepness must be positive, got {self.half_nats}, {self.steepness}"
            )

    def risk(self, evidence: Evidence) -> float:
        """Return the risk in [0, 1].

        Print left out as noise counts as wrong. A page without tokens has risk 0.
        """
        nats = evidence.nats()
        odds = self.steepness * math.log(nats / self.half_nats) if nats > 0 else -math.inf
        of_text = 1 / (1 + math.exp(min(-odds, MAX_LOG)))
        return 1 - (1 - of_text) * (1 - evidence.noise_share)


UNCALIBRATED = RiskCurve(half_nats=0.5, steepness=2.0)
"""Curve for checkpoints whose ``rtprune.json`` has none."""
