"""Propose the next tokens of a page from its own text layer (prompt lookup decoding, Saxena 2023).

Where the last tokens of the output stand in the text layer, the tokens that follow them there are likely to
follow in the output. The decoder verifies them in one step, so a wrong text layer costs time and changes no
token. No text is taken from the layer: the page is read.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

MIN_CONTEXT = 3
"""Fewest last tokens of the output that must stand in the text, except at its beginning."""
MAX_CONTEXT = 16
"""Last tokens of the output that are compared, to choose between places where fewer agree."""
MIN_DRAFT = 4
"""Tokens proposed after the shortest context; as many as agree after a longer one."""
MAX_PLACES = 16
"""Places of one context that are compared: in hostile text all may be alike."""
MAX_TEXT_TOKENS = 16_384
"""Tokens of a page's text that are used."""
MAX_TEXT_CHARS = 65_536
"""Characters of a page's text that are turned into tokens."""


class Acceptance:
    """How well the text layer of a page predicts what is read: shared by the views of a page.

    Belongs to the engine's thread, except ``is_low``, which any may read.
    """

    WINDOW = 64
    """Proposed tokens whose acceptance is judged, again and again."""
    LEAST = 0.5
    """Share of accepted tokens below which no more are proposed: verifying would cost more than it saves."""

    def __init__(self) -> None:
        self._num_drafted = self._num_refused = 0
        self.is_low = False
        """Whether too few were accepted, for good."""

    def add(self, num_drafted: int, num_accepted: int) -> None:
        """Record what became of proposed tokens."""
        self._num_drafted += num_drafted
        self._num_refused += num_drafted - num_accepted
        # as soon as the window cannot end well: half of a wrong layer's price
        if self._num_refused > (1 - self.LEAST) * max(self.WINDOW, self._num_drafted):
            self.is_low = True
        if self._num_drafted >= self.WINDOW:
            self._num_drafted = self._num_refused = 0


class DraftText:
    """What may be written on a page, or on a view of one, as tokens.

    ``encode`` turns text into ids. ``is_exact``: the text is that of the view and no more, so its first
    tokens may be the first ones read.
    """

    def __init__(
        self,
        text: str,
        encode: Callable[[str], list[int]],
        acceptance: Acceptance | None = None,
        *,
        is_exact: bool = False,
    ) -> None:
        self._text, self._encode, self._is_exact = text[:MAX_TEXT_CHARS], encode, is_exact
        self.acceptance = acceptance or Acceptance()

    def prepare(self) -> None:
        """Do what the first look-up would: some milliseconds for a whole page, in any thread."""
        _ = self._places

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that follow the last ones of ``ids`` in the text; none if these stand
        nowhere in it.

        Of several places the one counts where most tokens before it agree, then the first.
        """
        if most < 1 or self.acceptance.is_low:
            return []
        tail = self._alike(ids[-MAX_CONTEXT:])
        if len(tail) < MIN_CONTEXT:
            begins = self._is_exact and tail == self._keys[: len(tail)]
            return self._ids[len(tail) : len(tail) + min(most, MIN_DRAFT)] if begins else []
        best, agreed = 0, 0
        for place in self._places.get(tuple(tail[-MIN_CONTEXT:]), ()):
            length = MIN_CONTEXT
            while length < min(len(tail), place) and tail[-length - 1] == self._keys[place - length - 1]:
                length += 1
            if length > agreed:
                best, agreed = place, length
        return self._ids[best : best + min(most, max(MIN_DRAFT, agreed))] if agreed else []

    def _alike(self, ids: Sequence[int]) -> list[int]:
        """Return ids in which a line break is a space: a text layer breaks lines elsewhere."""
        space, line_break = self._spaces
        return [space if token == line_break else token for token in ids]

    @cached_property
    def _spaces(self) -> tuple[int, int]:
        space, line_break = self._encode(" "), self._encode("\n")
        return (space[0], line_break[0]) if space and line_break else (-1, -1)

    @cached_property
    def _ids(self) -> list[int]:
        return self._encode(self._text)[:MAX_TEXT_TOKENS]

    @cached_property
    def _keys(self) -> list[int]:
        return self._alike(self._ids)

    @cached_property
    def _places(self) -> dict[tuple[int, ...], list[int]]:
        """Where the text goes on after each context."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place in range(MIN_CONTEXT, len(self._keys)):
            found = places.setdefault(tuple(self._keys[place - MIN_CONTEXT : place]), [])
            if len(found) < MAX_PLACES:
                found.append(place)
        return places
