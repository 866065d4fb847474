// Markdown to elements. marked only reads it; every element is made here, from a fixed list, and every text is set as
// text. HTML in an answer is shown as it is written, and nothing is loaded from where an answer points to.

import { lexer } from "./vendor/marked/marked.esm.js";
import { text as message } from "./app.js";

const SAFE_LINK = /^(https?:|mailto:)/i;
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0", "&amp;": "&" };
const SIMPLE = { strong: "strong", em: "em", del: "del", blockquote: "blockquote" };

/** The elements of a text. */
export function render(source) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(lexer(source, { gfm: true, breaks: true })));
  return fragment;
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
      return make("pre", [make("code", [token.text])]);
    case "blockquote":
      return make("blockquote", blocks(token.tokens));
    case "list":
      return list(token);
    case "table":
      return table(token);
    case "hr":
      return make("hr");
    case "text":
      return token.tokens ? make("span", inline(token.tokens)) : make("span", [plain(token.text)]);
    default:
      return make("p", [token.raw]);
  }
}

function list(token) {
  const made = make(token.ordered ? "ol" : "ul", token.items.map((item) => make("li", blocks(item.tokens))));
  if (token.ordered && token.start > 1) made.start = token.start;
  return made;
}

function table(token) {
  const row = (cells, tag) => make("tr", cells.map((cell) => make(tag, inline(cell.tokens))));
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
  return value.replace(/&(lt|gt|quot|#39|nbsp|amp);/g, (entity) => ENTITIES[entity]);
}

function make(tag, children = []) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}
