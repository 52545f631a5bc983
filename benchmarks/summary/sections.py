"""List what the page shows of each results file: a row in ``GROUPS``, and a function that makes its table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.summary.page import Rows, Section

Run = Mapping[str, Any]
FEW = 0.0005
"""Difference of two error rates below which the page, with three digits, shows them as equal."""
SLOWER = 1.02
"""Quotient of two times from which a page with drafts counts as slower."""
PEERS = ("tesseract", "rapidocr")
RESTORED = {"always": "never", "never": ""}
"""What a policy of pruning, as the file calls it, means for restoring."""
GIVEN_MARKDOWN = "given Markdown"
"""Name of the Markdown that comes with OmniDocBench's pages, which is no tool's."""


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _accuracy(run: Run) -> Rows:
    """Show one row a kind: the plain prompt as the service prunes, unpruned where measured, and the peers."""
    plain = {(row["kind"], row["pruning"]): row for row in run["readings"] if row["prompt"] == "plain"}
    peers = {(row["kind"], row["reader"]): row for row in run["peers"]["rows"]}
    rows = [["kind", "pages", "error", "error unpruned", "retention", "tesseract", "RapidOCR"]]
    for (kind, pruning), row in plain.items():
        if pruning == "dynamic":
            whole = plain.get((kind, "none"), {})
            errors = (
                row["character_error_rate"],
                whole.get("character_error_rate"),
                row["retention"],
                *(peers.get((kind, name), {}).get("character_error_rate") for name in PEERS),
            )
            rows.append([kind.replace("_", " "), str(row["pages"]), *map(_rate, errors)])
    return rows


def _accuracy_negative(run: Run) -> Iterator[str]:
    ours = {
        row["kind"]: row
        for row in run["readings"]
        if row["prompt"] == "plain" and row["pruning"] == "dynamic"
    }
    for peer in run["peers"]["rows"]:
        error, rival = ours[peer["kind"]]["character_error_rate"], peer["character_error_rate"]
        if error > rival + FEW:
            yield f"{peer['reader']} reads `{peer['kind']}` better, {_rate(rival)} against {_rate(error)}."


def _structure(run: Run) -> Rows:
    rows = [["kind", "pages", "error", "all right", "headings", "lists", "tables"]]
    for row in run["readings"]:
        if row["prompt"] == "markdown":
            parts = [
                _share(row["structure"][part]["right"]) for part in ("all", "headings", "lists", "tables")
            ]
            rows.append([row["kind"], str(row["pages"]), _rate(row["character_error_rate"]), *parts])
    return rows


def _signs(run: Run) -> Rows:
    rows = [["", "printed", "error before", "error", "invented before", "invented"]]
    for name in ("digits", "letters", "signs_together"):
        before, after = run["before"]["all"], run["after"]["all"]
        invented = [str(one["invented"]) if name == "signs_together" else "" for one in (before, after)]
        errors = [f"{one[name]['error']:.4f}" for one in (before, after)]
        rows.append([name.replace("_", " "), f"{after[name]['printed']:,}", *errors, *invented])
    return rows


def _confidence(run: Run) -> Rows:
    return [
        ["risk", "pages", "bad", "words missing"],
        *(
            [f"{low} to {high}", str(band["pages"]), str(band["bad"]), _share(band["missing"])]
            for band in run["bands"]
            for low, high in [band["risk"]]
        ),
    ]


def _confidence_negative(run: Run) -> Iterator[str]:
    quantiles = run["separation"]
    best, name = max((value, name) for name, value in quantiles.items())
    if best > quantiles["risk"]:
        yield (
            f"`{name}` of the tokens' probabilities separates bad pages from good ones better than the risk"
            f" that is used, {_rate(best)} against {_rate(quantiles['risk'])} (area under the ROC curve)."
        )


def _text_layer(run: Run) -> Rows:
    """Show one row for each kind of page: error without and with what the text layer changes."""
    rows = [["pages", "", "error without", "error with", "what is done"]]
    for row in run["blank"]:
        times = [f"{row[name] * 1000:.0f} ms" for name in ("seconds_of_the_test", "seconds_of_the_model")]
        done = f"{row['skipped']} skipped; test {times[0]}, model {times[1]}"
        rows.append([f"blank, {row['paper']} paper", str(row["pages"]), "", "", done])
    faint = run["faint"]
    taken = f"{sum(row['taken_for_blank'] for row in faint)} taken for blank"
    rows.append(["faint print", str(sum(row["pages"] for row in faint)), "", "", taken])
    for row in run["small_print"]:
        errors = _rate(row["error_before"]), _rate(row["error_after"])
        rows.append([f"print of {row['size_pt']:g} pt", str(row["pages"]), *errors, f"{row['dpi']:.0f} dpi"])
    for row in run["small_print"]:
        errors = _rate(row["error_as_large_shows_it"]), _rate(row["error_as_gundam_shows_it"])
        mode = "Gundam" if row["is_routed"] else "stays Large"
        rows.append([f"as Large, Gundam show {row['size_pt']:g} pt", str(row["pages"]), *errors, mode])
    for row in run["second_readings"]:
        errors = _rate(row["error_before"]), _rate(row["error_after"])
        done = f"{row['read_twice']} read twice, {row['second_kept']} kept"
        rows.append([row["kind"], str(row["pages"]), *errors, done])
    real = run["english"]
    done = (
        f"{real['taken_for_blank']} taken for blank, {real['rendered_larger']} rendered larger,"
        f" {real['to_gundam']} to Gundam, {real['read_twice']} read twice"
    )
    errors = _rate(real["error_before"]), _rate(real["error_after"])
    return [*rows, ["real, English", str(real["pages"]), *errors, done]]


def _text_layer_negative(run: Run) -> Iterator[str]:
    twice = sum(row["read_twice"] for row in run["second_readings"])
    kept = sum(row["second_kept"] for row in run["second_readings"])
    gain = max(row["error_before"] - row["error_after"] for row in run["second_readings"])
    if gain < FEW:
        yield (
            f"a second reading without pruning mends nothing on this checkpoint: of {twice} pages {kept} have"
            " more words of their layer then. It is off by default."
        )
    for row in run["small_print"]:
        if row["error_after"] > row["error_before"] + FEW:
            errors = f"{_rate(row['error_after'])} against {_rate(row['error_before'])}"
            yield f"rendered larger, print of {row['size_pt']:g} pt is read slightly worse, {errors}."
    for row in run["blank"]:
        if row["skipped"] and row["seconds_of_the_test"] > row["seconds_of_the_model"]:
            yield f"on {row['paper']} paper the test for blank pages takes longer than this checkpoint does."


def _drafts(run: Run) -> Rows:
    rows = [["layer", "pages", "same text", "accepted", "steps", "steps of a view", "seconds"]]
    for name, part in _kinds_of_drafts(run):
        ratios = (part["times_fewer_steps"], part["times_fewer_steps_of_a_view"])
        fewer = [f"{ratio:.2f} times fewer" for ratio in ratios]
        counts = [str(part["pages"]), str(part["same_text"]), _share(part["acceptance"])]
        rows.append([name, *counts, *fewer, f"{part['times_seconds']:.3f} times"])
    return rows


def _drafts_negative(run: Run) -> Iterator[str]:
    for name, part in _kinds_of_drafts(run):
        if part["times_seconds"] > SLOWER:
            yield f"with {name}, pages take {part['times_seconds']:.3f} times as long as without drafts."


def _kinds_of_drafts(run: Run) -> list[tuple[str, Run]]:
    return [(name, part) for name, part in run.items() if isinstance(part, dict) and "times_seconds" in part]


def _layout(run: Run) -> Rows:
    rows = [["pages", "", "error", "structure right", "lines split or merged"]]
    for kind in ("clean", "degraded", "documents"):
        part = run[kind]
        right = _share(part["structure"]["all"]["right"]) if "structure" in part else ""
        faults = str(part["faults"]["split"] + part["faults"]["merged"]) if "faults" in part else ""
        rows.append(
            [kind, str(part["plain"]["pages"]), _rate(part["plain"]["character_error_rate"]), right, faults]
        )
    return rows


def _ablation(run: Run) -> Rows:
    before, after = run["before"], run["after"]
    return [
        ["pages", "", "error before", "error"],
        [
            "English, rules chosen on them",
            str(after["pages"]),
            *_before_and_after(before["mean_error"], after["mean_error"]),
        ],
        *(
            [name.replace("_", " "), str(row["pages"]), *_before_and_after(row["before"], row["after"])]
            for name, row in run["pages_not_used_to_choose_rules"].items()
        ),
    ]


def _before_and_after(*errors: float) -> list[str]:
    return [f"{error:.4f}" for error in errors]


def _ablation_negative(run: Run) -> Iterator[str]:
    clean = run["own_clean_pages"]
    if clean["wrong_structure_after"] > clean["wrong_structure_before"]:
        yield (
            f"with fewer rules {clean['wrong_structure_after']} of {clean['pages']} clean pages have a wrong"
            f" structure, {clean['wrong_structure_before']} before."
        )
    for name, row in run["pages_not_used_to_choose_rules"].items():
        if row["after"] > row["before"]:
            yield f"{name.replace('_', ' ')} lost, {row['before']:.4f} to {row['after']:.4f}."


def _evaluation(run: Run) -> Rows:
    metrics = ("text_edit", "order_edit", "teds", "cells")
    rows = [["tool", *(f"`{metric}`" for metric in metrics), "`text_edit`, English"]]
    for name, tool in run["tools"].items():
        scores = [tool["scores"].get(metric, {}).get("value") for metric in metrics]
        english = tool["text_edit_by_language"].get("english", {}).get("value")
        rows.append([name, *map(_rate, (*scores, english))])
    return rows


def _evaluation_negative(run: Run) -> Iterator[str]:
    ours, *others = run["tools"]
    errors = {name: tool["text_edit_by_language"]["english"]["value"] for name, tool in run["tools"].items()}
    better = [
        f"{name} {_rate(errors[name])}"
        for name in others
        if errors[name] < errors[ours] and name != GIVEN_MARKDOWN
    ]
    if better:
        yield f"better than the {ours} ({_rate(errors[ours])}) on English pages: {', '.join(better)}."


def _curve(run: Run) -> Rows:
    rows = [["patch tokens kept", "retention", "RTPrune", "norm, no fold", "random"]]
    by_ratio: dict[Any, dict[str, Run]] = {}
    for row in run["curve"]["rows"]:
        by_ratio.setdefault(row["ratio"], {})[row["method"]] = row
    for ratio, methods in by_ratio.items():
        one = methods.get("rtprune", methods.get("none", {}))
        label = f"{ratio} ({one['keep_ratio']:.2f})" if ratio == "dynamic" else f"{ratio}"
        errors = [methods.get(name, one)["character_error_rate"] for name in ("rtprune", "norm", "random")]
        rows.append([label, _rate(one["retention"]), *map(_rate, errors)])
    return rows


def _curve_negative(run: Run) -> Iterator[str]:
    by_method: dict[str, dict[Any, float]] = {}
    for row in run["curve"]["rows"]:
        by_method.setdefault(row["method"], {})[row["ratio"]] = row["character_error_rate"]
    gains = [by_method["norm"][ratio] - error for ratio, error in by_method["rtprune"].items()]
    if max(gains) < 0.01:
        yield (
            f"the fold changes the error by {-max(gains):+.3f} to {-min(gains):+.3f} here:"
            " folding what the norm leaves out adds nothing that can be seen."
        )


def _pruners(run: Run) -> Rows:
    """Show every method, best first; a column of errors for each checkpoint."""
    checkpoints = run["checkpoints"]
    errors = [
        {row["method"]: row["character_error_rate"] for row in checkpoint["rows"]}
        for checkpoint in checkpoints
    ]
    names = [f"error, {Path(checkpoint['checkpoint']).name}" for checkpoint in checkpoints]
    rows = sorted(checkpoints[0]["rows"], key=lambda row: float(row["character_error_rate"]))
    return [
        ["method", *names, "retention", "loops a page"],
        *(
            [
                row["method"],
                *(_rate(of.get(row["method"])) for of in errors),
                _rate(row["retention"]),
                f"{row['loops_a_page']:.2f}",
            ]
            for row in rows
        ),
    ]


def _pruners_negative(run: Run) -> Iterator[str]:
    for checkpoint in run["checkpoints"]:
        errors = {row["method"]: row["character_error_rate"] for row in checkpoint["rows"]}
        ours = errors.pop("rtprune")
        errors.pop("none")
        better = [f"{name} {_rate(error)}" for name, error in errors.items() if error <= ours]
        if better:
            name = Path(checkpoint["checkpoint"]).name
            yield (
                f"on `{name}`, {run['pages']} pages, no worse than RTPrune ({_rate(ours)}):"
                f" {', '.join(better)}."
            )


def _scorer(run: Run) -> Rows:
    rows = {(row["method"], row["share_of_own_count"]): row for row in run["rows"]}
    return [
        ["method", "error", "retention", "error at 60 % of the count", "retention"],
        *(
            [
                name,
                *(
                    _rate(rows[key][figure]) if (key := (name, share)) in rows else ""
                    for share in (1.0, 0.6)
                    for figure in ("character_error_rate", "retention")
                ),
            ]
            for name in dict.fromkeys(name for name, _ in rows)
        ),
    ]


def _scorer_negative(run: Run) -> Iterator[str]:
    errors = {(row["method"], row["share_of_own_count"]): row["character_error_rate"] for row in run["rows"]}
    for share in (1.0, 0.6):
        ours = errors["trained", share]
        better = [
            f"{name} {_rate(errors[name, share])}"
            for name in ("rtprune", "norm", "ink")
            if errors[name, share] <= ours
        ]
        if better:
            yield (
                f"at {share:.0%} of RTPrune's count, {run['pages']} pages, no worse than the trained scorer"
                f" ({_rate(ours)}): {', '.join(better)}."
            )


def _fixation(run: Run) -> Rows:
    """Show a row for each share; plain attention has none."""
    names = ("character_error_rate", "covered_patch_mass", "covered_mass", "attended_share")
    return [
        [
            *(
                "pruned by",
                "share",
                "pages",
                "error",
                "attention to patches covered",
                "all attention covered",
            ),
            "attended, all layers and steps",
        ],
        *(
            [
                row["prune"],
                "plain" if row["share"] is None else f"{row['share']:g}",
                str(row["pages"]),
                *(_rate(row[name]) for name in names),
            ]
            for row in run["rows"]
        ),
    ]


def _fixation_negative(run: Run) -> Iterator[str]:
    errors = {(row["prune"], row["share"]): row["character_error_rate"] for row in run["rows"]}
    for (prune, share), error in errors.items():
        if share is not None and error > errors[prune, None] + FEW:
            yield (
                f"pruned by `{prune}`, share {share:g} reads {_rate(error)}, plain attention"
                f" {_rate(errors[prune, None])}."
            )


def _restoring(run: Run) -> Rows:
    """Show the errors of all kinds together: unpruned, pruned, and restored above the calibrated risk."""
    ratios = ("dynamic", run["hard_ratio"])
    shown = [("none", "never"), *((ratio, policy) for ratio in ratios for policy in _policies(run))]
    return [
        ["keep ratio", "restored above", "error", "read again", "tokens decoded"],
        *(
            [str(ratio), RESTORED.get(policy, str(policy)), f"{errors:.4f}", _share(restored), f"{tokens:,}"]
            for ratio, policy in shown
            for errors, restored, tokens in [_restored(run, ratio, policy)]
        ),
    ]


def _policies(run: Run) -> list[Any]:
    return ["always", run["calibrated"]]


def _restored(run: Run, ratio: Any, policy: Any) -> tuple[float, float, int]:
    """Return the error of all characters, the mean share read again, and the tokens decoded."""
    rows = [
        row for row in run["rows"] if (str(row["ratio"]), str(row["policy"])) == (str(ratio), str(policy))
    ]
    characters = sum(row["characters"] for row in rows)
    errors = sum(row["error"] * row["characters"] for row in rows)
    tokens = sum(row["decoded_tokens"] for row in rows)
    return errors / characters, sum(row["restored"] for row in rows) / len(rows), tokens


def _restoring_negative(run: Run) -> Iterator[str]:
    pruned, restored = (_restored(run, "dynamic", policy) for policy in _policies(run))
    if pruned[0] - restored[0] < 0.001:
        yield (
            f"at the ratio that RTPrune chooses, restoring mends {pruned[0] - restored[0]:.4f} for"
            f" {restored[2] / pruned[2] - 1:.0%} more tokens: it is off unless asked for."
        )


def _prune(run: Run) -> Rows:
    return [
        ["pages at once", "", "ms a page, median", "times faster"],
        *(
            [str(pages), way, f"{part['ms_a_page'][way]['median']:.2f}", f"{part['times_faster'][way]:.1f}"]
            for pages, part in ((1, run["pages_1"]), (32, run["pages_32"]))
            for way in ("released way", "rtprune, one batch")
        ),
    ]


def _engine_cpu(run: Run) -> Rows:
    ways = {
        "engine_16": "engine, 16 in flight",
        "engine_1": "engine, one",
        "generate_serial": "`generate()`, one at a time",
        "generate_padded_16": "`generate()`, padded batches of 16",
    }
    return [["", "pages/s"], *([said, f"{run[f'pages_per_s_{way}']:.2f}"] for way, said in ways.items())]


def _engine_gpu(run: Run) -> Rows:
    shown = [("base", 1), ("base", 64), ("base", 256), ("large", 64), ("large pruned", 64), ("gundam", 64)]
    rows = {(row["mode"], row["pages"]): row for row in run["rows"]}
    whole = rows["engine base", 64]
    return [
        ["mode", "pages at once", "tok/s", "decoding, of the limit", "pages/s"],
        *(
            [mode, str(pages), f"{row['decode_tok_per_s']:,.0f}", _share(row["decode_share"]), rate]
            for mode, pages in shown
            for row in [rows[mode, pages]]
            for rate in [f"{row['pages_per_s']:.1f}"]
        ),
        ["base, the whole engine", "64", f"{whole['tok_per_s']:,.0f}", "", f"{whole['pages_per_s']:.1f}"],
    ]


def _pages(run: Run) -> Rows:
    return [
        ["pages of A4", "s a page"],
        ["one after another", f"{run['seconds_a_page_alone']:.2f}"],
        [f"{run['pages']} together", f"{run['seconds_a_page_together']:.2f}"],
    ]


def _service(runs: Sequence[Run]) -> Rows:
    rows = [["reader", "database", "overhead p50 / p95, ms", "pages/s through the queue", "pages/s alone"]]
    for run in runs:
        for name in ("sqlite", "postgresql"):
            if name in run:
                overhead = run[name]["overhead_ms"]
                both = f"{overhead['overhead_p50']:.0f} / {overhead['overhead_p95']:.0f}"
                rates = (run[name]["queue_pages_per_s"], run["alone_pages_per_s"])
                rows.append(
                    [f"{run['reader']}, {run['page']}", name, both, *(f"{rate:.0f}" for rate in rates)]
                )
    return rows


def _fairness(run: Run) -> Rows:
    said = {
        "alone_s": "a page alone, s",
        "beside_s": "a page beside a large document, s",
        "high_priority_s": "the same with priority 9, s",
        "delete_s": "until a deleted document is out of the model, s",
        "pages_per_s": "pages/s of a document alone",
    }
    return [
        ["", "now", "before"],
        *([text, *(f"{run[one][name]:.2f}" for one in ("now", "baseline"))] for name, text in said.items()),
    ]


def _fairness_negative(run: Run) -> Iterator[str]:
    if run["speed_over_baseline"] < 1:
        yield f"a document alone is read at {run['speed_over_baseline']:.2f} of the baseline's speed."


def _hostile(run: Run) -> Rows:
    parts = run["parts"]
    kill, overload, soak = parts["kill"], parts["overload"], parts["soak"]
    beside = parts["livez"]["beside"].values()
    slowest, before = max((row["p99_ms"], row["before"]["p99_ms"]) for row in beside)
    lost = f"{kill['lost']} jobs lost, {kill['pages_missing']} pages missing"
    refused = f"{overload['answers'].get('429', 0):,} refused"
    return [
        ["what is done", "what comes of it"],
        ["connections held, bytes sent one by one", f"`/livez` p99 {slowest} ms at most, {before} before"],
        [
            f"{parts['mutations']['documents']} documents with errors",
            f"{parts['mutations']['defects']} defects",
        ],
        [
            f"{len(parts['bombs']['files'])} files that unpack to far more",
            f"{parts['bombs']['defects']} defects",
        ],
        [f"{kill['kills']} times SIGKILL to all processes", f"{lost}, {kill['pages_read_twice']} read twice"],
        [
            "ten times the jobs that can be read",
            f"{refused}, of {overload['accepted']} others {overload['lost']} lost",
        ],
        [f"{soak['pages']:,} pages", f"worker's memory {soak['memory']['worker']['growth']:+.1%}"],
    ]


def _soak(run: Run) -> Rows:
    soak = run["parts"]["soak"]
    return [
        ["process", f"MiB after {soak['first_pages']} pages", f"after {soak['pages']:,}", "growth"],
        *(
            [name, f"{part['first_mib']:.0f}", f"{part['last_mib']:.0f}", f"{part['growth']:+.1%}"]
            for name, part in soak["memory"].items()
        ),
    ]


def _soak_negative(run: Run) -> Iterator[str]:
    growth = run["parts"]["soak"]["memory"]["worker"]["growth"]
    if growth > 0.05:
        yield f"the worker grew by {growth:.1%}; 5 % is aimed at."


GROUPS: dict[str, dict[str, Section]] = {
    "Reading": {
        "accuracy.json": Section(
            title="Character error of the pocket checkpoint",
            about=(
                "Edits a character, plain prompt, pruned as the service prunes. Rendered pages have"
                " unseen texts in unseen fonts; the other pages are real documents."
            ),
            command="`python -m benchmarks.accuracy --peers --documents FOLDER --curve {out}`",
            baseline=(
                "the same pages unpruned; {peers[versions][tesseract]} and {peers[versions][rapidocr]} on"
                " their defaults, on pages that have not changed since"
                " ({peers[hardware]}, commit {peers[commit]}, {peers[measured_at]:.10})."
            ),
            rows=_accuracy,
            negative=_accuracy_negative,
        ),
        "structure.json": Section(
            title="Structure of rendered pages",
            about=(
                "The checkpoint's own prompt, which asks for Markdown. Right: a page whose headings,"
                " lists or tables are all as printed."
            ),
            command=(
                "`python -m benchmarks.accuracy --kinds clean degraded --pages 60 --prompts markdown"
                " --pruning dynamic {out}`"
            ),
            baseline=(
                "the truth of the renderer, 100 %; [without misread"
                " letters](#layout-without-misread-letters)."
            ),
            rows=_structure,
        ),
        "browser.json": Section(
            title="Structure of printed HTML",
            about="HTML of many styles, printed by WeasyPrint in fonts that training never used.",
            command="`python -m benchmarks.accuracy --kinds browser --pages 60 --pruning dynamic {out}`",
            baseline="the truth of the renderer, 100 %.",
            rows=_structure,
        ),
        "signs.json": Section(
            title="Digits and signs",
            about="Pages with far more signs than a book; how often each is misread, white space left out.",
            command="`python -m benchmarks.signs --before FOLDER --pages 5 {out}`",
            baseline=(
                "the checkpoint before it was trained further on signs, on the same pages in the same run."
            ),
            rows=_signs,
        ),
        "confidence.json": Section(
            title="Risk against what is missing",
            about=(
                "Real pages, also turned, blurred, made smaller and dirtied; held-out half. Bad: more"
                " than 30 % of the words are missing."
            ),
            command="`python -m benchmarks.confidence --documents FOLDER {out} --write`",
            baseline="a risk that says nothing would have as many bad pages in each band.",
            rows=_confidence,
            negative=_confidence_negative,
        ),
        "text_layer.json": Section(
            title="Blank pages, small print, second readings",
            about=(
                "Drawn pages as PDF with a text layer, and real ones. As Large and Gundam show it: pages with"
                " the pixels of these modes of DeepSeek-OCR, read by the pocket checkpoint, for how much is"
                " legible. Times are of one processor thread."
            ),
            command=("`python -m benchmarks.text_layer --documents FOLDER {out}`"),
            baseline="the same pages in turn, with router and second reading switched off.",
            rows=_text_layer,
            negative=_text_layer_negative,
        ),
        "evaluation.json": Section(
            title="Other tools on real pages",
            about=(
                "{pages} pages of OmniDocBench, most of them Chinese, scored by `rtprune eval`; the"
                " pocket checkpoint reads English print alone. All metrics:"
                " [evaluation](evaluation.md#on-real-pages)."
            ),
            command=(
                "`python -m benchmarks.evaluation --documents FOLDER --tool NAME=FOLDER"
                " --tesseract eng+chi_sim --rapidocr-python PYTHON {out}`"
            ),
            baseline="the other tools' output on the same pages; the Markdown that comes with the pages.",
            rows=_evaluation,
            negative=_evaluation_negative,
        ),
        "drafts.json": Section(
            title="Drafts from text layers",
            about=(
                "The same pages with and without drafts, in turns; seconds of one processor thread for whole"
                " pages, medians of {rounds} rounds. Steps: those in which a page's views are read"
                " together, and those of each view for itself. Without a layer there are no drafts: how far"
                " that row is from 1 is how much the others may be."
            ),
            command="`OMP_NUM_THREADS=1 python -m benchmarks.drafts --documents FOLDER {out}`",
            baseline="the same pages without drafts.",
            rows=_drafts,
            negative=_drafts_negative,
        ),
        "layout.json": Section(
            title="Layout without misread letters",
            about="Every line is read without error: what is lost by cutting a page and joining it again.",
            command="`python -m benchmarks.layout --documents FOLDER {out}`",
            baseline="0 errors; for documents, poppler's words and order.",
            rows=_layout,
        ),
        "layout-ablation.json": Section(
            title="Layout with fewer rules",
            about=(
                "Mean error of pages, every line read without error, when rules that change no real page"
                " are taken out."
            ),
            command=(
                "No command repeats it: rules were replaced one by one by hand, and the pages measured with"
                " `benchmarks/layout/oracle.py`."
            ),
            baseline="the layout with all rules (5,456 lines of code; 3,650 after).",
            rows=_ablation,
            negative=_ablation_negative,
            recorded={"hardware": "Nothing is timed", "commit": "24e5815", "measured_at": "2026-11-29"},
        ),
    },
    "Pruning": {
        "pruning-curve.json": Section(
            title="Error against what is kept",
            about=(
                "Clean rendered pages, plain prompt, one attempt a page. This checkpoint was trained in"
                " part through RTPrune."
            ),
            command="`python -m benchmarks.accuracy --curve-only --curve-pages 8 --threads 1 {out}`",
            baseline="nothing pruned (first row); random tokens at the same count.",
            rows=_curve,
            negative=_curve_negative,
        ),
        "pruners.json": Section(
            title="Pruners at equal counts",
            about=(
                "Every method keeps as many tokens of a page as RTPrune does. {pages} drawn pages, one"
                " attempt a page. Best first."
            ),
            command="`python -m benchmarks.pruners {out}`",
            baseline="`none` and `random`.",
            rows=_pruners,
            negative=_pruners_negative,
        ),
        "scorer.json": Section(
            title="A trained scorer",
            about=(
                "A head that was trained on the encoder's features, beside what needs no training; {pages}"
                " drawn pages it never saw, at RTPrune's own count and at 60 % of it, one attempt a page."
            ),
            command=(
                "`python -m benchmarks.pruners.scorer --train --pages 0 {out}`, then without `--train` and"
                " `--pages 0`"
            ),
            baseline="`none`, `norm` and `ink`.",
            rows=_scorer,
            negative=_scorer_negative,
        ),
        "fixation.json": Section(
            title="Attending to few patch tokens",
            about=(
                "`fixation` on rendered pages ({kind}, in DejaVu), one attempt a page. Covered: the share of"
                " plain attention that falls on what is attended to, in layers and at steps that do not"
                " attend to everything. What it could save on a GPU: [engine](engine.md#fixation)."
            ),
            command="`python -m benchmarks.fixation {out}`",
            baseline="plain attention.",
            rows=_fixation,
            negative=_fixation_negative,
        ),
        "restoring.json": Section(
            title="Risky pages read again unpruned",
            about=(
                "Drawn pages: text, dense tables, small print, a scanner's damage."
                " All thresholds and kinds: [pruning](pruning.md#reading-risky-pages-again)."
            ),
            command="`python -m benchmarks.restoring {out} --write`",
            baseline="the same pages never pruned (`none`), and always pruned.",
            rows=_restoring,
            negative=_restoring_negative,
        ),
        "prune-cpu.json": Section(
            title="Time of pruning, CPU",
            about="A Large page: 421 tokens of 1,280 dimensions, density to fold.",
            command="`python -m benchmarks.prune --threads 1 --repeats 7 {out}`",
            baseline="the way of the released code, written from its description, in turn with ours.",
            rows=_prune,
        ),
        "prune-h200.json": Section(
            title="Time of pruning, GPU",
            about="The same on a GPU, float32.",
            command="`python -m benchmarks.prune --device cuda --repeats 7 {out}`",
            baseline="the way of the released code, as above.",
            rows=_prune,
        ),
    },
    "Speed": {
        "engine-cpu.json": Section(
            title="The engine, CPU",
            about=(
                "The pocket checkpoint, {pages} pages of 20 to 400 tokens; {pages_equal_to_generate} have"
                " the tokens of `generate()`."
            ),
            command="`OMP_NUM_THREADS=1 python -m benchmarks.engine --pages 96 {out}`",
            baseline="transformers' `generate()`, in turn with the engine.",
            rows=_engine_cpu,
        ),
        "engine-h200.json": Section(
            title="The engine, GPU",
            about=(
                "The full-size architecture with random weights, bfloat16, 1,000 output tokens a page."
                " All rows: [engine](engine.md#figures)."
            ),
            command="`python -m benchmarks.engine --full-size {out}`",
            baseline="the card's physical limit, 790 TFLOP/s and 4.3 TB/s.",
            rows=_engine_gpu,
        ),
        "pages-cpu.json": Section(
            title="Pages of A4 through the service",
            about="The pocket checkpoint; each page is a request of its own.",
            command="`python -m benchmarks.pages --rounds 5 {out}`",
            baseline="the same pages one after another.",
            rows=_pages,
        ),
        "service-cpu.json": Section(
            title="What the service adds to the reader",
            about="Blank pages, so that there is little beside the overhead: HTTP, database, queue.",
            command=(
                "`python -m benchmarks.service --rounds 3 --database-url URL` and"
                " `python -m benchmarks.service --rounds 3 --reader model --side-px 256 --pages 200`"
            ),
            baseline="the same pages through rasterizers and reader alone, in one process.",
            rows=_service,
        ),
    },
    "Under load": {
        "fairness-cpu.json": Section(
            title="A page beside a large document",
            about="The pocket checkpoint on SQLite; a document of {pages} pages; medians.",
            command="`python -m benchmarks.fairness --baseline f50cf26 {out}`",
            baseline="commit {baseline_commit}: 64 pages in flight, no places kept.",
            rows=_fairness,
            negative=_fairness_negative,
        ),
        "hostile-cpu.json": Section(
            title="What strangers can do",
            about="The fake reader. All parts: [reliability](RELIABILITY.md#figures).",
            command="`python -m benchmarks.hostile {out}`",
            baseline="`/livez` just before the harm; nothing lost, no defect.",
            rows=_hostile,
        ),
        "soak-pocket-cpu.json": Section(
            title="Memory over 3,000 pages",
            about="Pages of three lines through the pocket checkpoint.",
            command="`python -m benchmarks.hostile --part soak --reader pocket {out}`",
            baseline="the memory after the first 300 pages.",
            rows=_soak,
            negative=_soak_negative,
        ),
    },
}
"""Sections of the page by heading and file name. Every file in benchmarks/results must have one."""
