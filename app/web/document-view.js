/** A document: how far it is, what to do with it, and its pages as they come. */

import * as api from "./api.js";
import { announce, count, duration, el, percent, plural } from "./dom.js";
import { PageView } from "./page-view.js";

const NEAR = "120% 0px"; // how far from what is seen a page's image is held, in screens
const FORMATS = [
  ["markdown", "Markdown", "md", true],
  ["text", "Plain text", "txt", true],
  ["html", "HTML", "html", true],
  ["json", "JSON", "json", true],
  ["docling", "DoclingDocument", "docling.json", true],
  ["doctags", "DocTags", "doctags", true],
  ["zip", "ZIP with pictures", "zip", false],
  ["pdf", "Searchable PDF", "pdf", false],
];
const SAID = {
  waiting: "Waiting to be sent",
  sending: "Sending",
  queued: "In the queue",
  running: "Reading",
  succeeded: "Finished",
  partial: "Finished in part",
  failed: "Failed",
  cancelled: "Cancelled",
};

export class DocumentView {
  constructor(job, { onCancel, onAgain, modes, settings }) {
    this.job = job;
    this.settings = settings;
    this.views = new Map();
    this.leaving = new AbortController();
    const { signal } = this.leaving;
    this.title = el("h2", { tabindex: "-1" }, job.name);
    this.asked = el("span", { class: "asked" }, job.asked);
    this.status = el("span", { class: "status" });
    this.progress = el("progress", { "aria-label": "Pages read", max: "1", value: "0" });
    this.summary = el("dl", { class: "summary" });
    this.error = el("p", { class: "notices is-error", role: "alert", hidden: true });
    this.cancel = el("button", { type: "button", onclick: () => onCancel() }, "Cancel");
    this.actions = el("div", { class: "actions" }, this.exporting(), this.cancel);
    this.toggles = el(
      "div",
      { class: "toggles", role: "group", "aria-label": "Show" },
      this.toggle("boxes", "Blocks"),
      this.toggle("tokens", "Patch tokens"),
      this.toggle("images", "Page images"),
    );
    this.again = againForm(job, modes, onAgain);
    this.pages = el("div", { class: "pages" });
    this.waiting = el("p", { class: "coming" }, "Pages appear here as they are read.");
    this.node = el(
      "article",
      { class: "document", "aria-label": job.name },
      el(
        "header",
        { class: "document-head" },
        el("div", { class: "document-title" }, this.title, this.asked, this.status),
        this.progress,
        this.actions,
      ),
      el("div", { class: "document-bar" }, this.summary, this.toggles),
      this.again,
      this.error,
      this.waiting,
      this.pages,
    );
    this.near = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) target.pageView.near(isIntersecting);
      },
      { rootMargin: NEAR },
    );
    job.addEventListener("change", () => this.update(), { signal });
    job.addEventListener("page", ({ detail }) => this.add(detail), { signal });
    for (const index of [...job.pages.keys()].sort((a, b) => a - b)) this.add(job.pages.get(index));
    this.apply();
    this.update();
  }

  /** Let go of everything that is held for it. */
  close() {
    this.leaving.abort(new DOMException("left", "AbortError"));
    this.near.disconnect();
    for (const view of this.views.values()) view.near(false);
  }

  toggle(name, label) {
    const input = el("input", {
      type: "checkbox",
      checked: this.settings[name],
      onchange: () => {
        this.settings[name] = input.checked;
        this.apply();
      },
    });
    return el("label", {}, input, label);
  }

  apply() {
    for (const name of ["boxes", "tokens", "images"])
      this.node.classList.toggle(`with-${name}`, this.settings[name]);
    for (const view of this.views.values()) view.showTokens(this.settings.tokens);
  }

  add(page) {
    if (this.views.has(page.index)) return;
    const view = new PageView(this.job, page);
    const following = [...this.views.keys()].filter((index) => index > page.index);
    const before = following.length ? this.views.get(Math.min(...following)).node : null;
    this.views.set(page.index, view);
    this.pages.insertBefore(view.node, before);
    view.showTokens(this.settings.tokens);
    this.near.observe(view.node);
    if (this.job.isOpen)
      announce(`${this.job.name}: page ${page.index + 1} is read, ${this.views.size} of ${this.job.total}`);
    this.update();
  }

  update() {
    const { job } = this;
    const wasOpen = this.isOpen;
    this.isOpen = job.isOpen;
    this.status.textContent = statusOf(job);
    this.status.className = `status is-${job.status}`;
    this.progress.hidden = !job.isOpen;
    if (job.status === "sending") this.progress.value = job.sent;
    else if (job.status === "running" && job.total) this.progress.value = job.done / job.total;
    else this.progress.removeAttribute("value");
    this.cancel.hidden = !job.isOpen;
    this.export.hidden = !["succeeded", "partial"].includes(job.status) || job.isGone;
    this.error.hidden = !job.error;
    this.error.textContent = job.error;
    this.again.hidden = job.isOpen;
    this.waiting.hidden = !job.isOpen || this.views.size > 0;
    this.summary.replaceChildren(
      ...summaryOf(
        job,
        [...this.views.values()].map((view) => view.page),
      ),
    );
    this.toggles.hidden = !this.views.size;
    if (wasOpen && !job.isOpen) announce(`${job.name}: ${statusOf(job)}`);
  }

  exporting() {
    const format = el(
      "select",
      { "aria-label": "Format" },
      FORMATS.map(([name, label]) => el("option", { value: name }, label)),
    );
    const copy = el(
      "button",
      { type: "button", onclick: () => this.deliver(format.value, "copy", copy) },
      "Copy",
    );
    const download = el(
      "button",
      { type: "button", onclick: () => this.deliver(format.value, "download", download) },
      "Download",
    );
    format.addEventListener(
      "change",
      () => (copy.disabled = !FORMATS.find(([name]) => name === format.value)[3]),
    );
    this.export = el("div", { class: "export" }, format, copy, download);
    return this.export;
  }

  async deliver(format, how, button) {
    const label = button.textContent;
    button.disabled = true;
    try {
      const made = await api.result(this.job.id, format);
      if (how === "copy") await copyText(await made.text());
      else save(made, nameFor(this.job.name, FORMATS.find(([name]) => name === format)[2]));
      button.textContent = how === "copy" ? "Copied" : "Saved";
      announce(`${this.job.name} ${how === "copy" ? "copied" : "downloaded"} as ${format}`);
    } catch (error) {
      this.error.hidden = false;
      this.error.textContent = error.message;
    } finally {
      button.disabled = false;
      setTimeout(() => (button.textContent = label), 1500);
    }
  }
}

