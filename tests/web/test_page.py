"""The page at ``/``, in a real browser, against a real service with the fake reader."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from playwright.sync_api import Browser, Page, expect
from service_client import A4, ROOT, Server, eventually, image_bytes, pdf_bytes, serving

from app.output.formats import FORMATS

WEB = ROOT / "app/web"
MAX_PICTURE_BYTES = 200_000
OTHER_HOST = re.compile(r"(?:https?:)?//(?!www\.w3\.org/)[\w.-]+\.\w{2,}")
TEXT = """<|ref|>title<|/ref|><|det|>[[100, 50, 900, 100]]<|/det|>
# A title
<|ref|>text<|/ref|><|det|>[[100, 150, 900, 300]]<|/det|>
Half of it is \\(\\frac{1}{2} \\alpha^2\\), and \\(\\unheardof{x}\\) is not known. `code` and **bold**.
<|ref|>table<|/ref|><|det|>[[100, 350, 900, 500]]<|/det|>
<table><tr><td colspan="2">Wide</td></tr><tr><td>1</td><td>2</td></tr></table>
<|ref|>text<|/ref|><|det|>[[100, 550, 900, 700]]<|/det|>
- one
- two
  - deeper

```python
print("<b>")
```
<|ref|>image<|/ref|><|det|>[[100, 750, 900, 900]]<|/det|>"""
HOSTILE = """# <script>window.hurt = 1</script><img src=x onerror="window.hurt = 1">

[a](javascript:window.hurt=1) [b](data:text/html,<script>window.hurt=1</script>) [c](https://example.org/)
![pixel](https://example.org/pixel.png) <svg onload="window.hurt=1"><iframe src="javascript:window.hurt=1">

<table onclick="window.hurt=1"><tr><td style="background:url(//example.org/)" onmouseover="window.hurt=1">
cell<script>window.hurt=1</script><img src=x onerror="window.hurt=1"><a href="javascript:window.hurt=1">a</a>
</td></tr></table>

\\(\\href{javascript:window.hurt=1}{x}\\)
<math><mtext><style><img src=x onerror="window.hurt=1"></style></mtext></math>"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if (reason := browser.missing()) is not None:
        pytest.skip(reason)
    with browser.browsing() as started:
        yield started


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data"), trusted_proxies="127.0.0.1") as started:
        yield started.wait_ready()


@pytest.fixture
def page(chromium: Browser, service: Server) -> Iterator[Page]:
    with browser.window(chromium, permissions=["clipboard-read", "clipboard-write"]) as opened:
        opened.goto(address(service))
        yield opened


def address(service: Server, fragment: str = "") -> str:
    return f"http://127.0.0.1:{service.port}/{fragment}"


def add(page: Page, data: bytes, name: str = "report.pdf") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "application/pdf", "buffer": data})


def submitted(service: Server, data: bytes, **directions: Any) -> str:
    """A job of the fake reader, which does as directed."""
    form = {"prompt": json.dumps(directions), "tokens": "detail"}
    answer = service.http.post("/v1/jobs", files={"file": ("x", data)}, data=form)
    job_id: str = answer.json()["id"]
    return job_id


def opened(page: Page, service: Server, job_id: str) -> None:
    page.goto(address(service, f"#/{job_id}"))


def is_finished(page: Page) -> None:
    expect(page.locator(".status")).to_have_text("Finished")


