/**
 * Markdown of a page -> DOM nodes. The text is a model's, and may be written by whoever made the document: no
 * text becomes markup, but for tables, which are parsed apart from the page and copied by a list of names.
 */

import { el } from "./dom.js";
import { mathNode } from "./math.js";

const TABLE_PARTS = new Set(["TABLE", "THEAD", "TBODY", "TR", "TD", "TH", "BR", "SUB", "SUP"]);
const MAX_SPAN = 200;
const MAX_REACH = 2000; // characters in which a mark must be closed: looking for its end costs no more than that
const MAX_MATH_LINES = 100;
const MAX_DEPTH = 8; // of lists, quotations and tables in each other; deeper ones are text
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:\s+(.*)|)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DELIMITERS = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MATH_STARTS = [
  ["\\[", "\\]"],
  ["$$", "$$"],
];

// Trusted Types: the one place where text may become markup, in a document that runs and loads nothing
const tables = globalThis.trustedTypes?.createPolicy("tables", { createHTML: (text) => text });

/** Render Markdown. `figure(name)` gives a node for an image that the service cut out of the page. */
export function render(text, figure = () => null) {
  return blocks(text.split("\n"), { figure, depth: 0 });
}

function blocks(lines, context) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const [node, next] = block(lines, at, context);
    if (node) nodes.push(node);
    at = next;
  }
  return nodes;
}

/** The block that begins at a line, and the line after it. */
function block(lines, at, context) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const deeper = { ...context, depth: context.depth + 1 };
  const isShallow = context.depth < MAX_DEPTH;
  let match = FENCE.exec(line);
  if (match) return fenced(lines, at, match);
  for (const [open, close] of MATH_STARTS) {
    if (line.trimStart().startsWith(open)) {
      const found = displayed(lines, at, open, close);
      if (found) return found;
    }
  }
  if (/^\s*<table[\s>]/i.test(line)) return tableOf(lines, at, context);
  if (/^\s*<!--/.test(line)) return [null, upTo(lines, at, "-->")];
  match = HEADING.exec(line);
  if (match) return [heading(match[1].length, line.slice(match[0].length), context), at + 1];
  if (RULE.test(line)) return [el("hr"), at + 1];
  if (isShallow && QUOTE.test(line)) {
    let end = at;
    while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || end > at)) end += 1;
    const inner = lines.slice(at, end).map((each) => QUOTE.exec(each)?.[1] ?? each);
    return [el("blockquote", {}, blocks(inner, deeper)), end];
  }
  if (isShallow && ITEM.test(line)) return listOf(lines, at, deeper);
  const below = lines[at + 1] ?? "";
  if (line.includes("|") && below.length < MAX_REACH && below.includes("-") && DELIMITERS.test(below)) {
    return piped(lines, at, context);
  }
  return paragraph(lines, at, context);
}

function paragraph(lines, at, context) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines[end])) end += 1;
  return [el("p", {}, inline(lines.slice(at, end).join("\n"), context)), end];
}

