/** What a page cost, as two small bar charts that are tables for who does not see them. */

import { count, duration, el } from "./dom.js";

const TOKENS = [
  ["visual", "Visual tokens"],
  ["kept", "Kept"],
  ["output", "Written"],
];
const STAGES = ["rasterize", "preprocess", "encode", "prune", "prefill", "decode"];

/** The charts of one page. */
export function charts(page) {
  const tokens = TOKENS.map(([name, label]) => [label, page.tokens[name], count(page.tokens[name]), name]);
  const times = STAGES.map((stage) => [
    stage[0].toUpperCase() + stage.slice(1),
    page.timing_ms[stage] ?? 0,
    duration(page.timing_ms[stage] ?? 0),
    stage,
  ]);
  const waited = page.timing_ms.queue ? `, ${duration(page.timing_ms.queue)} of it waiting its turn` : "";
  return el(
    "div",
    { class: "charts" },
    chart("Tokens", tokens),
    chart("Time by stage", times),
    el(
      "p",
      { class: "note" },
      `${duration(page.timing_ms.total ?? 0)} in all${waited}. Work that pages share is divided among them.`,
    ),
  );
}

function chart(title, rows) {
  const most = Math.max(...rows.map(([, value]) => value), 1e-9);
  return el(
    "table",
    { class: "chart" },
    el("caption", {}, title),
    el(
      "tbody",
      {},
      rows.map(([label, value, shown, name]) => {
        const bar = el("span", { class: `bar of-${name}` });
        bar.style.width = `${(value / most) * 100}%`;
        return el(
          "tr",
          {},
          el("th", { scope: "row" }, label),
          el("td", { class: "track" }, bar),
          el("td", { class: "value" }, shown),
        );
      }),
    ),
  );
}
