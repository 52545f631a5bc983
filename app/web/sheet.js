/** The image of a page and what is drawn over it: the boxes of its blocks, and its patch tokens. */

import * as api from "./api.js";
import { count, el, percent, svg } from "./dom.js";

const EDGE = 999; // boxes are in thousandths of the page, 0 to 999
const STATES = ["kept", "folded", "dropped"];

/** A page's sheet. `onBlock(number)` is called with the block under the pointer, null for none. */
export class Sheet {
  constructor(job, page, { onBlock, onChoose }) {
    this.job = job;
    this.page = page;
    this.image = el("img", { alt: `Page ${page.index + 1} as it was read`, hidden: true, decoding: "async" });
    this.boxes = page.blocks.map((block, number) => box(block, number));
    this.layer = svg(
      "svg",
      { viewBox: `0 0 ${EDGE} ${EDGE}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "boxes" },
      this.boxes,
    );
    this.layer.addEventListener("pointermove", (event) => {
      onBlock(numberOf(event.target));
      this.tokens?.point(this.placeOf(event));
    });
    this.layer.addEventListener("pointerleave", () => {
      onBlock(null);
      this.tokens?.point(null);
    });
    this.layer.addEventListener("click", (event) => onChoose(numberOf(event.target)));
    this.tokens = null;
    this.missing = el("p", { class: "missing", hidden: true }, "No image of this page is kept");
    this.node = el("div", { class: "sheet" }, this.image, this.missing, this.layer);
    this.node.style.aspectRatio = `${page.width} / ${page.height}`;
  }

  /** Get the image, when the page comes near; let it go when it is far. */
  async show(isNear) {
    if (isNear === Boolean(this.loading)) return;
    if (!isNear) {
      this.loading.abort();
      this.loading = null;
      this.image.hidden = true;
      this.image.removeAttribute("src");
      if (this.address) URL.revokeObjectURL(this.address);
      this.address = null;
      this.drawTokens();
      return;
    }
    this.loading = new AbortController();
    this.drawTokens();
    if (this.isMissing) return;
    const { signal } = this.loading;
    try {
      const image = await api.pageImage(this.job.id, this.page.index, signal);
      if (signal.aborted) return;
      this.address = URL.createObjectURL(image);
      this.image.src = this.address;
      this.image.hidden = false;
    } catch (error) {
      if (signal.aborted) return;
      this.isMissing = error.status === 404 || error.status === 410;
      this.missing.hidden = false;
    }
  }

  highlight(number) {
    for (const [index, each] of this.boxes.entries()) each.classList.toggle("is-active", index === number);
  }

  showTokens(isShown) {
    this.wantsTokens = isShown;
    this.drawTokens();
  }

  /** Draw patch tokens where they are seen, and nowhere else: a page may have thousands. */
  drawTokens() {
    const isDrawn = Boolean(this.wantsTokens && this.loading && this.page.views);
    if (isDrawn === Boolean(this.tokens)) return;
    this.tokens?.node.remove();
    this.tokens = isDrawn ? new Tokens(this.page.views, `tokens-${this.page.index}`) : null;
    if (this.tokens) this.layer.before(this.tokens.node);
  }

  /** Where an event is, in thousandths of the page. */
  placeOf({ clientX, clientY }) {
    const { left, top, width, height } = this.layer.getBoundingClientRect();
    return [((clientX - left) / width) * EDGE, ((clientY - top) / height) * EDGE];
  }
}

const numberOf = (target) => (target.dataset?.block === undefined ? null : Number(target.dataset.block));

function box({ bbox: [x1, y1, x2, y2], type }, number) {
  const shape = svg("rect", {
    x: x1,
    y: y1,
    width: Math.max(1, x2 - x1),
    height: Math.max(1, y2 - y1),
    class: `box type-${/^\w{1,30}$/.test(type) ? type : "other"}`,
  });
  shape.dataset.block = number;
  return shape;
}

/** Patch tokens as one path for each state, cut to what of the page their grid shows. */
class Tokens {
  constructor(views, id) {
    this.patches = views.flatMap((view, number) => drawnPatches(view, number));
    const hatch = svg(
      "pattern",
      {
        id: `${id}-hatch`,
        width: 7,
        height: 7,
        patternUnits: "userSpaceOnUse",
        patternTransform: "rotate(45)",
      },
      svg("rect", { width: 7, height: 7, class: "hatch-ground" }),
      svg("line", { y2: 7, class: "hatch-line" }),
    );
    const shapes = STATES.map((state) =>
      svg("path", {
        d: outline(this.patches.filter((patch) => patch.state === state)),
        class: `patch ${state}`,
        fill: state === "folded" ? `url(#${id}-hatch)` : null,
      }),
    );
    this.links = svg("path", { class: "links" });
    this.node = svg(
      "svg",
      { viewBox: `0 0 ${EDGE} ${EDGE}`, preserveAspectRatio: "none", class: "tokens", "aria-hidden": "true" },
      svg("defs", {}, hatch),
      shapes,
      this.links,
    );
  }