const interrupts = (line) =>
  FENCE.test(line) ||
  HEADING.test(line) ||
  QUOTE.test(line) ||
  RULE.test(line) ||
  ITEM.test(line) ||
  /^\s*(<table[\s>]|<!--|\\\[|\$\$)/i.test(line);

/** Headings of the document are below those of the page. */
function heading(level, text, context) {
  let words = text.trim();
  let end = words.length;
  while (words[end - 1] === "#") end -= 1;
  if (end < words.length && (end === 0 || /\s/.test(words[end - 1]))) words = words.slice(0, end).trim();
  return el(`h${Math.min(6, level + 3)}`, { class: `level-${level}` }, inline(words, context));
}

function fenced(lines, at, match) {
  const mark = match[1];
  let end = at + 1;
  const isClose = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  while (end < lines.length && !isClose(lines[end])) end += 1;
  const code = el("code", {}, lines.slice(at + 1, end).join("\n"));
  return [
    el("pre", { tabindex: "0", "aria-label": `Code ${match[2].trim()}`.trim(), role: "region" }, code),
    end + 1,
  ];
}

/** Math between delimiters, over several lines; `null` if it has no end. */
function displayed(lines, at, open, close) {
  const first = lines[at].trimStart().slice(open.length);
  const parts = [];
  const most = Math.min(lines.length, at + MAX_MATH_LINES);
  for (let end = at; end < most && (end === at || lines[end].trim()); end += 1) {
    const line = end === at ? first : lines[end];
    const stop = line.indexOf(close);
    if (stop < 0) {
      parts.push(line);
      continue;
    }
    if (line.slice(stop + close.length).trim()) return null;
    parts.push(line.slice(0, stop));
    return [el("div", { class: "display-math" }, mathNode(parts.join("\n"), true)), end + 1];
  }
  return null;
}

function upTo(lines, at, end) {
  while (at < lines.length && !lines[at].includes(end)) at += 1;
  return at + 1;
}

function listOf(lines, at, context) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark);
  const list = el(isOrdered ? "ol" : "ul");
  if (isOrdered && parseInt(mark, 10) !== 1) list.setAttribute("start", String(parseInt(mark, 10)));
  const belongs = (match) => match && match[1].length <= indent.length && /\d/.test(match[2]) === isOrdered;
  while (at < lines.length && belongs(ITEM.exec(lines[at]))) {
    const match = ITEM.exec(lines[at]);
    const width = match[1].length + match[2].length + 1;
    const inner = [match[3] ?? ""];
    at += 1;
    while (at < lines.length) {
      const line = lines[at];
      const isInside = line.startsWith(" ".repeat(Math.min(width, match[1].length + 2)));
      if (
        !line.trim()
          ? !/^ {2}/.test(lines[at + 1] ?? "")
          : !isInside && (interrupts(line) || !lines[at - 1].trim())
      )
        break;
      inner.push(line.slice(isInside ? Math.min(width, /^ */.exec(line)[0].length) : 0));
      at += 1;
    }
    const nodes = blocks(inner, context);
    const isTight = nodes[0]?.tagName === "P" && !inner.includes("");
    list.append(el("li", {}, isTight ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes));
    let next = at;
    while (next < lines.length && !lines[next].trim()) next += 1;
    if (next < lines.length && belongs(ITEM.exec(lines[next]))) at = next;
  }
  return [list, at];
}

function piped(lines, at, context) {
  const cells = (line) =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split(/(?<!\\)\|/)
      .map((cell) => cell.trim().replaceAll("\\|", "|"));
  const row = (line, name) =>
    el(
      "tr",
      {},
      cells(line).map((cell) => el(name, {}, inline(cell, context))),
    );
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const body = el(
    "tbody",
    {},
    lines.slice(at + 2, end).map((line) => row(line, "td")),
  );
  return [scrolling(el("table", {}, el("thead", {}, row(lines[at], "th")), body)), end];
}

/** A table of HTML, up to where it ends; what follows on its last line is a paragraph of its own. */
function tableOf(lines, at, context) {
  let depth = 0;
  let end = at;
  for (; end < lines.length; end += 1) {
    depth += lines[end].match(/<table[\s>]/gi)?.length ?? 0;
    depth -= lines[end].match(/<\/table>/gi)?.length ?? 0;
    if (depth <= 0) break;
  }
  const text = lines.slice(at, end + 1).join("\n");
  const stop = text.toLowerCase().lastIndexOf("</table>");
  const rest = stop < 0 ? "" : text.slice(stop + 8);
  const source = stop < 0 ? text : text.slice(0, stop + 8);
  const parsed = new DOMParser().parseFromString(tables ? tables.createHTML(source) : source, "text/html");
  const copies = [...parsed.body.childNodes].flatMap((node) => copy(node, context, 0));
  const wrapped = copies.map((node) => (node.tagName === "TABLE" ? scrolling(node) : node));
  return [el("div", {}, wrapped, rest.trim() ? el("p", {}, inline(rest, context)) : null), end + 1];
}

/** What of parsed HTML may be shown: the parts of tables with their spans, and text. */
function copy(node, context, depth) {
  if (node.nodeType === Node.TEXT_NODE) return inlineMath(node.data);
  if (node.nodeType !== Node.ELEMENT_NODE || depth > MAX_DEPTH * 4) return [];
  const children = [...node.childNodes].flatMap((child) => copy(child, context, depth + 1));
  if (!TABLE_PARTS.has(node.tagName)) return isText(node) ? children : [];
  const made = el(node.tagName.toLowerCase(), {}, children);
  for (const name of ["colspan", "rowspan"]) {
    const span = parseInt(node.getAttribute(name), 10);
    if (span > 1) made.setAttribute(name, String(Math.min(span, MAX_SPAN)));
  }
  return [made];
}

/** Elements whose content is no text for people. */
const isText = (node) => !/^(SCRIPT|STYLE|TEMPLATE|NOSCRIPT|IFRAME|OBJECT|SVG|MATH)$/i.test(node.tagName);

