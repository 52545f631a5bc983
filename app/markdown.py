"""``to_markdown`` under its public name."""

from app.output.markdown import Rendered, to_markdown

__all__ = ["Rendered", "to_markdown"]