  /** Show where the patch at a place went, or which ones went into it. */
  point(place) {
    const at =
      place &&
      this.patches.find(
        ({ corners: [left, top, right, bottom] }) =>
          place[0] >= left && place[0] < right && place[1] >= top && place[1] < bottom,
      );
    if (at === this.pointed) return;
    this.pointed = at;
    const others = at ? this.patches.filter((patch) => patch.key === at.into || patch.into === at.key) : [];
    this.links.setAttribute("d", others.map((patch) => `M${centre(at)}L${centre(patch)}`).join(""));
  }
}

function drawnPatches(view, number) {
  if (!view.bbox) return [];
  const partners = new Map(view.folded.map(([patch, other, into]) => [patch, `${other} ${into}`]));
  return statesOf(view)
    .map((state, patch) => ({
      state,
      key: `${number} ${patch}`,
      into: partners.get(patch) ?? null,
      corners: corners(view, patch),
    }))
    .filter(({ corners }) => isSeen(corners));
}

const isSeen = ([left, top, right, bottom]) => right - left >= 1 && bottom - top >= 1;
const outline = (patches) =>
  patches
    .map(
      ({ corners: [left, top, right, bottom] }) =>
        `M${left.toFixed(1)} ${top.toFixed(1)}H${right.toFixed(1)}V${bottom.toFixed(1)}H${left.toFixed(1)}Z`,
    )
    .join("");
const centre = ({ corners: [left, top, right, bottom] }) =>
  `${((left + right) / 2).toFixed(1)} ${((top + bottom) / 2).toFixed(1)}`;

function statesOf(view) {
  const states = new Array(view.columns * view.rows).fill("dropped");
  for (const patch of view.kept) states[patch] = "kept";
  for (const [patch] of view.folded) states[patch] = "folded";
  return states;
}

function corners({ bbox, columns, rows, shown }, patch) {
  const width = (bbox[2] - bbox[0]) / columns;
  const height = (bbox[3] - bbox[1]) / rows;
  const left = bbox[0] + (patch % columns) * width;
  const top = bbox[1] + Math.floor(patch / columns) * height;
  return [
    Math.max(left, shown[0]),
    Math.max(top, shown[1]),
    Math.min(left + width, shown[2]),
    Math.min(top + height, shown[3]),
  ];
}

/** What the overlay's colours mean, with numbers. Patches of padding are no part of the page, and not drawn. */
export function legend(page) {
  const totals = { kept: 0, folded: 0, dropped: 0 };
  let padding = 0;
  for (const view of page.views) {
    statesOf(view).forEach((state, patch) => {
      totals[state] += 1;
      if (!view.bbox || !isSeen(corners(view, patch))) padding += 1;
    });
  }
  const all = totals.kept + totals.folded + totals.dropped;
  const items = STATES.map((state) =>
    el(
      "li",
      {},
      el("span", { class: `swatch ${state}` }),
      `${state} ${count(totals[state])}`,
      el("small", {}, ` ${percent(totals[state] / (all || 1))}`),
    ),
  );
  return el(
    "ul",
    { class: "legend" },
    items,
    padding ? el("li", {}, el("small", {}, `${count(padding)} in padding, not drawn`)) : null,
  );
}