/** Wide tables scroll by themselves, with the keyboard too. */
const scrolling = (table) =>
  el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, table);

/** Math in text that has no other markup. */
function inlineMath(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(/\\\((.+?)\\\)|\\\[(.+?)\\\]/gs)) {
    nodes.push(document.createTextNode(text.slice(from, match.index)), mathNode(match[1] ?? match[2]));
    from = match.index + match[0].length;
  }
  nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

/** Marks in a line of text: what begins one, and how it is read. Linear: no mark looks back. */
function inline(text, context) {
  const nodes = [];
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  while (at < text.length) {
    const found = marked(text, at, context);
    if (!found) {
      plain += text[at] === "\n" ? " " : text[at];
      at += 1;
      continue;
    }
    const [shown, next] = found;
    if (typeof shown === "string") plain += shown;
    else {
      flush();
      nodes.push(...[shown].flat());
    }
    at = next;
  }
  flush();
  return nodes;
}

function marked(text, at, context) {
  switch (text[at]) {
    case "\\":
      return backslash(text, at);
    case "`":
      return codeSpan(text, at);
    case "$":
      return dollars(text, at);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, context);
    case "!":
    case "[":
      return link(text, at, context);
    case "<":
      return tag(text, at, context);
    case "&":
      return reference(text, at);
    default:
      return null;
  }
}

/** Where a sign is next, within reach; -1 if it is not. */
const near = (text, sign, at) => {
  const found = text.slice(at, at + MAX_REACH).indexOf(sign);
  return found < 0 ? -1 : at + found;
};

function backslash(text, at) {
  for (const [open, close] of [
    ["\\(", "\\)"],
    ["\\[", "\\]"],
  ]) {
    const end = text.startsWith(open, at) ? near(text, close, at + 2) : -1;
    if (end > at) return [mathNode(text.slice(at + 2, end)), end + 2];
  }
  if (text[at + 1] === "\n") return [el("br"), at + 2];
  return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : null;
}

function codeSpan(text, at) {
  const mark = /^`+/.exec(text.slice(at, at + 40))[0];
  let end = near(text, mark, at + mark.length);
  while (end >= 0 && text[end + mark.length] === "`") {
    while (text[end] === "`") end += 1;
    end = end - at > MAX_REACH ? -1 : near(text, mark, end);
  }
  if (end < 0) return [mark, at + mark.length];
  const inner = text.slice(at + mark.length, end).replaceAll("\n", " ");
  return [el("code", {}, /^ .*[^ ].* $/.test(inner) ? inner.slice(1, -1) : inner), end + mark.length];
}

/** `$x$` where it cannot be money: no space inside its ends, no digit after it. */
function dollars(text, at) {
  const match = /^\$\$([^$]+)\$\$|^\$(?! )([^$\n]+?)(?<! )\$(?!\d)/.exec(text.slice(at, at + 2000));
  return match ? [mathNode(match[1] ?? match[2]), at + match[0].length] : null;
}

const EMPHASIS = {
  "***": ["strong", "em"],
  "**": ["strong"],
  "*": ["em"],
  __: ["strong"],
  _: ["em"],
  "~~": ["s"],
};

function emphasis(text, at, context) {
  const run = /^(\*+|_+|~+)/.exec(text.slice(at, at + 40))[0];
  const names = EMPHASIS[run];
  const isWord = (character) => /[\p{L}\p{N}]/u.test(character ?? " ");
  const opens = names && /\S/.test(text[at + run.length] ?? " ") && !(run[0] === "_" && isWord(text[at - 1]));
  if (!opens || context.depth >= MAX_DEPTH) return [run, at + run.length];
  let end = near(text, run, at + run.length);
  const closes = () =>
    /\S/.test(text[end - 1]) &&
    text[end - 1] !== "\\" &&
    text[end + run.length] !== run[0] &&
    !(run[0] === "_" && isWord(text[end + run.length]));
  while (end >= 0 && !closes()) end = end - at > MAX_REACH ? -1 : near(text, run, end + run.length);
  if (end < 0) return [run, at + run.length];
  const inner = inline(text.slice(at + run.length, end), { ...context, depth: context.depth + 1 });
  return [names.reduceRight((nodes, name) => el(name, {}, nodes), inner), end + run.length];
}

