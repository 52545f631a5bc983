"""The accuracy benchmark runs on real pages; its scores are checked where the answer is known."""

import asyncio
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from app.ocr.engine import vision
from app.output.markdown import to_markdown
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.curve import METHOD_NAMES, curve, open_curve_reader, pruning_by
from benchmarks.accuracy.pages import (
    A4_PX,
    CLEAN,
    DEGRADED,
    FEWEST,
    MOST,
    SMALL,
    RenderedPages,
    blank_pages,
    damaged,
    documents,
)
from benchmarks.accuracy.peers import PeerMissing, RapidOcr, Tesseract, recorded_peers
from benchmarks.accuracy.peers import row as peer_row
from benchmarks.accuracy.reading import PLAIN, row
from benchmarks.accuracy.report import DOCS, accuracy_section, recorded_runs, write_docs
from benchmarks.accuracy.scores import structure_of, structure_scores
from rtprune import METHODS, RTPruneConfig, VisualTokens, prune_batch
from training.layout import Family, Layout, LayoutStyle
from training.settings import Settings, load_settings
from training.text import TextSource

ROOT = Path(__file__).resolve().parents[2]
DEJAVU = Path("/usr/share/fonts/truetype/dejavu")
FAMILY = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")

needs_font = pytest.mark.skipif(
    not all((DEJAVU / font).is_file() for font in FAMILY), reason="needs the Debian package fonts-dejavu-core"
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings that ship, with fonts that every machine has."""
    words = tmp_path_factory.mktemp("words") / "words"
    words.write_text("page\nletter\nfold\nDustbin\nmargin\nquartz\nsphinx\n", encoding="utf-8")
    shipped = load_settings(ROOT / "training/pocket.toml")
    fonts = {"folders": (DEJAVU,), "fonts": (FAMILY,), "held_out": (FAMILY,), "words": words}
    return shipped.model_copy(update={"render": shipped.render.model_copy(update=fonts)})


@pytest.fixture(scope="module")
def rendered(settings: Settings) -> RenderedPages:
    return RenderedPages(settings)


def rng(seed: int) -> random.Random:
    return random.Random(seed)


@needs_font
def test_a_pages_own_markdown_has_the_structure_that_was_laid_out(settings: Settings) -> None:
    text = TextSource(settings.render.words)
    family = Family(DEJAVU / FAMILY[0], DEJAVU / FAMILY[1])
    seen = set()
    for seed in range(30):
        page = Layout(rng(seed), text, [family], LayoutStyle(900, 1300, 22, 1.0, 2000)).fill()
        blocks = [(block.kind, "".join(piece for piece, _ in block.markdown)) for block in page.blocks]
        structure = structure_of(to_markdown("\n\n".join(text for _, text in blocks)).markdown)
        kinds = [kind for kind, _ in blocks]
        assert [level for level, _ in structure.headings] == [
            {"title": 1, "sub_title": 2}[kind] for kind in kinds if kind in ("title", "sub_title")
        ]
        tables = [text for kind, text in blocks if kind == "table"]
        assert [rows * columns for rows, columns in structure.tables] == [
            text.count("<td>") for text in tables
        ]
        seen |= {*kinds} | {"list" for _ in structure.lists}
    assert seen >= {"title", "sub_title", "text", "table", "list"}


PAGE = """# Growth of fields

Two plain words.

1. first
2. second

- one

<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>

## Later"""


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("Growth", "Grewth", None),
        ("# Growth of fields", "# Wrong of course", "headings"),
        ("## Later", "# Later", "headings"),
        ("## Later", "Later", "headings"),
        ("2. second\n", "", "lists"),
        ("- one", "1. one", "lists"),
        ("- one", "one", "lists"),
        ("<td>d</td>", "", None),
        ("<td>a</td><td>b</td>", "<td>a b</td>", None),
        ("</tr><tr>", "", "tables"),
        ("Two plain words.", "anything", None),
        ("Two plain words.", "- 12 -", None),
        ("Two plain words.", "- 12", "lists"),
    ],
)
def test_structure_is_right_or_wrong_part_by_part(old: str, new: str, wrong: str | None) -> None:
    scores = structure_scores([PAGE.replace(old, new)], [PAGE])
    assert {part for part, score in scores.items() if score["right"] == 0} == (
        {wrong, "all"} if wrong else set()
    )


