"""Bytes to pages: formats, uploads, guarded fetches, rasterizing."""
