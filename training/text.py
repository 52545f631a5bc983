"""Text for training pages: dictionary words, invented words, numbers, codes. Nothing is quoted."""

import random
import string
from collections.abc import Callable
from pathlib import Path

PRINTABLE = string.ascii_letters + string.digits + string.punctuation
COMMON_SHARE = 0.5
"""Share of words that come from ``_COMMON``, as in ordinary English text."""
TERM_SHARE = 0.25
"""Share of terms among the words of technical paragraphs."""
QUANTITIES_SHARE = 0.35
"""Share of technical paragraphs that hold only quantities, as cells of a table do."""
FIGURES_SHARE = 0.4
"""Share of paragraphs of signs that hold only figures, as columns of a statement do."""
SIGN_SHARE = 0.4
"""Share of signs among the words of the other paragraphs of signs."""
_UNITS = """
g g kg mg t m cm mm km l ml s ms h min V A W kW Hz kHz MHz GHz B KB MB GB °C °F K % % € $ £ pt px dpi in ft lb
oz mi N Pa bar J kJ mol dB rpm x
""".split()
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
_ACCENTED = str.maketrans("aeiouncAEIOU", "áéíöüñçÄÉÎÓÜ")
_CURLY = str.maketrans({'"': "“", "'": "’"})  # noqa: RUF001


