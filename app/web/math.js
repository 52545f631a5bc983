/** TeX math -> MathML, for what is usual in documents. What is not known here is shown as TeX. */

import { el, math } from "./dom.js";

const LETTERS = Object.fromEntries(
  "alpha:α beta:β gamma:γ delta:δ epsilon:ϵ varepsilon:ε zeta:ζ eta:η theta:θ vartheta:ϑ iota:ι kappa:κ lambda:λ mu:μ nu:ν xi:ξ pi:π rho:ρ sigma:σ tau:τ upsilon:υ phi:ϕ varphi:φ chi:χ psi:ψ omega:ω Gamma:Γ Delta:Δ Theta:Θ Lambda:Λ Xi:Ξ Pi:Π Sigma:Σ Phi:Φ Psi:Ψ Omega:Ω ell:ℓ hbar:ℏ infty:∞ partial:∂ nabla:∇ emptyset:∅ Re:ℜ Im:ℑ aleph:ℵ prime:′"
    .split(" ")
    .map((pair) => pair.split(":")),
);
const OPERATORS = Object.fromEntries(
  "times:× cdot:⋅ div:÷ pm:± mp:∓ ast:∗ star:⋆ circ:∘ bullet:∙ oplus:⊕ otimes:⊗ odot:⊙ leq:≤ le:≤ geq:≥ ge:≥ neq:≠ ne:≠ approx:≈ equiv:≡ sim:∼ simeq:≃ cong:≅ propto:∝ ll:≪ gg:≫ in:∈ notin:∉ ni:∋ subset:⊂ subseteq:⊆ supset:⊃ supseteq:⊇ cup:∪ cap:∩ setminus:∖ to:→ rightarrow:→ leftarrow:← leftrightarrow:↔ Rightarrow:⇒ Leftarrow:⇐ Leftrightarrow:⇔ mapsto:↦ implies:⟹ iff:⟺ forall:∀ exists:∃ neg:¬ land:∧ wedge:∧ lor:∨ vee:∨ mid:∣ parallel:∥ perp:⊥ angle:∠ ldots:… cdots:⋯ vdots:⋮ ddots:⋱ dots:… langle:⟨ rangle:⟩ lfloor:⌊ rfloor:⌋ lceil:⌈ rceil:⌉ lbrace:{ rbrace:} lvert:| rvert:| vert:| lVert:‖ rVert:‖ Vert:‖ colon::"
    .split(" ")
    .map((pair) => [pair.slice(0, pair.indexOf(":")), pair.slice(pair.indexOf(":") + 1)]),
);
const LARGE = {
  sum: "∑",
  prod: "∏",
  int: "∫",
  iint: "∬",
  oint: "∮",
  bigcup: "⋃",
  bigcap: "⋂",
  bigoplus: "⨁",
};
const FUNCTIONS = new Set(
  "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln lg exp det dim ker deg gcd arg Pr max min sup inf lim argmax argmin".split(
    " ",
  ),
);
const LIMITS = new Set(["max", "min", "sup", "inf", "lim", "argmax", "argmin", "det", "Pr"]);
const ACCENTS = {
  hat: "^",
  widehat: "^",
  bar: "¯",
  overline: "¯",
  tilde: "~",
  widetilde: "~",
  vec: "→",
  dot: "˙",
  ddot: "¨",
  check: "ˇ",
};
const FONTS = {
  mathbf: "bold",
  boldsymbol: "bold",
  bm: "bold",
  mathrm: "normal",
  operatorname: "normal",
  mathit: null,
  mathsf: "normal",
  mathtt: "normal",
  mathcal: null,
  mathbb: null,
  mathfrak: null,
};
const TEXTS = new Set(["text", "textrm", "textbf", "textit", "mbox", "hbox"]);
const SPACES = {
  ",": "0.17em",
  ":": "0.22em",
  ";": "0.28em",
  " ": "0.25em",
  quad: "1em",
  qquad: "2em",
  "!": "-0.17em",
};
const IGNORED = new Set([
  "displaystyle",
  "textstyle",
  "limits",
  "nolimits",
  "nonumber",
  "notag",
  "big",
  "Big",
  "bigg",
  "Bigg",
  "bigl",
  "bigr",
  "Bigl",
  "Bigr",
]);
const FENCES = {
  matrix: "",
  pmatrix: "()",
  bmatrix: "[]",
  vmatrix: "||",
  Vmatrix: "‖‖",
  cases: "{",
  aligned: "",
  align: "",
  "align*": "",
  array: "",
  split: "",
  gathered: "",
};
const MAX_CHARS = 4000;
const MAX_DEPTH = 60;