def test_pages_without_a_part_earn_nothing_for_it_and_invented_parts_count() -> None:
    scores = structure_scores(["plain", "# Invented"], ["plain", "plain"])
    assert scores["headings"] == {"pages": 1, "right": 0.0}
    assert scores["tables"] == {"pages": 0, "right": None}
    assert scores["all"] == {"pages": 2, "right": 0.5}


@needs_font
def test_a4_pages_are_a4_and_the_same_in_every_run(rendered: RenderedPages) -> None:
    clean, again, degraded = (rendered.kind(kind, 3) for kind in (CLEAN, CLEAN, DEGRADED))
    for sample in (*clean.samples, *degraded.samples):
        assert sample.image.size == A4_PX == (round(210 / 25.4 * 150), 1754)
        assert FEWEST <= len(sample.text) <= MOST
        assert "<|" not in (sample.markdown or "<|")
    assert [sample.text for sample in clean.samples] == [sample.text for sample in again.samples]
    assert not {sample.text for sample in clean.samples} & {sample.text for sample in degraded.samples}
    for sample in clean.samples:
        values = np.asarray(sample.image.convert("L"))
        assert values.min() == 0, "black"
        assert np.median(values) >= 254, "on white"


def test_a_degraded_page_is_never_the_clean_one() -> None:
    page = Image.fromarray(np.where(np.indices((64, 64)).sum(0) % 7 < 3, 0, 255).astype(np.uint8))
    for seed in range(40):
        image, _ = damaged(rng(seed), page)
        assert (np.asarray(image) != np.asarray(page)).any()


def test_blank_pages_have_no_print() -> None:
    papers = blank_pages(4)
    assert [name for name, _ in papers] == ["white", "gray", "noisy", "scanned"]
    for _, image in papers:
        values = np.asarray(image.convert("L"), dtype=float)
        assert image.size == A4_PX
        assert (values < np.median(values) - 100).mean() < 0.01


