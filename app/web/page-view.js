/** One page: its sheet beside its text, what was doubtful, and what it cost. */

import * as api from "./api.js";
import { charts } from "./chart.js";
import { count, duration, el, percent } from "./dom.js";
import { partsOf, render } from "./markdown.js";
import { Sheet, legend } from "./sheet.js";

const DOUBTFUL = 0.5; // of which the service warns
const UNSURE = 0.2;
const SIDEWAYS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
const HEADING_IDS = "page-heading-";

export class PageView {
  constructor(job, page) {
    this.job = job;
    this.page = page;
    const id = `${HEADING_IDS}${page.index}`;
    this.text = el("div", { class: "text" });
    this.sheet =
      page.width > 0
        ? new Sheet(job, page, {
            onBlock: (number) => this.highlight(number),
            onChoose: (number) => this.choose(number),
          })
        : null;
    this.node = el(
      "section",
      { class: "page", "aria-labelledby": id },
      el(
        "header",
        { class: "page-head" },
        el("h3", { id, tabindex: "-1" }, `Page ${page.index + 1}`),
        facts(page),
      ),
      notices(page),
      el(
        "div",
        { class: "page-body" },
        this.sheet &&
          el(
            "div",
            { class: "page-left" },
            this.sheet.node,
            page.views && el("div", { class: "legend-place" }, legend(page)),
          ),
        el("div", { class: "page-right" }, this.text, page.tokens && cost(page)),
      ),
    );
    this.node.pageView = this;
    this.parts = new Map();
    this.figures = [];
    this.fill();
  }

  /** The text, in parts that can be pointed at. */
  fill() {
    const { markdown, blocks } = this.page;
    const parts = partsOf(markdown, blocks);
    if (!parts.length)
      this.text.append(
        el(
          "p",
          { class: "note" },
          this.page.error ? "This page was not read." : "No text was found on this page.",
        ),
      );
    for (const { text, block } of parts) {
      const part = el(
        "div",
        { class: "part" },
        render(text, (name, label) => this.figure(name, label)),
      );
      if (block !== null) this.link(part, block);
      this.text.append(part);
    }
    this.text.addEventListener("keydown", (event) => this.move(event));
  }

  link(part, number) {
    part.classList.add("is-linked");
    part.dataset.block = number;
    part.tabIndex = this.parts.size ? -1 : 0; // one stop for the tab key; arrows go on from there
    part.setAttribute("role", "group");
    part.setAttribute(
      "aria-label",
      `${this.page.blocks[number].type.replaceAll("_", " ")}, block ${number + 1}`,
    );
    part.addEventListener("pointerenter", () => this.highlight(number));
    part.addEventListener("pointerleave", () => this.highlight(null));
    part.addEventListener("focusin", () => this.highlight(number));
    part.addEventListener("focusout", () => queueMicrotask(() => this.highlight(null)));
    this.parts.set(number, part);
  }

  /** Show which box a part of the text is of: the one that is pointed at, else the one with the focus. */
  highlight(pointed) {
    const focused = document.activeElement?.closest(".is-linked");
    const number = pointed ?? (focused && this.text.contains(focused) ? Number(focused.dataset.block) : null);
    this.sheet?.highlight(number);
    for (const [index, part] of this.parts) part.classList.toggle("is-active", index === number);
  }

  /** Go to the text of a box. */
  choose(number) {
    const part = this.parts.get(number);
    if (!part) return;
    this.stop(part);
    part.focus({ preventScroll: true });
    part.scrollIntoView({ block: "nearest" });
  }

  move(event) {
    const step = SIDEWAYS[event.key];
    if (!step || !event.target.classList.contains("is-linked")) return;
    const parts = [...this.parts.values()];
    const next = parts[parts.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    this.stop(next);
    next.focus();
  }

  stop(part) {
    for (const each of this.parts.values()) each.tabIndex = each === part ? 0 : -1;
  }

  /** A picture that was cut out of the page; it is fetched when it is near. */
  figure(name, label) {
    const image = el("img", { alt: label || "Picture", class: "figure" });
    this.figures.push({ name, image });
    return image;
  }

  /** Hold images while the page is near what is seen, and no longer. */
  near(isNear) {
    this.sheet?.show(isNear);
    for (const figure of this.figures) showFigure(this.job, figure, isNear);
  }

  showTokens(isShown) {
    this.sheet?.showTokens(isShown);
  }
}

async function showFigure(job, figure, isNear) {
  if (!isNear) {
    figure.image.removeAttribute("src");
    if (figure.address) URL.revokeObjectURL(figure.address);
    figure.address = null;
    return;
  }
  if (figure.address) return;
  figure.address = "";
  try {
    figure.address = URL.createObjectURL(await api.figure(job.id, figure.name));
    figure.image.src = figure.address;
  } catch {
    figure.image.replaceWith(document.createTextNode(`[${figure.image.alt}]`));
  }
}

/** One line about how the page was read. */
function facts(page) {
  if (!page.tokens) return el("p", { class: "facts" });
  const { visual, kept, retention } = page.tokens;
  return el(
    "p",
    { class: "facts" },
    el("span", {}, page.mode),
    el(
      "span",
      { title: "Visual tokens that were decoded, of all" },
      `${count(kept)} of ${count(visual)} tokens, ${percent(retention)}`,
    ),
    el("span", {}, duration(page.timing_ms.total ?? 0)),
    page.risk !== null && risk(page.risk),
    page.text_layer_recall !== null &&
      el(
        "span",
        { title: "Share of the words of the PDF's own text that were read" },
        `${percent(page.text_layer_recall)} of the text layer`,
      ),
  );
}

function risk(value) {
  const level = value > DOUBTFUL ? "high" : value > UNSURE ? "some" : "low";
  return el(
    "span",
    { class: `risk is-${level}`, title: "How likely the text is wrong in many places" },
    `${level} risk, ${percent(value)}`,
  );
}

/** Why the text may say less than the page. */
function notices(page) {
  const said = page.warnings.map(({ code, detail }) => ({ code, detail }));
  if (page.error) said.unshift({ code: page.error.code, detail: page.error.detail });
  if (!said.length) return null;
  return el(
    "ul",
    { class: `notices${page.error ? " is-error" : ""}`, "aria-label": "Warnings" },
    said.map(({ code, detail }) => el("li", {}, el("strong", {}, code.replaceAll("_", " ")), ` ${detail}`)),
  );
}

function cost(page) {
  return el(
    "details",
    { class: "cost", open: matchMedia("(min-width: 64rem)").matches },
    el("summary", {}, "What it cost"),
    charts(page),
  );
}
