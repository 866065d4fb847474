// Markdown to elements. marked only reads it; every element is made here, from a fixed list, and every text is set as
// text. HTML in an answer is shown as it is written, and nothing is loaded from where an answer points to.

import { lexer } from "./vendor/marked/marked.esm.js";
import { copy, text as message } from "./app.js";

const SAFE_LINK = /^(https?:|mailto:)/i;
const ENTITIES = {
  lt: "<", gt: ">", quot: '"', "#39": "'", nbsp: "\u00a0", amp: "&", copy: "©", reg: "®", trade: "™", deg: "°", times: "×",
  ndash: "–", mdash: "—", hellip: "…", middot: "·", bull: "•", larr: "←", rarr: "→", le: "≤", ge: "≥", ne: "≠", plusmn: "±",
};
const SIMPLE = { strong: "strong", em: "em", del: "del", blockquote: "blockquote" };

/** A text that grows: blocks that stay as they were keep their elements, and with them a selection, or how far they are scrolled. */
export class MarkdownView {
  #root; #shown = [];

  constructor(root) {
    this.#root = root;
  }

  show(source) {
    const tokens = lexer(source, { gfm: true, breaks: true });
    let same = 0;
    while (same < this.#shown.length && this.#shown[same].raw === tokens[same]?.raw) same++;
    if (tokens.some((token) => token.type === "def")) same = 0; // links that are defined below change what is above
    for (const { made } of this.#shown.splice(same)) made?.remove();
    for (const token of tokens.slice(same)) {
      const made = block(token);
      if (made !== null) this.#root.append(made);
      this.#shown.push({ raw: token.raw, made });
    }
  }
}

function blocks(tokens) {
  return tokens.flatMap((token) => {
    const made = block(token);
    return made === null ? [] : [made];
  });
}

function block(token) {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      return make(`h${Math.min(token.depth, 4)}`, inline(token.tokens));
    case "paragraph":
      return make("p", inline(token.tokens));
    case "code":
      return code(token);
    case "blockquote":
      return make("blockquote", blocks(token.tokens));
    case "list":
      return list(token);
    case "table":
      return table(token);
    case "checkbox":
      return make("span", [token.checked ? "☑ " : "☐ "], "tick");
    case "hr":
      return make("hr");
    case "text":
      return token.tokens ? make("span", inline(token.tokens)) : make("span", [plain(token.text)]);
    default:
      return make("p", [token.raw]);
  }
}

/** Code with its language, and a button to take it along. */
function code(token) {
  const button = make("button", [message("copy")]);
  button.type = "button";
  button.addEventListener("click", () => copy(token.text, button));
  const language = make("span", [(token.lang ?? "").split(/\s/)[0].slice(0, 30)]);
  const text = make("pre", [make("code", [token.text])]);
  text.tabIndex = 0; // wide lines are scrolled by keyboard too
  return make("div", [make("div", [language, button], "bar"), text], "code-block");
}

function list(token) {
  const made = make(token.ordered ? "ol" : "ul", token.items.map((item) => make("li", blocks(item.tokens), item.task ? "task" : "")));
  if (token.ordered && token.start > 1) made.start = token.start;
  return made;
}

function table(token) {
  const row = (cells, tag) => make("tr", cells.map((cell) => make(tag, inline(cell.tokens), cell.align ?? "")));
  const head = make("thead", [row(token.header, "th")]);
  return make("table", [head, make("tbody", token.rows.map((cells) => row(cells, "td")))]);
}

function inline(tokens = []) {
  return tokens.map((token) => {
    switch (token.type) {
      case "strong":
      case "em":
      case "del":
        return make(SIMPLE[token.type], inline(token.tokens));
      case "codespan":
        return make("code", [token.text]);
      case "br":
        return make("br");
      case "link":
        return link(token);
      case "image":
        return `[${message("image")}: ${token.text || token.href}]`;
      case "text":
        return token.tokens ? make("span", inline(token.tokens)) : plain(token.text);
      case "escape":
        return token.text;
      case "checkbox":
        return make("span", [token.checked ? "☑ " : "☐ "], "tick");
      default:
        return token.raw;
    }
  });
}

function link(token) {
  if (!SAFE_LINK.test(token.href)) return make("span", inline(token.tokens));
  const made = make("a", inline(token.tokens));
  made.href = token.href;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}

function plain(value) {
  return value.replace(/&(#39|\w{2,8});/g, (entity, name) => ENTITIES[name] ?? entity);
}

function make(tag, children = [], className = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}
