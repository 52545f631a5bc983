"""Text for training pages: dictionary words, invented words, numbers, codes. Nothing is quoted."""

import random
import string
from collections.abc import Callable
from pathlib import Path

PRINTABLE = string.ascii_letters + string.digits + string.punctuation
_CONSONANTS = "bcdfghjklmnpqrstvwz"
_VOWELS = "aeiouy"
_COMMON = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were all her she there would their we him been has when who will no more if
out so up said what its about than into them can only other time new some could these two may first
then do any like my now over such our man me even most made after also did many off before must well
back through years much where your way down should because long each just state those people too mr
how little good world make very year still see own work men day get here between both life being
under three never know same last another while us might great go come since against right came take
used himself few house use place during high without
""".split()


class TextSource:
    """Lines of text, reproducible from the ``random.Random`` passed in."""

    def __init__(self, words: Path) -> None:
        listed = words.read_text(encoding="utf-8").split()
        self._words = [w for w in listed if w.isascii() and len(w) <= 12 and not w.endswith("'s")]
        if not self._words:
            raise ValueError(f"{words} holds no usable word")

    def paragraph(self, rng: random.Random, num_words: int) -> list[str]:
        """Words with sentence case and punctuation attached, ready to be laid out."""
        style = rng.random()
        if style < 0.65:
            return self._sentences(rng, num_words)
        if style < 0.85:
            return [self._invented(rng) for _ in range(num_words)]
        return [self._code(rng) for _ in range(num_words)]

    def _sentences(self, rng: random.Random, num_words: int) -> list[str]:
        words: list[str] = []
        start = True
        for _ in range(num_words):
            word = self._word(rng)
            word = word[:1].upper() + word[1:] if start else word
            end = rng.random()
            start = end < 0.09
            words.append(word + (rng.choice("..?!") if start else "," if end < 0.16 else ""))
        if rng.random() < 0.15:
            words = [word.upper() for word in words]
        return words

    def _word(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(_COMMON)
        if kind < 0.88:
            return rng.choice(self._words)
        if kind < 0.94:
            return self._code(rng)
        opening, closing = rng.choice([("(", ")"), ("[", "]"), ('"', '"'), ("'", "'")])
        return opening + rng.choice(self._words) + closing

    def _invented(self, rng: random.Random) -> str:
        syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 4))]
        word = "".join(syllables) + (rng.choice(_CONSONANTS) if rng.random() < 0.5 else "")
        return rng.choice([word, word, word.capitalize(), word.upper()])

    def _code(self, rng: random.Random) -> str:
        letters = string.ascii_uppercase + string.digits
        makers: list[Callable[[], str]] = [
            lambda: str(rng.randint(0, 99999)),
            lambda: f"{rng.choice(['$', '', ''])}{rng.randint(0, 999)}.{rng.randint(0, 99):02d}",
            lambda: f"{rng.randint(1, 28)}/{rng.randint(1, 12)}/{rng.randint(1900, 2099)}",
            lambda: f"{rng.randint(1, 100)}%",
            lambda: "".join(rng.choices(letters, k=rng.randint(3, 8))),
            lambda: f"{rng.choice(self._words)}{rng.choice('-_/:&+=@')}{rng.choice(self._words)}"[:12],
            lambda: "".join(rng.choices(PRINTABLE, k=rng.randint(1, 5))),
        ]
        return makers[rng.randrange(len(makers))]()