class Unknown extends Error {}

/** A node that shows math: MathML, or its TeX where something in it is not known. */
export function mathNode(tex, isDisplay = false) {
  const source = tex.trim();
  try {
    const reader = new Reader(source);
    const row = reader.row(() => false, 0);
    return math("math", { display: isDisplay ? "block" : "inline", class: "math" }, row);
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
    return el("code", { class: "tex", title: "TeX" }, source);
  }
}

class Reader {
  constructor(source) {
    if (source.length > MAX_CHARS) throw new Unknown("too long");
    this.tokens = source.match(/\\[A-Za-z]+\*?|\\.|\d+(?:[.,]\d+)*|[^\s]|\s+/gsu) ?? [];
    this.at = 0;
  }

  peek() {
    while (/^\s/.test(this.tokens[this.at] ?? "")) this.at += 1;
    return this.tokens[this.at];
  }

  next() {
    const token = this.peek();
    this.at += 1;
    return token;
  }

  expect(token) {
    if (this.next() !== token) throw new Unknown(token);
  }

  /** Everything up to a token that `ends` accepts, which stays. */
  row(ends, depth) {
    if (depth > MAX_DEPTH) throw new Unknown("too deep");
    const nodes = [];
    for (let token = this.peek(); token !== undefined && !ends(token); token = this.peek()) {
      const node = this.scripted(depth);
      if (node) nodes.push(node);
    }
    return nodes.length === 1 ? nodes[0] : math("mrow", {}, nodes);
  }

  /** One thing with what is above and below it. */
  scripted(depth) {
    const token = this.peek();
    const isBare = token === "^" || token === "_";
    const base = isBare ? math("mrow") : this.atom(depth);
    let below = null;
    let above = null;
    for (let mark = this.peek(); mark === "^" || mark === "_" || mark === "'"; mark = this.peek()) {
      this.next();
      const script = mark === "'" ? math("mo", {}, "′") : this.argument(depth);
      if (mark === "_") below = script;
      else above = above ? math("mrow", {}, above, script) : script;
    }
    if (!below && !above) return base;
    const isUnder = base.limits ?? false;
    const [both, under, over] = isUnder ? ["munderover", "munder", "mover"] : ["msubsup", "msub", "msup"];
    if (below && above) return math(both, {}, base, below, above);
    return below ? math(under, {}, base, below) : math(over, {}, base, above);
  }

  /** `{...}` or one thing. */
  argument(depth) {
    if (this.peek() === undefined || depth > MAX_DEPTH) throw new Unknown("end");
    if (this.peek() !== "{") return this.atom(depth + 1);
    this.next();
    const row = this.row((token) => token === "}", depth + 1);
    this.expect("}");
    return row;
  }

  /** The characters of `{...}`, as they are. */
  words() {
    this.expect("{");
    let text = "";
    for (let depth = 1; ; this.at += 1) {
      const token = this.tokens[this.at];
      if (token === undefined) throw new Unknown("end");
      depth += (token === "{") - (token === "}");
      if (depth === 0) break;
      text += token;
    }
    this.at += 1;
    if (/[\\$]/.test(text)) throw new Unknown("markup in text");
    return text;
  }

  atom(depth) {
    const token = this.next();
    if (token === "{") {
      this.at -= 1;
      return this.argument(depth);
    }
    if (token.startsWith("\\")) return this.command(token.slice(1), depth);
    if (/^\d/.test(token)) return math("mn", {}, token);
    if (/^\p{L}$/u.test(token)) return math("mi", {}, token);
    if (token === "~") return math("mspace", { width: "0.25em" });
    if (token === "-") return math("mo", {}, "−");
    if ("}&^_#%$".includes(token)) throw new Unknown(token);
    return math("mo", /[|()[\]]/.test(token) ? { stretchy: "false" } : {}, token);
  }

