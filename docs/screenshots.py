"""Take the pictures of the page in ``docs/images``: the sample document, read with the pocket checkpoint.

python docs/screenshots.py [FOLDER [ADDRESS]]

ADDRESS: of a service that runs already, ending in a slash.

Needs Debian's chromium. The page's letters are those that the machine has; the pictures in the repository
were taken with ``fonts-inter`` installed.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "docs/sample.pdf"
PATIENCE_S = 120.0
QUALITY = 82
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


@contextmanager
def service(folder: str) -> Iterator[str]:
    """Start the service with the pocket checkpoint, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "RTPRUNE_DATA_DIR": folder, "RTPRUNE_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    ) as started:
        try:
            address = f"http://127.0.0.1:{port}/"
            deadline = time.monotonic() + PATIENCE_S
            while not is_ready(address):
                if started.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the service did not start")
                time.sleep(0.2)
            yield address
        finally:
            started.terminate()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}readyz"):  # noqa: S310 - of this machine
            return True
    except (URLError, OSError):
        return False


@contextmanager
def sample(
    browser: Browser, address: str, size: dict[str, int], scheme: str, keep: str = ""
) -> Iterator[Page]:
    """The sample document in a window, read; of its patch tokens this share was kept."""
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=2)
    page = context.new_page()
    page.goto(address)
    page.locator(".service.is-ready").wait_for()
    if keep:
        page.get_by_role("combobox", name="Tokens to keep").select_option("fixed")
        page.get_by_role("slider").fill(keep)
    page.set_input_files("#file", SAMPLE)
    page.locator(".status.is-succeeded").wait_for(timeout=PATIENCE_S * 1000)
    page.locator(".sheet img[src]").first.wait_for()
    page.wait_for_timeout(500)
    yield page
    context.close()


def save(page: Page, path: Path) -> None:
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.save(path, "WEBP", quality=QUALITY)


def main(folder: Path, running: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        address = running or stack.enter_context(service(stack.enter_context(tempfile.TemporaryDirectory())))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        with sample(browser, address, DESKTOP, "light") as page:
            page.locator(".part").nth(1).hover()
            save(page, folder / "page.webp")
        with sample(browser, address, DESKTOP, "dark", keep="0.75") as page:
            page.get_by_role("checkbox", name="Patch tokens").check()
            page.locator(".page").first.evaluate("page => scrollTo(0, page.offsetTop - 72)")
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            save(page, folder / "page-tokens.webp")
        with sample(browser, address, PHONE, "light") as page:
            page.locator(".page").first.evaluate("page => scrollTo(0, page.offsetTop - 8)")
            page.wait_for_timeout(500)
            save(page, folder / "page-phone.webp")
        browser.close()


if __name__ == "__main__":
    given = [*sys.argv[1:], "", ""]
    main(Path(given[0] or ROOT / "docs/images"), given[1])