def test_pages_arrive_with_image_text_tokens_and_cost_and_are_found_again(
    page: Page, service: Server
) -> None:
    add(page, pdf_bytes(A4, A4, A4))
    is_finished(page)
    expect(page.locator(".page h3")).to_have_text(["Page 1", "Page 2", "Page 3"])
    expect(page.locator(".text .level-1")).to_have_text(["Page 1", "Page 2", "Page 3"])
    expect(page.get_by_role("img", name="Page 1 as it was read")).to_be_visible()
    first = page.locator(".page").first
    assert (
        first.locator(".sheet img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    )
    expect(first.get_by_role("row", name=re.compile("^Visual tokens"))).to_contain_text("273")
    expect(first.locator(".patch")).to_have_count(0)
    page.get_by_role("checkbox", name="Patch tokens").check()
    expect(first.locator(".legend")).to_contain_text("kept 204")
    assert (first.locator(".patch.kept").get_attribute("d") or "").count("M") == 204
    page.reload()
    expect(page.locator(".page")).to_have_count(3)
    page.goto(address(service))
    page.get_by_role("link", name=re.compile(r"^report\.pdf")).click()
    expect(page.locator(".page")).to_have_count(3)


def test_what_was_read_is_copied_and_downloaded_as_the_service_gives_it(page: Page) -> None:
    add(page, image_bytes(), "scan.png")
    is_finished(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == "# Page 1\n\n60 x 40 pixels\n"
    saved: dict[str, bytes] = {}
    for name, form in FORMATS.items():
        page.get_by_role("combobox", name="Format").select_option(name)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        assert download.value.suggested_filename.endswith(f".{form.suffix}")
        saved[name] = Path(download.value.path()).read_bytes()
    assert json.loads(saved["json"])["pages"][0]["width"] == 60
    assert json.loads(saved["docling"])["schema_name"] == "DoclingDocument"
    assert saved["pdf"].startswith(b"%PDF-")
    assert saved["zip"].startswith(b"PK")
    assert all(b"60 x 40 pixels" in saved[name] for name in ("markdown", "text", "html", "doctags"))


def test_a_document_is_read_again_with_another_share_and_mode(page: Page, service: Server) -> None:
    add(page, image_bytes(), "scan.png")
    is_finished(page)
    page.get_by_text("Read again with other options").click()
    again = page.locator(".again")
    again.get_by_role("combobox", name="Tokens to keep").select_option("fixed")
    again.get_by_role("slider").fill("0.5")
    again.get_by_label("Mode").select_option("large")
    again.get_by_role("button", name="Read again").click()
    expect(page.locator(".asked")).to_have_text("large, keep 0.5")
    is_finished(page)
    expect(page.locator(".facts")).to_contain_text("large")
    expect(page.locator(".legend")).to_contain_text("kept 200")
    expect(page.locator(".history li")).to_have_count(2)


def test_files_are_dropped_and_pasted_several_at_a_time(page: Page) -> None:
    page.evaluate(
        """bytes => {
            const given = (...names) => {
                const transfer = new DataTransfer();
                const file = name => new File([new Uint8Array(bytes)], name, { type: "image/png" });
                for (const name of names) transfer.items.add(file(name));
                return transfer;
            };
            dispatchEvent(new DragEvent("drop", { dataTransfer: given("a.png", "b.png"), cancelable: true }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: given("c.png") }));
        }""",
        [*image_bytes()],
    )
    expect(page.locator(".entry-name")).to_have_text(["c.png", "b.png", "a.png"])
    expect(page.locator(".entry-state")).to_have_text(["1 page", "1 page", "1 page"])


def test_blocks_and_their_text_are_highlighted_together_by_pointer_and_keyboard(
    page: Page, service: Server
) -> None:
    opened(page, service, submitted(service, pdf_bytes(A4), text=TEXT))
    is_finished(page)
    parts, boxes = page.locator(".part"), page.locator(".box")
    expect(boxes).to_have_count(5)
    parts.nth(1).hover()
    expect(page.locator(".box.is-active")).to_have_attribute("data-block", "1")
    boxes.nth(2).hover()
    expect(page.locator(".part.is-active")).to_have_attribute("data-block", "2")
    boxes.nth(4).hover()
    expect(page.locator(".part.is-active .figure")).to_have_count(1)
    boxes.nth(0).click()
    expect(parts.nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(parts.nth(1)).to_be_focused()
    page.mouse.move(0, 0)
    expect(page.locator(".box.is-active")).to_have_attribute("data-block", "1")


def test_tables_math_code_lists_and_figures_are_shown_as_such(page: Page, service: Server) -> None:
    opened(page, service, submitted(service, pdf_bytes(A4), text=TEXT))
    text = page.locator(".text")
    expect(text.locator("math mfrac")).to_have_count(1)
    expect(text.locator("math msup")).to_have_text("\N{GREEK SMALL LETTER ALPHA}2")
    expect(text.locator("code.tex")).to_have_text("\\unheardof{x}")
    expect(text.locator("td[colspan='2']")).to_have_text("Wide")
    expect(text.locator("ul ul li")).to_have_text("deeper")
    expect(text.locator("pre code")).to_have_text('print("<b>")')
    expect(text.locator("strong")).to_have_text("bold")
    expect(text.locator(".figure[src^=blob]")).to_be_visible()


@pytest.mark.parametrize("way", ["through the service", "past the service"])
def test_a_hostile_page_runs_nothing_and_reaches_nobody(page: Page, service: Server, way: str) -> None:
    """The service makes model text harmless; the page would hold if it did not."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    opened(page, service, submitted(service, pdf_bytes(A4), text=HOSTILE))
    is_finished(page)
    if way == "past the service":
        page.evaluate(
            """async text => {
                const { render } = await import(new URL("web/markdown.js", document.baseURI));
                document.querySelector(".text").replaceChildren(...render(text));
            }""",
            HOSTILE,
        )
    text = page.locator(".text")
    expect(text).to_contain_text("cell")
    for element in text.locator("*").all():
        element.dispatch_event("click")
        element.dispatch_event("mouseover")
    assert text.locator("script, iframe, img, svg, style, object, form, input").count() == 0
    attributes = text.evaluate(
        "node => [...node.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on") or name in {"style", "src"}]
    links = text.evaluate("node => [...node.querySelectorAll('a')].map(each => each.href)")
    assert links == ["https://example.org/"]
    assert page.evaluate("() => window.hurt") is None
    assert not [url for url in asked if not url.startswith((address(service), "blob:"))]


def test_marks_without_an_end_are_text_and_take_no_time(page: Page) -> None:
    """Each of them would look for its end through all that follows, if it might."""
    shown = page.evaluate(
        """async marks => {
            const { render } = await import(new URL("web/markdown.js", document.baseURI));
            const size = nodes => nodes.reduce((sum, node) => sum + node.textContent.length, 0);
            return marks.map(mark => size(render(mark.repeat(50_000))));
        }""",
        (marks := ["*a ", "_a ", "`a``", "\\(", "[a", "<sub>", "$a ", "# ", "- ", "\\[\n", "&lt", "> "]),
    )
    assert len(shown) == len(marks)


def test_an_address_that_leads_nowhere_says_so(page: Page, service: Server) -> None:
    opened(page, service, "0" * 32)
    expect(page.get_by_role("alert")).to_contain_text("no such job")


def test_a_file_that_is_refused_says_why(page: Page) -> None:
    add(page, b"no document", "notes.txt")
    expect(page.get_by_role("alert")).to_contain_text("looks like text")
    expect(page.locator(".status")).to_have_text("Failed")


def test_a_job_is_cancelled(page: Page, service: Server) -> None:
    job_id = submitted(service, pdf_bytes(A4), delay_s=60)
    opened(page, service, job_id)
    expect(page.locator(".status")).to_have_text("Reading, 0 of 1 page")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".status")).to_have_text("Cancelled")
    assert service.http.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"


def test_each_page_comes_once_though_the_connection_breaks(page: Page, service: Server) -> None:
    """The first stream ends after its first page; those that follow go on behind it."""
    asked: list[str | None] = []
    job_id = submitted(service, pdf_bytes(A4, A4, A4))
    whole = service.http.get(f"/v1/jobs/{job_id}/events").text.replace("\r\n", "\n")

    def broken(route: Any) -> None:
        asked.append(route.request.headers.get("last-event-id"))
        if len(asked) > 1:
            route.continue_()
        else:
            route.fulfill(
                status=200, content_type="text/event-stream", body=whole.partition("\n\n")[0] + "\n\nid: 9"
            )

    page.route("**/events", broken)
    opened(page, service, job_id)
    is_finished(page)
    expect(page.locator(".page h3")).to_have_text(["Page 1", "Page 2", "Page 3"])
    assert asked == ["0", "1"]


def test_a_long_document_holds_the_images_that_are_near_alone(page: Page) -> None:
    add(page, pdf_bytes(*["/MediaBox[0 0 200 300]"] * 30))
    is_finished(page)
    held = page.locator(".sheet img[src]")
    expect(page.locator(".page")).to_have_count(30)
    expect(page.locator(".page").first.locator("img[src]")).to_have_count(1)
    page.locator(".page").last.scroll_into_view_if_needed()
    expect(page.locator(".page").last.locator("img[src]")).to_have_count(1)
    expect(page.locator(".page").first.locator("img[src]")).to_have_count(0)
    assert held.count() < 15


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_everybody_can_use_it(chromium: Browser, service: Server, width: int, scheme: str) -> None:
    view = {"width": width, "height": 800}
    with browser.window(chromium, viewport=view, color_scheme=scheme, reduced_motion="reduce") as page:
        page.goto(address(service))
        expect(page.locator(".service.is-ready")).to_be_visible()
        assert browser.violations(page) == []
        opened(page, service, submitted(service, pdf_bytes(A4, A4), text=TEXT, fail_on=[1]))
        expect(page.locator(".status")).to_have_text("Finished in part")
        expect(page.locator(".notices.is-error li")).to_contain_text("as directed")
        page.get_by_role("checkbox", name="Patch tokens").check()
        assert browser.violations(page) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_it_works_under_a_path_prefix(chromium: Browser, service: Server) -> None:
    asked: list[str] = []
    with browser.window(chromium, extra_http_headers={"X-Forwarded-Prefix": "/ocr"}) as page:
        page.goto(address(service, "ocr"))
        page.on("request", lambda request: asked.append(request.url))
        add(page, pdf_bytes(A4))
        is_finished(page)
        expect(page.get_by_role("img", name="Page 1 as it was read")).to_be_visible()
    assert not [url for url in asked if not url.startswith((address(service, "ocr/"), "blob:"))]


def test_its_files_are_asked_about_and_sent_once(service: Server) -> None:
    for path in WEB.iterdir():
        if path.suffix not in {".css", ".html", ".js", ".svg"}:
            continue
        name = "/" if path.name == "index.html" else f"/web/{path.name}"
        first = service.http.get(name)
        assert first.content == path.read_bytes(), name
        assert first.headers["content-encoding"] == "gzip"
        assert service.http.get(name, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
        policy = first.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not OTHER_HOST.search(path.read_text("utf-8")), "nothing from other hosts"
    assert service.http.get("/web/page.py").status_code == 404
    assert service.http.get("/web/__init__.py").status_code == 404


def test_its_pictures_are_taken_anew_and_those_that_are_shown_are_small(
    chromium: Browser, service: Server, tmp_path: Path
) -> None:
    shown = {
        ROOT / "docs" / name
        for name in re.findall(r"\((images/[\w.-]+)\)", (ROOT / "docs/page.md").read_text())
    }
    assert shown
    assert all(0 < path.stat().st_size < MAX_PICTURE_BYTES for path in shown)
    take = [sys.executable, "docs/screenshots.py", str(tmp_path), address(service)]
    subprocess.run(take, cwd=ROOT, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in shown}


def test_a_key_is_asked_for_where_the_service_wants_one(page: Page, service: Server) -> None:
    """The last one: from here on the service of this module has a key."""
    add_key = [sys.executable, "-m", "app.cli", "keys", "add", "browser"]
    env = {**os.environ, "RTPRUNE_DATA_DIR": str(service.data_dir)}
    made = subprocess.run(add_key, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    key = re.search(r"\S{30,}", made.stdout)
    assert key is not None
    eventually(lambda: service.http.get("/v1/jobs").status_code == 401)
    add(page, image_bytes(), "secret.png")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_text("is not accepted")).to_be_visible()
    page.get_by_label("API key").fill(key[0])
    page.get_by_role("button", name="Use this key").click()
    is_finished(page)
    expect(page.get_by_role("img", name="Page 1 as it was read")).to_be_visible()