function statusOf(job) {
  const said = SAID[job.status] ?? job.status;
  if (job.note) return job.note;
  if (job.status === "sending") return `${said}, ${percent(job.sent)}`;
  if (job.status === "queued" && job.position) return `${said}, ${job.position} before it`;
  if (job.status === "running") return `${said}, ${count(job.done)} of ${plural(job.total, "page")}`;
  return said;
}

/** What the pages that are here come to. */
function summaryOf(job, pages) {
  const read = pages.filter((page) => page.tokens);
  const sum = (name) => read.reduce((total, page) => total + page.tokens[name], 0);
  const warned = pages.filter((page) => page.warnings.length || page.error).length;
  const item = (label, value) => el("div", {}, el("dt", {}, label), el("dd", {}, value));
  if (!pages.length) return [];
  return [
    item("Pages", job.isOpen ? `${count(pages.length)} of ${count(job.total)}` : count(pages.length)),
    item("Tokens kept", `${count(sum("kept"))} of ${count(sum("visual"))}`),
    item("Written", `${count(sum("output"))} tokens`),
    job.runningS !== null && !job.isOpen ? item("Time", duration(job.runningS * 1000)) : null,
    warned ? item("Warnings", `on ${plural(warned, "page")}`) : null,
  ].filter(Boolean);
}

/** The same document with other options. The file is at hand only in the tab that it was added in. */
function againForm(job, modes, onAgain) {
  const fields = optionFields(modes, job.options);
  const button = el("button", { type: "submit" }, "Read again");
  const form = el("form", { class: "options" }, fields, button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    onAgain(job.file, optionsOf(form));
  });
  const hint = el(
    "p",
    { class: "note" },
    "To read it with other options, add the file again: this tab does not have it any more.",
  );
  return el(
    "details",
    { class: "again" },
    el("summary", {}, "Read again with other options"),
    job.file ? form : hint,
  );
}

/** Fields for how a document is read, the same for new ones and for trying again. */
export function optionFields(modes, chosen = {}) {
  const mode = el(
    "select",
    { name: "mode" },
    el("option", { value: "" }, "As the model prefers"),
    modes.map((name) => el("option", { value: name, selected: name === chosen.mode }, name)),
  );
  const start = chosen.prune === "none" ? "none" : chosen.keep_ratio ? "fixed" : "auto";
  const shown = el("output", {}, percent(Number(chosen.keep_ratio ?? 0.8)));
  const ratio = el("input", {
    name: "keep_ratio",
    type: "range",
    min: "0.05",
    max: "1",
    step: "0.05",
    value: chosen.keep_ratio ?? "0.8",
    "aria-label": "Share of patch tokens to keep",
    disabled: start !== "fixed",
    oninput: () => (shown.textContent = percent(Number(ratio.value))),
  });
  const pruning = el(
    "select",
    { name: "pruning", onchange: () => (ratio.disabled = pruning.value !== "fixed") },
    [
      ["auto", "As each page needs"],
      ["fixed", "A fixed share"],
      ["none", "Keep all"],
    ].map(([value, label]) => el("option", { value, selected: value === start }, label)),
  );
  const pages = el("input", {
    name: "pages",
    type: "text",
    placeholder: "all",
    value: chosen.pages ?? "",
    size: "8",
    pattern: "[0-9, \\-]*",
  });
  return [
    el("label", { class: "field" }, el("span", {}, "Tokens to keep"), pruning),
    el(
      "span",
      { class: "field ratio" },
      el("span", { "aria-hidden": "true" }, "Share"),
      el("span", { class: "range" }, ratio, shown),
    ),
    el("label", { class: "field" }, el("span", {}, "Mode"), mode),
    el("label", { class: "field" }, el("span", {}, "Pages"), pages),
  ];
}

/** What a form of `optionFields` asks for, without what is left to the service. */
export function optionsOf(form) {
  const values = new FormData(form);
  const options = { mode: values.get("mode"), pages: values.get("pages")?.trim() };
  if (values.get("pruning") === "none") options.prune = "none";
  if (values.get("pruning") === "fixed") options.keep_ratio = values.get("keep_ratio");
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value));
}

const nameFor = (name, ending) =>
  `${name.replace(/\.[A-Za-z0-9]{1,5}$/, "").replace(/[^\p{L}\p{N} ._-]/gu, "_") || "document"}.${ending}`;

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // without https there is no clipboard to write to, but what is selected can be copied
  const area = el("textarea", { class: "visually-hidden", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  if (!isCopied) throw new Error("The browser does not let this page copy; download it instead");
}
