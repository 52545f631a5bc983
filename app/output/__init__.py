"""Model text -> what people get: Markdown, blocks, plain text, one document from pages."""
