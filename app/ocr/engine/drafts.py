"""Propose the next tokens of a page from its own text layer (prompt lookup decoding, Saxena 2023).

Where the last tokens of the output stand in the text layer, the tokens that follow them there are likely to
follow in the output. The decoder verifies them in one step, so a wrong text layer costs time and changes no
token. No text is taken from the layer: the page is read.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

from app.errors import BadOption

MIN_CONTEXT = 3
"""Fewest last tokens of the output that must stand in the text."""
MAX_CONTEXT = 16
"""Last tokens of the output that are compared, to choose between places where fewer agree."""
MIN_DRAFT = 4
"""Tokens proposed after the shortest context; as many as agree after a longer one."""
MAX_PLACES = 16
"""Places of one context that are compared: in hostile text all may be alike."""
MAX_TEXT_TOKENS = 16_384
"""Tokens of a page's text layer that are used."""
WINDOW = 128
"""Proposed tokens after which their acceptance is judged, again and again."""
MIN_ACCEPTANCE = 0.3
"""Share of accepted tokens below which no more are proposed for a page."""


class PageText:
    """A page's text layer as tokens, and how well it has predicted the page so far.

    The views of a page share one. ``encode`` turns text into ids; words that it refuses with ``BadOption``
    are left out. ``propose`` and ``count`` belong to the engine's thread.
    """

    def __init__(self, words: Sequence[str], encode: Callable[[str], list[int]]) -> None:
        self._words, self._encode = words, encode
        self._drafted = self._accepted = 0
        self.is_useful = True
        """Whether to propose tokens; false for good once too few were accepted."""

    def prepare(self) -> None:
        """Look up nothing, but do what the first look-up would: some milliseconds, in any thread."""
        _ = self._places

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that follow the last ones of ``ids`` in the text; none if it has no
        such place.

        Of several places the one counts where most tokens before it agree, then the first.
        """
        if most < 1 or len(ids) < MIN_CONTEXT or not self.is_useful:
            return []
        tail = self._alike(ids[-MAX_CONTEXT:])
        best, agreed = 0, 0
        for place in self._places.get(tuple(tail[-MIN_CONTEXT:]), ()):
            length = MIN_CONTEXT
            while length < min(len(tail), place) and tail[-length - 1] == self._text[place - length - 1]:
                length += 1
            if length > agreed:
                best, agreed = place, length
        return self._text[best : best + min(most, max(MIN_DRAFT, agreed))] if agreed else []

    def count(self, num_drafted: int, num_accepted: int) -> None:
        """Record what became of proposed tokens."""
        self._drafted += num_drafted
        self._accepted += num_accepted
        if self._drafted >= WINDOW:
            self.is_useful = self.is_useful and self._accepted >= MIN_ACCEPTANCE * self._drafted
            self._drafted = self._accepted = 0

    def _alike(self, ids: Sequence[int]) -> list[int]:
        """Return ids in which a line break is a space: the layer does not know where a view breaks lines."""
        space, line_break = self._spaces
        return [space if token == line_break else token for token in ids]

    @cached_property
    def _spaces(self) -> tuple[int, int]:
        space, line_break = self._ids(" "), self._ids("\n")
        return (space[0], line_break[0]) if space and line_break else (-1, -1)

    @cached_property
    def _text(self) -> list[int]:
        text: list[int] = []
        for word in self._words:
            text += self._ids(f" {word}")
            if len(text) >= MAX_TEXT_TOKENS:
                break
        return self._alike(text[:MAX_TEXT_TOKENS])

    @cached_property
    def _places(self) -> dict[tuple[int, ...], list[int]]:
        """Where the text goes on after each context."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place in range(MIN_CONTEXT, len(self._text)):
            found = places.setdefault(tuple(self._text[place - MIN_CONTEXT : place]), [])
            if len(found) < MAX_PLACES:
                found.append(place)
        return places

    def _ids(self, text: str) -> list[int]:
        try:
            return self._encode(text)
        except BadOption:
            return []
