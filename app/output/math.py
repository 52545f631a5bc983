"""Convert math delimiters from TeX's, which the model writes, to dollars, which GitHub and Obsidian read."""

from app.output.spans import Span, spans_of


def with_dollars(markdown: str) -> str:
    """Rewrite ``\\(x\\)`` as ``$x$`` and ``\\[x\\]`` as ``$$x$$``, but not in code.

    Math stays as it is where dollars would not be taken for math: with a dollar in it, or before a digit.
    """
    if "\\(" not in markdown and "\\[" not in markdown:
        return markdown
    pieces: list[str] = []
    for span in spans_of(markdown, code_in_html=True):
        after = markdown[span.end : span.end + 1]
        pieces.append(
            _in_dollars(markdown, span, after) if span.kind == "math" else markdown[span.start : span.end]
        )
    return "".join(pieces)


def _in_dollars(markdown: str, span: Span, after: str) -> str:
    whole = markdown[span.start : span.end]
    content = whole[2:-2]
    if whole[0] == "$" or "$" in content or not content.strip():
        return whole
    if whole.startswith("\\["):
        return f"$${content}$$" if "\n" in content else f"$${content.strip()}$$"
    return whole if after.isdigit() else f"${content.strip()}$"
