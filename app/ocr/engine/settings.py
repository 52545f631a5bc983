"""Settings of the engine, validated when they are made."""

from dataclasses import dataclass, field

from app.ocr.engine.kv_cache import KvShape
from app.ocr.engine.loops import LoopRule, NgramRule
from app.ocr.models.model import OcrModel

PROMPT_ROOM = 2048
"""Tokens for a page in the largest mode (Gundam's nine tiles: 1,300) and a long prompt."""

MAX_DRAFT_TOKENS = 8

COUNTS = (
    "max_running_pages",
    "max_page_tokens",
    "max_queued_pages",
    "prefetch_pages",
    "preprocess_threads",
    "max_encode_pages",
    "max_prefill_tokens",
    "max_output_tokens",
    "max_attempts",
)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of the engine.

    Memory of the KV cache is taken once, at the start: ``kv_memory_mib``, or ``kv_memory_share`` of free CUDA
    memory.
    """

    max_running_pages: int = 16
    """Pages decoded together; fewer if the KV budget does not pay for as many."""
    max_page_tokens: int | None = 4096
    """KV tokens of one page: kept visual tokens, prompt and output. Never more than the model's positions.

    ``None``: room for ``max_output_tokens`` and any page, or what the KV memory holds if that is less.
    """
    kv_memory_mib: int | None = 512
    kv_memory_share: float | None = None

    max_queued_pages: int = 4096
    prefetch_pages: int = 16
    """Pages preprocessed ahead of encoding. Each holds its views in memory: 12 MiB at 1024 px."""
    preprocess_threads: int = 2
    max_encode_pages: int = 8
    encode_beside_decode: bool = False
    """On a CPU, encode with half of the threads while the others decode. Pays where a step is too short to be
    shared by all threads. CUDA always encodes beside decoding.
    """
    view_group: int = 0
    """First pages of a document that are served three per round, for readers that cut a page into many
    views.
    """
    max_prefill_tokens: int = 4096
    """Tokens prefilled between two decode steps; running pages wait that long."""

    max_output_tokens: int = 4096
    """Default limit of a page's output. Every limit is cut to what the page's memory and the model's
    positions leave.
    """
    page_deadline_seconds: float = 600.0
    """Default deadline of a page, from its submission."""

    ngram: NgramRule | None = None
    """N-gram ban of the first attempt; ``None``: the rule that the checkpoint was published with."""
    strict_ngram: NgramRule = field(default_factory=lambda: NgramRule(n=10, window=256))
    """N-gram ban from the second attempt on."""
    loops: LoopRule = field(default_factory=LoopRule)
    max_attempts: int = 4
    restore_risk: float | None = None
    """Risk, in [0, 1], above which a page read pruned is read once more unpruned; 1: none is. ``None``: the
    checkpoint's.
    """
    piece_interval_seconds: float = 0.03
    """Shortest time for which streamed text is gathered, so that consumers do not cost more than decoding."""
    max_draft_tokens: int = MAX_DRAFT_TOKENS
    """Most tokens of a page's text layer that are proposed and verified in one step, on a CPU; 0: none."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_draft_tokens < 0:
            raise ValueError(f"max_draft_tokens must not be negative, got {self.max_draft_tokens}")
        if (self.kv_memory_mib is None) == (self.kv_memory_share is None):
            raise ValueError("give one of kv_memory_mib and kv_memory_share")
        if self.kv_memory_share is not None and not 0 < self.kv_memory_share <= 1:
            raise ValueError(f"kv_memory_share must be in (0, 1], got {self.kv_memory_share}")
        if self.restore_risk is not None and not 0 <= self.restore_risk <= 1:
            raise ValueError(f"restore_risk must be in [0, 1], got {self.restore_risk}")
        if not self.page_deadline_seconds > 0:
            raise ValueError(f"page_deadline_seconds must be positive, got {self.page_deadline_seconds}")

    def page_tokens(self, model: OcrModel, shape: KvShape, budget_bytes: int) -> int:
        """Return the KV tokens of one page for this model and KV memory."""
        if self.max_page_tokens is not None:
            return min(self.max_page_tokens, model.max_positions)
        wanted = min(self.max_output_tokens + PROMPT_ROOM, model.max_positions)
        return min(wanted, max(1, budget_bytes // shape.bytes_per_token))

    def first_ngram(self, model: OcrModel) -> NgramRule:
        """Return the n-gram rule of a page's first attempt."""
        return model.ngram if self.ngram is None else self.ngram

    def restore_from(self, model: OcrModel) -> float | None:
        """Return the risk above which a page is read again unpruned; ``None``: no page is."""
        return model.restore_risk if self.restore_risk is None else self.restore_risk

    def max_ban_distance(self, model: OcrModel) -> int:
        """Return how far back, in tokens, any attempt looks for a repeat."""
        rules = [self.first_ngram(model), self.strict_ngram]
        if model.several_pages is not None:
            rules.append(model.several_pages.ngram)
        return max(rule.max_distance for rule in rules)
