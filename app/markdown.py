"""The public name of ``to_markdown``."""

from app.output.markdown import Rendered, to_markdown

__all__ = ["Rendered", "to_markdown"]
