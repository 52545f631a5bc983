"""A real browser without a window: Debian's chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

PATIENCE_MS = 60_000
"""How long a test waits for what must happen; never a measure of speed."""
expect.set_options(timeout=PATIENCE_MS)


def missing() -> str | None:
    """Say what is missing for a browser, or ``None``."""
    return None if shutil.which("chromium") else "there is no chromium (apt-get install chromium)"


@contextmanager
def browsing() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # small containers have little of the memory that it would share with its own processes
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def window(browser: Browser, **options: Any) -> Iterator[Page]:
    """A window of a browser that knows nothing yet. What a page's scripts throw fails the test."""
    context: BrowserContext = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    thrown: list[str] = []
    page.on("pageerror", lambda error: thrown.append(str(error)))
    try:
        yield page
        assert thrown == []
    finally:
        context.close()


def violations(page: Page) -> list[str]:
    """What axe finds that a person with a screen reader, a keyboard or weak eyes could not use."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['target']}" for one in found for node in one["nodes"]]
