// What went wrong with a chat request, in the page's language: a title by its kind; the gateway's own words say the rest.

import { text } from "./app.js";

const BY_CODE = { signed_out: "fault_signed_out", content_filter: "fault_filtered", insufficient_balance: "fault_money" };
const BY_STATUS = { 400: "fault_request", 401: "fault_key", 402: "fault_money", 403: "fault_right", 404: "fault_request", 413: "fault_request", 422: "fault_request", 429: "fault_rate" };

/** A fault of the gateway or an engine: title, detail, seconds to wait, where to sign in. */
export class ChatError extends Error {
  constructor(title, { detail = "", waitS = 0, signIn = "" } = {}) {
    super(title);
    Object.assign(this, { title, detail: sentence(detail), waitS, signIn });
  }
}

/** The refusal of a whole request. */
export async function refusalOf(reply) {
  const { message = `HTTP ${reply.status}`, code } = (await reply.json().catch(() => ({}))).error ?? {};
  const title = text(BY_CODE[code] ?? BY_STATUS[reply.status] ?? "fault_engine");
  const waitS = Math.min(Math.ceil(Number(reply.headers.get("retry-after") ?? 0)) || 0, 3600);
  const signIn = code === "signed_out" ? `/ui/login?next=${encodeURIComponent(location.pathname)}` : "";
  return new ChatError(title, { detail: message, waitS, signIn });
}

/** An error within a stream, or the end of one that has none. */
export function breakOf(error) {
  return new ChatError(text(BY_CODE[error?.code] ?? "fault_cut"), { detail: error?.message });
}

/** What fetch threw. */
export function lossOf(error) {
  return error instanceof ChatError ? error : new ChatError(text(error instanceof TypeError ? "unreachable" : "fault_cut"));
}

/** With a large letter at its beginning, unless the name of a field stands there. */
function sentence(message = "") {
  return message.replace(/^[a-z]+(?=[ '])/, (word) => word.charAt(0).toUpperCase() + word.slice(1));
}