  command(name, depth) {
    if (name in LETTERS) return math("mi", {}, LETTERS[name]);
    if (name in OPERATORS)
      return math(
        "mo",
        /^[lr](angle|floor|ceil|brace|vert|Vert)$/.test(name) ? { stretchy: "false" } : {},
        OPERATORS[name],
      );
    if (name in LARGE) {
      const sign = math("mo", { largeop: "true" }, LARGE[name]);
      sign.limits = !name.endsWith("int");
      return sign;
    }
    if (FUNCTIONS.has(name)) {
      const word = math("mi", {}, name);
      word.limits = LIMITS.has(name);
      return word;
    }
    if (name in SPACES) return math("mspace", { width: SPACES[name] });
    if (IGNORED.has(name)) return math("mrow");
    if ("{}%$&#_".includes(name)) return math("mo", { stretchy: "false" }, name);
    if (name === "|") return math("mo", { stretchy: "false" }, "‖");
    if (TEXTS.has(name)) return math("mtext", {}, this.words());
    if (name in ACCENTS)
      return math("mover", { accent: "true" }, this.argument(depth), math("mo", {}, ACCENTS[name]));
    if (name in FONTS) return this.styled(name, depth);
    switch (name) {
      case "frac":
      case "dfrac":
      case "tfrac":
        return math("mfrac", {}, this.argument(depth), this.argument(depth));
      case "binom":
        return math(
          "mrow",
          {},
          math("mo", {}, "("),
          math("mfrac", { linethickness: "0" }, this.argument(depth), this.argument(depth)),
          math("mo", {}, ")"),
        );
      case "sqrt":
        return this.root(depth);
      case "underline":
        return math("munder", {}, this.argument(depth), math("mo", {}, "_"));
      case "left":
        return this.fenced(depth);
      case "begin":
        return this.grid(depth);
      case "tag":
        return math("mtext", {}, `\u2003(${this.words()})`);
      default:
        throw new Unknown(name);
    }
  }

  styled(name, depth) {
    if (name === "operatorname") return math("mi", { mathvariant: "normal" }, this.words());
    const inner = this.argument(depth);
    if (name === "mathbb" || name === "mathcal" || name === "mathfrak")
      return math("mstyle", { class: name }, inner);
    const variant = FONTS[name];
    if (variant === "normal")
      for (const each of inner.localName === "mi" ? [inner] : inner.querySelectorAll("mi"))
        each.setAttribute("mathvariant", "normal");
    return math("mstyle", variant === "bold" ? { class: "bold" } : {}, inner);
  }

  root(depth) {
    if (this.peek() !== "[") return math("msqrt", {}, this.argument(depth));
    this.next();
    const index = this.row((token) => token === "]", depth + 1);
    this.expect("]");
    return math("mroot", {}, this.argument(depth), index);
  }

  fence() {
    const token = this.next();
    if (token === ".") return "";
    const name = token?.startsWith("\\") ? token.slice(1) : null;
    if (name === null) return token ?? "";
    if ("{}".includes(name)) return name;
    if (name === "|") return "‖";
    if (name in OPERATORS) return OPERATORS[name];
    throw new Unknown(name);
  }

  fenced(depth) {
    const open = this.fence();
    const inner = this.row((token) => token === "\\right", depth + 1);
    this.expect("\\right");
    const close = this.fence();
    return math(
      "mrow",
      {},
      open && math("mo", { fence: "true" }, open),
      inner,
      close && math("mo", { fence: "true" }, close),
    );
  }

  grid(depth) {
    const name = this.words();
    if (!(name in FENCES)) throw new Unknown(name);
    if (name === "array") this.words();
    const ends = (token) => token === "&" || token === "\\\\" || token === "\\end";
    const rows = [[]];
    for (;;) {
      rows.at(-1).push(math("mtd", {}, this.row(ends, depth + 1)));
      const token = this.next();
      if (token === "\\\\") rows.push([]);
      else if (token !== "&") break;
    }
    if (this.words() !== name) throw new Unknown(name);
    const isLeft = /^(cases|align|aligned|split)/.test(name);
    const table = math(
      "mtable",
      isLeft ? { class: "aligned" } : {},
      rows.map((cells) => math("mtr", {}, cells)),
    );
    const [open = "", close = ""] = FENCES[name];
    if (!open) return table;
    return math(
      "mrow",
      {},
      math("mo", { fence: "true" }, open),
      table,
      close && math("mo", { fence: "true" }, close),
    );
  }
}
