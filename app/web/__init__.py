"""The page a person opens: HTML, style and modules, sent as they are by ``app/http/routes/page.py``."""
