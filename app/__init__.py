"""The parsing service: documents in, Markdown out."""
