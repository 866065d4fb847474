// The turns of a conversation as they are shown: questions, answers that grow, what an answer took, what went wrong.

import { copy, text } from "./app.js";
import { MarkdownView } from "./markdown.js";

const AT_END_PX = 60;

/** A question. */
export class Question {
  constructor(list, content) {
    this.root = element("div", "turn user", content);
    list.append(this.root);
    list.scrollTop = list.scrollHeight;
  }

  /** It got no answer: it is not part of what is sent next. */
  drop() {
    this.root.classList.add("dropped");
  }
}

/** An answer of a model; `again` asks for another one in its place. */
export class Answer {
  #list; #reasoning; #thoughts; #content; #meta; #isDue = false;

  constructor(list, model, again) {
    this.#list = list;
    this.again = again;
    this.root = element("div", "turn assistant");
    this.#reasoning = element("details", "reasoning");
    this.#reasoning.hidden = true;
    this.#reasoning.append(element("summary"), element("div", "markdown"));
    this.#thoughts = new MarkdownView(this.#reasoning.lastElementChild);
    const content = element("div", "markdown");
    this.#content = new MarkdownView(content);
    this.#meta = element("div", "meta");
    this.root.append(...(model ? [element("div", "by", model)] : []), this.#reasoning, content, this.#meta);
    list.append(this.root);
    list.scrollTop = list.scrollHeight;
  }

  /** It is being written. */
  begin() {
    this.root.setAttribute("aria-busy", "true");
    this.#meta.replaceChildren(element("span", "waiting", text("waiting")));
  }

  /** Show it as it is now, with the next frame: many chunks, one drawing. */
  update(turn) {
    if (turn.content || turn.reasoning) this.#meta.replaceChildren();
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => this.draw(turn));
  }

  draw({ content, reasoning, thought }) {
    this.#isDue = false;
    const isAtEnd = this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < AT_END_PX;
    if (reasoning) {
      this.#reasoning.hidden = false;
      this.#reasoning.firstElementChild.textContent = thought ? text("thought", { time: thought }) : text("thinking");
      this.#thoughts.show(reasoning);
    }
    this.#content.show(content);
    if (isAtEnd) this.#list.scrollTop = this.#list.scrollHeight;
  }

  /** It is over: what it took, and what can be done with it. */
  end(turn) {
    this.#finish(turn, (turn.parts ?? []).map((part) => element("span", "", part)), text("again"));
  }

  /** It failed: what happened in a word, what the gateway says of it, and what to do then. */
  fail(turn, { title, detail, waitS, signIn }) {
    const box = element("div", "fault box");
    box.setAttribute("role", "alert");
    box.append(element("strong", "", title), ...(detail && detail !== title ? [element("p", "", detail)] : []));
    if (signIn) {
      const link = element("a", "button", text("sign_in"));
      link.href = signIn;
      box.append(link);
    }
    this.#finish(turn, [box], text("retry"));
    if (waitS > 0) this.#wait(this.#meta.querySelector(".again"), waitS);
    this.#list.scrollTop = this.#list.scrollHeight;
  }

  /** The conversation goes on: this one can no longer be asked for again. */
  settle() {
    this.#meta.querySelector(".again")?.remove();
  }

  #finish(turn, told, label) {
    this.draw(turn);
    this.root.removeAttribute("aria-busy");
    this.#meta.replaceChildren(...told);
    if (turn.content) {
      const button = element("button", "", text("copy"));
      button.type = "button";
      button.addEventListener("click", () => copy(turn.content, button));
      this.#meta.append(button);
    }
    if (this.again) {
      const button = element("button", "again", label);
      button.type = "button";
      button.addEventListener("click", this.again);
      this.#meta.append(button);
    }
    if (turn.requestId) {
      const link = element("a", "", text("details"));
      link.href = `/ui/requests/${encodeURIComponent(turn.requestId)}`;
      link.target = "_blank";
      link.rel = "noopener";
      this.#meta.append(link);
    }
  }

  /** Before then the answer would be the same. */
  #wait(button, seconds) {
    if (!button?.isConnected) return;
    const label = text("retry");
    button.disabled = seconds > 0;
    button.textContent = seconds > 0 ? text("retry_in", { seconds }) : label;
    if (seconds > 0) setTimeout(() => this.#wait(button, seconds - 1), 1000);
  }
}

function element(tag, className = "", content = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (content) made.textContent = content;
  return made;
}
