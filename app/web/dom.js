/** Elements made from data. Text is always a text node: nothing here reads markup. */

const SVG = "http://www.w3.org/2000/svg";
const MATH = "http://www.w3.org/1998/Math/MathML";

/** Make an element: `el("p", { class: "note", onclick: act }, "text", child)`. False and null are left out. */
export const el = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

/** The same for SVG. */
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** The same for MathML. */
export const math = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(MATH, name), attributes, children);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A number for reading: 12,345. */
export const count = (number) => number.toLocaleString("en");

/** "1 page", "2 pages". */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Milliseconds for reading: "640 ms", "1.8 s", "2 min 5 s". */
export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** A share for reading: "70 %". */
export const percent = (share) => `${Math.round(share * 100)} %`;

/** Give what a person may hear, without moving their focus. The last thing said within a second wins. */
let saying = 0;
export function announce(text) {
  clearTimeout(saying);
  saying = setTimeout(() => (document.getElementById("live").textContent = text), 700);
}

export const wait = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