def test_documents_are_those_with_their_truth(tmp_path: Path) -> None:
    for name in ("english/en1.150.png", "english/untold.150.png", "receipts/r.jpg", "chinese/c.150.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (60, 40), 255).save(tmp_path / name)
    for name in ("english/en1.txt", "receipts/r.txt", "chinese/c.txt"):
        (tmp_path / name).write_text("Ünique", encoding="utf-8")
    kinds = documents(tmp_path, 5)
    assert [(kind.name, len(kind.samples), kind.ignores_case) for kind in kinds] == [
        ("english", 1, False),
        ("receipts", 1, True),
    ]
    with pytest.raises(FileNotFoundError, match="english"):
        documents(tmp_path / "nowhere", None)


@pytest.fixture(scope="module")
def run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Figures and output of a run without peers on the machine: two small pages and a blank one."""
    folder = tmp_path_factory.mktemp("run")
    out = folder / "accuracy.json"
    words = ["--kinds", "small", "blank", "--pages", "2", "--peers", "--threads", "1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        shown: list[str] = []
        patch.setattr("builtins.print", lambda *values, **_: shown.append(" ".join(map(str, values))))
        threads = torch.get_num_threads()
        main([*words, "--rapidocr-python", str(folder / "python")], lambda _: settings)
        torch.set_num_threads(threads)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(shown[-1]) == figures
    return figures, "\n".join(shown)


@needs_font
def test_every_prompt_and_pruning_has_a_row(run: tuple[dict[str, Any], str]) -> None:
    figures, _ = run
    rows = {(one["kind"], one["prompt"], one["pruning"]): one for one in figures["readings"]}
    assert rows.keys() == {
        (SMALL, prompt, pruning) for prompt in ("plain", "markdown") for pruning in ("none", "dynamic")
    }
    for (_, prompt, pruning), one in rows.items():
        assert one["pages"] == sum(one["finish_reasons"].values()) == 2
        assert one["characters"] > 0
        assert one["character_error_rate"] >= 0
        assert 0 <= one["words_read"] <= 1
        assert one["seconds_per_page"] > 0
        assert one["retention"] == 1 or pruning == "dynamic"
        assert ("structure" in one) == (prompt == "markdown")
    assert figures["blank"]["pages"] == 2
    assert 0 <= figures["blank"]["empty"] <= 2
    assert {"checkpoint", "model", "threads", "notes", "hardware", "commit"} <= figures.keys()


@needs_font
def test_prompts_and_prunings_are_those_asked_for(settings: Settings, tmp_path: Path) -> None:
    out, threads = tmp_path / "structure.json", torch.get_num_threads()
    words = ["--kinds", "small", "--pages", "1", "--prompts", "markdown", "--pruning", "none"]
    main([*words, "--threads", "1", "--out", str(out)], lambda _: settings)
    torch.set_num_threads(threads)
    (one,) = json.loads(out.read_text(encoding="utf-8"))["readings"]
    assert (one["prompt"], one["pruning"], one["pages"]) == ("markdown", "none", 1)


@needs_font
def test_missing_peers_are_named_with_what_to_do(run: tuple[dict[str, Any], str]) -> None:
    figures, shown = run
    assert figures["peers"]["rows"] == []
    assert "apt-get install tesseract-ocr" in figures["peers"]["absent"]["tesseract"]
    assert "No such file" in figures["peers"]["absent"]["rapidocr"]
    assert "tesseract is not measured" in shown
    assert "rapidocr is not measured" in shown


def test_peers_keep_their_figures_where_pages_are_the_same(tmp_path: Path) -> None:
    def row_of(kind: str, characters: int) -> dict[str, Any]:
        return {"kind": kind, "prompt": PLAIN, "pages": 2, "characters": characters}

    then = {
        "peers": {"versions": {"tesseract": "tesseract 5"}, "rows": [row_of(CLEAN, 7), row_of(SMALL, 8)]},
        "hardware": "two cores",
        "commit": "abc",
        "measured_at": "2026-01-02T03:04:05",
    }
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(then), encoding="utf-8")
    for _ in range(2):  # figures that were taken over already say what they said
        peers: Any = recorded_peers(earlier, [row_of(CLEAN, 7), row_of(SMALL, 9)])
        assert [row["kind"] for row in peers["rows"]] == [CLEAN], "small pages are others now"
        assert (peers["commit"], peers["measured_at"][:10]) == ("abc", "2026-01-02")
        now = {
            "readings": [],
            "peers": peers,
            "hardware": "three",
            "commit": "d",
            "measured_at": "2026-09-09",
        }
        section = accuracy_section({**now, "peers": {**peers, "rows": []}})
        assert "peers: tesseract 5, at commit abc, 2026-01-02" in section
        earlier.write_text(json.dumps(now), encoding="utf-8")


@needs_font
def test_peers_are_scored_on_the_same_pages(
    rendered: RenderedPages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins that answer as the real ones do: a command, and a module in another interpreter."""
    kind = rendered.kind(SMALL, 2)
    for index, sample in enumerate(kind.samples):
        (tmp_path / f"{index:05}.txt").write_text(sample.text, encoding="utf-8")
    command = tmp_path / "tesseract"
    command.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo "tesseract 0.0";; *00001.png) exit 1;;\n'
        f'*) cat "{tmp_path}/$(basename "$1" .png).txt";; esac\n'
    )
    command.chmod(0o755)
    (tmp_path / "rapidocr_onnxruntime.py").write_text(
        "from pathlib import Path\n"
        "class RapidOCR:\n"
        "    def __call__(self, path):\n"
        f"        text = Path({str(tmp_path)!r}, Path(path).stem + '.txt').read_text(encoding='utf-8')\n"
        "        return [([], line, 1.0) for line in text.split('\\n')], 0.0\n"
    )
    metadata = tmp_path / "rapidocr_onnxruntime-0.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rapidocr-onnxruntime\nVersion: 0.0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    tesseract, rapidocr = Tesseract(threads=1), RapidOcr(sys.executable)
    assert (tesseract.version, rapidocr.version) == ("tesseract 0.0", "rapidocr-onnxruntime 0.0")
    assert peer_row(rapidocr, kind)["character_error_rate"] == 0
    figures = peer_row(tesseract, kind)
    assert figures["failed"] == 1
    assert figures["mean_of_pages"] == 0.5, "a page that failed was not read"


