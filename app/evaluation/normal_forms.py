"""Normalise text and formulas for comparison: remove what is a matter of style."""

import html
import re
import unicodedata

_TAG = re.compile(r"<[/a-zA-Z][^<>]*>")
_NOT_WORD = re.compile(r"[\W_]+")
_STYLE = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|mathrm|mathbf|mathit|boldsymbol|rm|bf|it"
    r"|operatorname|text|textbf|quad|qquad|nonumber|limits)(?![a-zA-Z])|\\[,;:! ]|\\tag\*?\{[^{}]*\}"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{(?:equation|align|aligned|gather|gathered|split|multline)\*?\}")
_SPACE = re.compile(r"\s+")


def comparable_text(text: str) -> str:
    """Keep only letters and digits, as OmniDocBench does: punctuation, spaces and Markdown do not count."""
    plain = html.unescape(_TAG.sub(" ", text))
    return _NOT_WORD.sub("", unicodedata.normalize("NFKC", _STYLE.sub("", plain)))


def comparable_formula(tex: str) -> str:
    """Remove delimiters, spaces, equation numbers (``tag``) and styling from a formula's TeX."""
    bare = _STYLE.sub("", _ENVIRONMENT.sub("", tex)).replace("$", "").replace("&", "")
    bare = bare.replace(r"\[", "").replace(r"\]", "").replace("{", "").replace("}", "")
    return _SPACE.sub("", bare).strip(".,;\uff0c\u3002")


def one_spaced(text: str) -> str:
    """Replace every run of white space by one space, and strip the ends."""
    return _SPACE.sub(" ", text).strip()