function link(text, at, context) {
  const isImage = text[at] === "!";
  const match =
    /^!?\[((?:\\.|[^[\]\\]){0,1000})\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/.exec(
      text.slice(at, at + 4000),
    );
  if (!match || context.depth >= MAX_DEPTH) return null;
  const end = at + match[0].length;
  if (isImage) {
    const name = /^(?:\.\/)?images\/([\w.-]{1,100})$/.exec(match[2])?.[1];
    return [(name && context.figure(name, match[1])) || `[${match[1] || "picture"}]`, end];
  }
  const inner = inline(match[1], { ...context, depth: context.depth + 1 });
  const address = safeAddress(match[2]);
  if (!address) return [inner, end];
  return [el("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank" }, inner), end];
}

/** An address that only leads somewhere; `null` for scripts, data and everything else that may do something. */
function safeAddress(text) {
  try {
    const address = new URL(text);
    return SCHEMES.has(address.protocol) ? address.href : null;
  } catch {
    return null;
  }
}

function tag(text, at, context) {
  const found = /^<(br|sub|sup)\s*\/?>/i.exec(text.slice(at, at + 12));
  if (!found) return null;
  const name = found[1].toLowerCase();
  const from = at + found[0].length;
  if (name === "br") return [el("br"), from];
  const end = near(text, `</${name}>`, from);
  if (end < 0 || context.depth >= MAX_DEPTH) return [[], from];
  const inner = inline(text.slice(from, end), { ...context, depth: context.depth + 1 });
  return [el(name, {}, inner), end + name.length + 3];
}

function reference(text, at) {
  const match = /^&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w{1,8}));/.exec(text.slice(at, at + 12));
  if (!match) return null;
  const code = match[1] ? parseInt(match[1], 10) : parseInt(match[2] ?? "", 16);
  const shown = match[3] ? NAMED[match[3]] : code > 0 && code < 0x110000 ? String.fromCodePoint(code) : null;
  return shown ? [shown, at + match[0].length] : null;
}

/**
 * A page's Markdown in parts: `{ text, block }`, where `block` is the number of the block it is of, or null.
 * A block's own text has no escapes, which are passed over here. Where a block is not found in the Markdown,
 * the rest of it is one part.
 */
export function partsOf(markdown, blocks) {
  const starts = [];
  let at = 0;
  for (const [number, { text, figure }] of blocks.entries()) {
    if (!text && !figure) continue;
    while (/\s/.test(markdown[at] ?? "")) at += 1;
    const start = figure ? findFigure(markdown, figure.name, at) : findBlock(markdown, text, at);
    if (start < 0) break;
    starts.push({ start, number });
    at = figure ? markdown.indexOf(")", start) + 1 : endOf(markdown, text, start);
  }
  const parts = starts.map(({ start, number }, index) => ({
    text: markdown.slice(start, starts[index + 1]?.start).trim(),
    block: number,
  }));
  const before = markdown.slice(0, starts[0]?.start).trim();
  return before ? [{ text: before, block: null }, ...parts] : parts;
}

/** Where a block's text begins, at a paragraph's start; -1 if nowhere. */
function findBlock(markdown, text, at) {
  for (let start = at; start >= 0;) {
    if (endOf(markdown, text, start) >= 0) return start;
    const gap = markdown.indexOf("\n\n", start);
    start = gap < 0 ? -1 : gap + 2;
  }
  return -1;
}

/** Where the line begins that refers to a figure; -1 if none does. */
function findFigure(markdown, name, at) {
  const reference = markdown.indexOf(`](images/${name})`, at);
  return reference < 0 ? -1 : Math.max(at, markdown.lastIndexOf("\n", reference) + 1);
}

const ESCAPES = { "<": ["&lt;"], "&": ["&amp;"], "\\": ["\\\\", "&#92;"] };

/** Where a block's text ends that begins here, escapes passed over; -1 if it is not here. */
function endOf(markdown, text, at) {
  for (let index = 0; index < text.length; index += 1) {
    const size = spelled(markdown, at, text, index);
    if (!size) return -1;
    at += size;
  }
  return at;
}

/** How many characters of Markdown stand for one of a text; 0 if they stand for another one. */
function spelled(markdown, at, text, index) {
  const sign = text[index];
  const escape = ESCAPES[sign]?.find((each) => markdown.startsWith(each, at));
  if (escape && !text.startsWith(escape, index)) return escape.length;
  if (markdown[at] === sign) return 1;
  if (markdown[at] === "\\" && markdown[at + 1] === sign) return 2;
  return markdown[at] === " " && markdown[at - 1] === "<" && markdown[at + 1] === sign ? 2 : 0;
}