class TextSource:
    """Source of random text, reproducible from the ``random.Random`` passed in.

    Each share is one of paragraphs. ``common``: common words are as frequent as in ordinary English.
    ``ledger``: labels and amounts. ``technical``: sentences with lists of numbers, citations, identifiers and
    addresses. ``signs``: digits and signs that words seldom have.
    """

    def __init__(
        self,
        words: Path,
        common: float = 0.0,
        ledger: float = 0.0,
        technical: float = 0.0,
        signs: float = 0.0,
    ) -> None:
        listed = words.read_text(encoding="utf-8").split()
        self._words = [w for w in listed if w.isascii() and len(w) <= 14 and not w.endswith("'s")]
        if not self._words:
            raise ValueError(f"{words} holds no usable word")
        self._common, self._ledger_share, self._technical_share = common, ledger, technical
        self._signs_share = signs
        # the nth common word is used about 1/n times as often as the first (Zipf)
        self._frequencies = [1 / (rank + 2.7) for rank in range(len(_COMMON))]

    def paragraph(self, rng: random.Random, num_words: int) -> list[str]:
        """Return words with sentence case and punctuation attached, ready to be laid out."""
        for share, kind in (
            (self._signs_share, self._signs),
            (self._ledger_share, self._ledger),
            (self._technical_share, self._technical),
        ):
            if share and rng.random() < share:
                return kind(rng, num_words)
        if self._common and rng.random() < self._common:
            return self._sentences(rng, num_words, common=COMMON_SHARE)
        style = rng.random()
        if style < 0.78:
            return self._sentences(rng, num_words)
        if style < 0.9:
            return [self._invented(rng) for _ in range(num_words)]
        return [self._code(rng) for _ in range(num_words)]

    def heading(self, rng: random.Random) -> list[str]:
        """Return one to seven words in one of the usual cases, sometimes after a section number."""
        words = [self._plain_word(rng) for _ in range(rng.randint(1, 7))]
        case = rng.random()
        if case < 0.45:
            words = [word[:1].upper() + word[1:] for word in words]
        elif case < 0.6:
            words = [word.upper() for word in words]
        else:
            words[0] = words[0][:1].upper() + words[0][1:]
        if rng.random() < 0.25:
            words.insert(0, rng.choice(["1", "2.3", "A.", "4.", "3.1.2", "IV.", str(rng.randint(1, 30))]))
        return words

    def cell(self, rng: random.Random) -> list[str]:
        """Return the words of one cell of a table."""
        if rng.random() < 0.5:
            return [self._number(rng)]
        return [self._plain_word(rng) for _ in range(rng.choice([1, 1, 1, 2, 2, 3]))]

    def _sentences(self, rng: random.Random, num_words: int, common: float = 0.0) -> list[str]:
        words: list[str] = []
        start = True
        accents = rng.random() < 0.08
        for _ in range(num_words):
            is_common = common > 0 and rng.random() < common
            word = rng.choices(_COMMON, self._frequencies)[0] if is_common else self._word(rng)
            if accents and rng.random() < 0.2:
                word = word.translate(_ACCENTED)
            word = word[:1].upper() + word[1:] if start else word
            end = rng.random()
            start = end < 0.08
            mark = rng.choice("....?!") if start else rng.choice(",,,,;:") if end < 0.17 else ""
            words.append(word + mark)
            if rng.random() < 0.006:
                words.append(rng.choice("–—-"))  # noqa: RUF001 - the dashes are the point
        if rng.random() < 0.4:
            words = [word.replace('"', "“", 1).translate(_CURLY | {ord('"'): "”"}) for word in words]
        if rng.random() < 0.06:
            words = [word.upper() for word in words]
        return words

    def _ledger(self, rng: random.Random, num_words: int) -> list[str]:
        """Return text as on receipts, forms and letterheads: labels in one case, each with its amounts."""
        case = rng.choice([str.upper, str.upper, str.capitalize, str.capitalize, str.lower])
        colon = rng.choice([":", ":", " :", ""])
        words: list[str] = []
        while len(words) < num_words:
            label = [case(self._plain_word(rng)) for _ in range(rng.randint(1, 3))]
            label[-1] += colon
            amounts = [self._amount(rng) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
            words += " ".join([*label, *amounts]).split()
        return words[:num_words]

    def _amount(self, rng: random.Random) -> str:
        makers: list[Callable[[], str]] = [
            lambda: self._number(rng),
            lambda: f"{rng.randint(0, 999)}.{rng.randint(0, 99):02d}",
            lambda: (
                f"{rng.choice(['$', '', 'RM', 'EUR ', '-'])}{rng.randint(0, 9999):,}.{rng.randint(0, 99):02d}"
            ),
            lambda: f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
            lambda: rng.choice("/-.").join(
                [f"{rng.randint(1, 31):02d}", f"{rng.randint(1, 12):02d}", str(rng.randint(1990, 2040))]
            ),
            lambda: f"{rng.randint(10, 999)}-{rng.randint(10_000, 99_999_999)}",
            lambda: str(rng.randint(100_000, 999_999_999_999)),
            lambda: f"#{rng.randint(1, 99_999):0{rng.randint(2, 6)}d}",
            lambda: f"{rng.randint(1, 20)} {rng.choice('xX@')} {rng.randint(0, 99)}.{rng.randint(0, 99):02d}",
            lambda: f"({rng.randint(1000, 999_999)}-{rng.choice(string.ascii_uppercase)})",
            lambda: f"{rng.choice(string.ascii_uppercase)}{rng.randint(0, 99_999):05d}",
        ]
        return makers[rng.randrange(len(makers))]()

    def _technical(self, rng: random.Random, num_words: int) -> list[str]:
        if rng.random() < QUANTITIES_SHARE:
            return [word for _ in range(rng.randint(1, 5)) for word in self._quantity(rng)]
        words = self._sentences(rng, num_words, common=COMMON_SHARE)
        terms = (self._term(rng) if rng.random() < TERM_SHARE else [word] for word in words)
        return [word for term in terms for word in term][:num_words]

    def _term(self, rng: random.Random) -> list[str]:
        """Return a term as technical texts have them between their words."""
        one, other = (rng.choice(self._words).lower() for _ in range(2))
        numbers = ", ".join(str(rng.randint(0, 10 ** rng.randint(1, 3))) for _ in range(rng.randint(1, 6)))
        makers: list[Callable[[], str]] = [
            lambda: f"[{numbers}]",
            lambda: f"({numbers})",
            lambda: numbers,
            lambda: ".".join(str(rng.randint(0, 40)) for _ in range(rng.randint(2, 4))),
            lambda: f"{one}_{other}"[:18],
            lambda: f"{one.upper()}_{other.upper()}"[:18],
            lambda: f"{one[:7].capitalize()}{other[:7].capitalize()}",
            lambda: f"{one[:7]}.{other[:7]}()",
            lambda: (
                f"{rng.choice(['http://', 'https://', 'www.'])}{one[:8]}.{rng.choice(['org', 'com', 'de'])}"
            ),
            lambda: f"{one[:8]}@{other[:8]}.{rng.choice(['org', 'com', 'edu'])}",
            lambda: f"{rng.choice('abcfnpxyz')} {rng.choice('=<>+−')} {rng.randint(0, 99)}",  # noqa: RUF001
            lambda: f"{one}, {other[:1].upper()}. {other[1:2].upper()}., {rng.randint(1900, 2039)}.",
            lambda: (
                f"{rng.choice(['Fig.', 'Table', 'Section', 'p.', 'pp.', 'No.', 'vol.'])} {rng.randint(1, 99)}"
            ),
            lambda: f"{rng.randint(1, 31)}{rng.choice(['st', 'nd', 'rd', 'th'])}",
            lambda: f"{rng.randint(1, 400)}{rng.choice('-–')}{rng.randint(401, 900)}",  # noqa: RUF001
        ]
        maker = rng.randrange(len(makers) + 3)
        return makers[maker]().split() if maker < len(makers) else self._quantity(rng)

    def _signs(self, rng: random.Random, num_words: int) -> list[str]:
        """Return a paragraph of figures, or words with signs among them."""
        if rng.random() < FIGURES_SHARE:
            return [self._figure(rng) for _ in range(num_words)]
        words = self._sentences(rng, num_words, common=COMMON_SHARE)
        terms = (self._sign_term(rng) if rng.random() < SIGN_SHARE else [word] for word in words)
        return [word for term in terms for word in term][:num_words]

    def _figure(self, rng: random.Random) -> str:
        """Return a number in one of the forms that documents use; every digit is equally likely."""

        def digits(count: int) -> str:
            return "".join(rng.choices(string.digits, k=count))

        makers: list[Callable[[], str]] = [
            lambda: digits(rng.randint(1, 9)),
            lambda: f"{digits(rng.randint(1, 4))}.{digits(rng.randint(1, 4))}",
            lambda: f"{digits(rng.randint(1, 3))},{digits(3)}",
            lambda: f"{digits(rng.randint(1, 3))},{digits(3)},{digits(3)}.{digits(2)}",
            lambda: f"{digits(rng.randint(1, 3))}.{digits(3)},{digits(2)}",
            lambda: rng.choice("-./").join([digits(4), digits(2), digits(2)]),
            lambda: rng.choice("-./").join([digits(2), digits(2), digits(rng.choice([2, 4]))]),
            lambda: f"{digits(2)}:{digits(2)}",
            lambda: f"+{digits(2)}-{digits(3)}-{digits(rng.randint(4, 7))}",
            lambda: f"({digits(rng.randint(1, 4))})",
            lambda: f"{rng.choice('+-−')}{digits(rng.randint(1, 3))}",  # noqa: RUF001
            lambda: f"{digits(rng.randint(1, 3))}%",
            lambda: f"{rng.choice('$€£')}{digits(rng.randint(1, 4))}.{digits(2)}",
            lambda: f"{digits(rng.randint(1, 2))}/{digits(rng.randint(1, 2))}",
            lambda: f"{digits(rng.randint(1, 4))}{rng.choice('-–x')}{digits(rng.randint(1, 4))}",  # noqa: RUF001
            lambda: f"{rng.choice(string.ascii_uppercase)}{digits(rng.randint(1, 6))}",
            lambda: f"{digits(rng.randint(1, 3))}{rng.choice(string.ascii_letters)}",
        ]
        return makers[rng.randrange(len(makers))]()

    def _sign_term(self, rng: random.Random) -> list[str]:
        """Return a sign as documents use it: ampersands, sections, comparisons, paths, code."""
        one, other = (rng.choice(self._words)[:9] for _ in range(2))
        name, letter, count = one.capitalize(), rng.choice("abcdfgnpqxyz"), self._figure(rng)
        relation = rng.choice(
            ["<", ">", "=", "<=", ">=", "==", "!=", "+=", ":=", "->", "=>", "<-", "+", "≤", "≥"]
        )
        makers: list[Callable[[], str]] = [
            lambda: "&",
            lambda: f"{name} & {other.capitalize()}",
            lambda: rng.choice(["&", f"{name[:1]}&{other[:1].upper()}", f"{one}&{other}", "&c.", "&amp;"]),
            lambda: f"§ {rng.randint(1, 999)}",
            lambda: rng.choice(
                ["§", "§§", f"§{rng.randint(1, 99)}", f"§§ {rng.randint(1, 99)}", f"(§ {count})"]
            ),
            lambda: f"§ {rng.randint(1, 400)}({rng.choice('abc123')}) {name}",
            lambda: f"{letter} {relation} {count}",
            lambda: f"{letter}{relation}{count}",
            lambda: f"{one} {relation} {other}",
            lambda: rng.choice("<>+=#/\\{}&§*|~^_@%$[]"),
            lambda: rng.choice([f"<{one}>", f"</{one}>", f"<{one}/>", f"{one}<{other}>", f"<<{one}>>"]),
            lambda: rng.choice([f"#{count}", f"# {count}", f"#{one}", f"{name[:1]}#", "##", f"No. #{count}"]),
            lambda: rng.choice(["/", f"/{one}/{other}", f"{one}/{other}", "and/or", "n/a", f"~/{one}", "//"]),
            lambda: rng.choice(
                [f"C:\\{one}", f"\\{one}", f"{one}\\{other}", "\\", f"\\{one}{{{other}}}", "\\n"]
            ),
            lambda: rng.choice(
                [f"{{{one}}}", f"{{{letter}, {count}}}", "{", "}", f"{one} {{", "{}", f"${{{one}}}"]
            ),
            lambda: rng.choice(
                [f"{letter}^{count}", f"{letter}_{count}", f"{one}*", f"*{one}*", f"|{letter}|"]
            ),
            lambda: f"{letter} = {rng.choice('abcxyz')} + {count}",
            lambda: rng.choice([f"[{count}]", f"{one}[{count}]", f"@{one}", f"{count} %", f"100% {one}"]),
            lambda: (
                rng.choice(["$", "$", "$", "$", "€", "£", "US$", "¢", "¥"]) + rng.choice([" ", ""]) + count
            ),
            lambda: rng.choice(["$ ", "$ ", "$", "~", "~ ", "| ", "£", "° "]) + count,
            lambda: f"{one}{rng.choice(['_', '_', ' | ', '|', ' ~ ', '° ', ' $ '])}{other}",
            lambda: rng.choice([f"{one} | {other}", f"|{letter} - {count}|", "||", f"{letter} | {letter}"]),
            lambda: rng.choice(
                [
                    f"{letter}^{rng.randint(0, 9)}",
                    f"{one}^",
                    f"e^{letter}",
                    f"{rng.randint(0, 99)} °C",
                    f"{count}°",
                ]
            ),
            lambda: rng.choice([f"~{count}", f"~ {count}", f"{letter} ~ {other}", f"~/{one}", f"{one}~"]),
            lambda: rng.choice(
                [f"{count} * {count}", f"{letter} * {letter}", f"{one} *", f"**{one}**", "*)"]
            ),
            lambda: rng.choice([f"{{ {one} }}", f"\\{one}\\{other}", f"{{{count}}}", f"D:\\{name}\\{other}"]),
        ]
        kind = rng.randrange(len(makers) + 8)
        return makers[kind]().split() if kind < len(makers) else [count]

    def _quantity(self, rng: random.Random) -> list[str]:
        """Return a number and its unit, apart or together, or something else that fills a cell."""
        kind = rng.random()
        if kind < 0.2:
            return [
                rng.choice(
                    [*string.ascii_uppercase, *string.ascii_lowercase, "n/a", "yes", "no", "-", "--", "n"]
                )
            ]
        whole = str(rng.randint(0, 10 ** rng.randint(1, 4)))
        number = rng.choice([whole, whole, self._number(rng), f"{whole}.{rng.randint(0, 99)}"])
        unit = rng.choice(_UNITS)
        return [number, unit] if kind < 0.8 else [number + unit]

    def _word(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(_COMMON)
        if kind < 0.85:
            return rng.choice(self._words)
        if kind < 0.89:
            return self._number(rng) if rng.random() < 0.6 else self._code(rng)
        if kind < 0.93:
            first = rng.choice(self._words if rng.random() < 0.7 else _COMMON)
            return first + rng.choice(["'s", "'s", "n't", "-" + rng.choice(self._words), "'ll", "s'", "—and"])
        opening, closing = rng.choice([("(", ")"), ("[", "]"), ('"', '"'), ("'", "'")])
        return opening + rng.choice(self._words) + closing

    def _plain_word(self, rng: random.Random) -> str:
        return rng.choice(self._words) if rng.random() < 0.75 else rng.choice(_COMMON)

    def _invented(self, rng: random.Random) -> str:
        syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 4))]
        word = "".join(syllables) + (rng.choice(_CONSONANTS) if rng.random() < 0.5 else "")
        return rng.choice([word, word, word.capitalize(), word.upper()])

    def _number(self, rng: random.Random) -> str:
        makers: list[Callable[[], str]] = [
            lambda: str(rng.randint(0, 99)),
            lambda: str(rng.randint(1800, 2099)),
            lambda: f"{rng.randint(0, 9_999_999):,}",
            lambda: f"{rng.choice(['$', '€', '', ''])}{rng.randint(0, 999)}.{rng.randint(0, 99):02d}",
            lambda: f"{rng.randint(1, 28)}/{rng.randint(1, 12)}/{rng.randint(1900, 2099)}",
            lambda: f"{rng.randint(1, 100)}%",
            lambda: f"{rng.choice('+-−')}{rng.randint(0, 99)}.{rng.randint(0, 9)}",  # noqa: RUF001
        ]
        return makers[rng.randrange(len(makers))]()

    def _code(self, rng: random.Random) -> str:
        letters = string.ascii_uppercase + string.digits
        makers: list[Callable[[], str]] = [
            lambda: self._number(rng),
            lambda: "".join(rng.choices(letters, k=rng.randint(3, 8))),
            lambda: f"{rng.choice(self._words)}{rng.choice('-_/:&+=@')}{rng.choice(self._words)}"[:12],
            lambda: "".join(rng.choices(PRINTABLE, k=rng.randint(1, 5))),
        ]
        return makers[rng.randrange(len(makers))]()
