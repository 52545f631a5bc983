"""Parse LaTeX's ``tabular`` into cells."""

import re

from app.evaluation.html_tables import MAX_CELLS, MAX_SPAN, Cell, Table

_BEGIN = re.compile(r"\\begin\{tabular(?P<wide>[x*]?)\}\s*(?:\[[^\]]*\])?")
_EDGE = re.compile(r"\\(?P<edge>begin|end)\{tabular[x*]?\}")
_INNER = re.compile(
    r"\\begin\{tabular[x*]?\}\s*(?:\[[^\]]*\])?\{(?:[^{}]|\{[^{}]*\})*\}(?P<cell>.*?)\\end\{tabular[x*]?\}",
    re.DOTALL,
)
_COMMENT = re.compile(r"(?<!\\)%[^\n]*")
_RULE = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|thickhline|endhead|centering)(?![a-zA-Z])(?:\[[^\]]*\])?"
    r"|\\(?:cline|cmidrule|cdashline|addlinespace|noalign|rowcolor|arrayrulecolor|Xhline)(?![a-zA-Z])"
    r"(?:\([^)]*\))?(?:\[[^\]]*\])?(?:\{[^{}]*\})?"
    r"|\\specialrule(?:\{[^{}]*\}){3}"
)
_SIZED = re.compile(
    r"\\(?:cellcolor|color|hspace\*?|vspace\*?|phantom|footnotemark|textcolor|raisebox|rotatebox)(?![a-zA-Z])"
    r"\s*(?:\[[^\]]*\])?(?:\{[^{}]*\})?"
)
"""Commands that are removed with the arguments before their text; the text stays."""
_STYLE = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|textsc|texttt|text|emph|underline|mbox|makecell|makebox|shortstack"
    r"|textsuperscript|textsubscript|bfseries|itshape|bf|it|tiny|scriptsize|footnotesize|small|large)(?![a-zA-Z])"
    r"\s*(?:\[[^\]]*\])*"
)
_SIGNS = {
    "checkmark": "\u2713", "textemdash": "\u2014", "textless": "<", "textgreater": ">", "textunderscore": "_",
    "dag": "\u2020", "ddag": "\u2021", "textdaggerdbl": "\u2021",
}  # fmt: skip
_SIGN = re.compile(rf"\\({'|'.join(_SIGNS)})(?![a-zA-Z])(?:\{{\}})?\s*")
_ESCAPED = re.compile(r"\\([%&_#{}])")
_FORMULA = re.compile(r"((?<!\\)\$[^$]*\$|\\\(.*?\\\))")
_SPACE = re.compile(r"(?:\s|~|\\[,;: ]|\\quad|\\qquad)+")
MAX_LENGTH = 200_000


def parse_tabular(tex: str) -> Table:
    """Parse the first ``tabular`` of a text. Return a table without rows if there is none. Never fails."""
    tex = tex[:MAX_LENGTH]
    begin = _BEGIN.search(tex)
    if begin is None:
        return Table(())
    body = _body(tex, begin.end())
    if begin["wide"]:
        body = body[_group(body, 0)[1] :]
    body = _COMMENT.sub("", body[_group(body, 0)[1] :])
    body = _INNER.sub(lambda inner: inner["cell"].replace("\\\\", " ").replace("&", " "), body)
    body = body.replace("\\tabularnewline", "\\\\")
    rows: list[tuple[Cell, ...]] = []
    covered: set[tuple[int, int]] = set()
    for line in _split(_RULE.sub("", body), "\\\\"):
        row = _row(line, len(rows), covered)
        if any(cell.text for cell in row):
            rows.append(row)
        if len(covered) > MAX_CELLS:
            break
    return Table(tuple(rows))


def _body(tex: str, start: int) -> str:
    """Return the text from ``start`` to the matching ``\\end``, or to the text's end if there is none."""
    depth = 1
    for edge in _EDGE.finditer(tex, start):
        depth += 1 if edge["edge"] == "begin" else -1
        if depth == 0:
            return tex[start : edge.start()]
    return tex[start:]


def _row(line: str, y: int, covered: set[tuple[int, int]]) -> tuple[Cell, ...]:
    """Return the cells of line ``y``, and add the places that they cover in later lines to ``covered``.

    LaTeX writes an empty cell where a cell from above spans down. That cell is left out.
    """
    cells, x = [], 0
    for text in _split(line, "&"):
        cell = _cell(text)
        if not ((y, x) in covered and not cell.text):
            cells.append(cell)
            covered.update(
                (y + dy, x + dx) for dy in range(1, cell.row_span) for dx in range(cell.column_span)
            )
        x += cell.column_span
        if x > MAX_CELLS:
            break
    return tuple(cells)


def _cell(text: str) -> Cell:
    rows = columns = 1
    for _ in range(2):  # \multirow and \multicolumn may be nested
        found = re.match(r"\s*\\multi(column|row)\s*", text)
        if found is None:
            break
        at, groups = found.end(), []
        for _ in range(3):
            optional = re.match(r"\s*\[[^\]]*\]|\s*\*(?=\s*\{)", text[at:])
            at += optional.end() if optional else 0
            group, at = _group(text, at)
            groups.append(group)
        count = min(int(groups[0]), MAX_SPAN) if groups[0].strip().isdecimal() else 1
        if found[1] == "row":
            rows = max(1, count)
        else:
            columns = max(1, count)
        text = groups[2]
    return Cell(_plain(text), rows, columns)


def _plain(text: str) -> str:
    bare = _STYLE.sub("", _SIZED.sub("", text)).replace("\\\\", " ")
    bare = _SIGN.sub(lambda sign: _SIGNS[sign[1]], bare)
    parts = _FORMULA.split(bare)  # text, formula, text, ...
    return _SPACE.sub(
        " ", "".join(part if i % 2 else _unbraced(part) for i, part in enumerate(parts))
    ).strip()


def _unbraced(text: str) -> str:
    """Remove braces that group. Escaped braces, which are printed, stay."""
    parts = _ESCAPED.split(text)  # text, escaped sign, text, ...
    return "".join(part if i % 2 else part.replace("{", "").replace("}", "") for i, part in enumerate(parts))


def _group(text: str, start: int) -> tuple[str, int]:
    """Return the content of the braces that open at ``start``, and the index after the closing brace.

    White space before the brace is skipped. Return ``""`` and ``start`` if there is no brace.
    """
    at = start
    while at < len(text) and text[at].isspace():
        at += 1
    if at >= len(text) or text[at] != "{":
        return "", start
    depth = 0
    for place in range(at, len(text)):
        if text[place - 1 : place] == "\\":
            continue
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[at + 1 : place], place + 1
    return text[at + 1 :], len(text)


def _split(text: str, mark: str) -> list[str]:
    """Split a text at each ``mark`` outside of braces. An escaped ``&`` does not split.

    The star and the bracketed length that may follow a line break are dropped.
    """
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if depth == 0 and text.startswith(mark, at):
            parts.append(text[start:at])
            at += len(mark)
            if mark != "&":
                optional = re.compile(r"\*?\[[^\]]*\]").match(text, at)
                at = optional.end() if optional else at
            start = at
        elif text[at] == "\\":
            at += 2
        else:
            depth = max(0, depth + (text[at] == "{") - (text[at] == "}"))
            at += 1
    return [*parts, text[start:]]