def test_an_interpreter_without_rapidocr_is_a_clear_error(tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    interpreter.chmod(0o755)
    with pytest.raises(PeerMissing, match="No module named 'rapidocr"):
        RapidOcr(str(interpreter))


@pytest.fixture(scope="module")
def curve_rows(rendered: RenderedPages) -> list[dict[str, Any]]:
    async def measure() -> list[dict[str, Any]]:
        reader = open_curve_reader("pocket", "cpu")
        try:
            kind = rendered.kind(SMALL, 3)
            rows = await curve(reader, kind, [0.5, None])
            unpruned = await row(reader, kind, PLAIN, "none")
        finally:
            await reader.close()
        assert unpruned["character_error_rate"] == rows[0]["character_error_rate"]
        return rows

    return asyncio.run(measure())


@needs_font
def test_the_curve_compares_methods_at_equal_ratios(curve_rows: list[dict[str, Any]]) -> None:
    assert [(row["method"], row["ratio"]) for row in curve_rows] == [
        ("none", 1.0),
        *((name, 0.5) for name in METHOD_NAMES),
        *((name, "dynamic") for name in METHOD_NAMES),
    ]
    half, dynamic = curve_rows[1:4], curve_rows[4:]
    assert {row["keep_ratio"] for row in half} == {0.5}
    assert len({row["keep_ratio"] for row in dynamic}) == 1
    assert all(row["read_again"] == 0 for row in curve_rows), "a page read again is read unpruned"
    assert all(row["retention"] < 0.7 for row in half)
    assert curve_rows[0]["retention"] == 1


def test_what_the_engine_prunes_by_is_swapped_and_put_back() -> None:
    page = VisualTokens(torch.randn(40, 8), torch.tensor([True] * 39 + [False]))
    service: Any = vision
    for name in METHOD_NAMES:
        with pruning_by(name):
            pruned = service.prune_batch([page], [0.2], RTPruneConfig(keep_ratio=0.5))
        alone = METHODS[name](page, 0.2, RTPruneConfig(keep_ratio=0.5))
        assert pruned[0].kept.equal(alone.kept)
        assert pruned[0].embeds.equal(alone.embeds)
    assert service.prune_batch is prune_batch


@needs_font
def test_figures_become_tables_and_a_plot(
    run: tuple[dict[str, Any], str], curve_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for page in ("checkpoints.md", "pruning.md"):
        shutil.copy(DOCS / page, tmp_path / page)
    figures, _ = run
    curve_run = {**figures, "curve": {"kind": CLEAN, "rows": curve_rows}}
    write_docs([figures, curve_run], tmp_path)
    tables = (tmp_path / "checkpoints.md").read_text("utf-8"), (tmp_path / "pruning.md").read_text("utf-8")
    assert f"| {SMALL} | 2 | rtprune-pocket | plain | dynamic |" in tables[0]
    assert "tesseract was not measured" in tables[0]
    assert "| 0.5 |" in tables[1]
    assert "| dynamic (" in tables[1]

    plot = (tmp_path / "pruning-curve.svg").read_text("utf-8")
    drawn = ElementTree.fromstring(plot)  # noqa: S314 - our own
    circles = drawn.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 3 * (2 + 1), "no pruning, 0.5 and the ring of the dynamic ratio, for each method"
    assert all(0 <= float(c.attrib["cx"]) <= 640 and 0 <= float(c.attrib["cy"]) <= 400 for c in circles)

    write_docs([figures, curve_run], tmp_path)
    assert tables == tuple((tmp_path / page).read_text("utf-8") for page in ("checkpoints.md", "pruning.md"))
    write_docs([], tmp_path)
    assert "Not measured yet" in (tmp_path / "pruning.md").read_text("utf-8")
    assert not (tmp_path / "pruning-curve.svg").exists()
    (tmp_path / "pruning.md").write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match=r"pruning\.md"):
        write_docs([], tmp_path)


def test_the_documentation_shows_the_recorded_figures(tmp_path: Path) -> None:
    pages = ("checkpoints.md", "pruning.md")
    for page in pages:
        shutil.copy(DOCS / page, tmp_path / page)
    write_docs(recorded_runs(), tmp_path)
    for page in (*pages, "pruning-curve.svg"):
        written, shown = tmp_path / page, DOCS / page
        assert written.is_file() == shown.is_file()
        assert not written.is_file() or written.read_text("utf-8") == shown.read_text("utf-8"), (
            "run python -m benchmarks.accuracy.report"
        )
