// The conversation of a tab: kept until a new one, the sign-out, or the tab's end; never the text of a key.

import { isSigningOut } from "./app.js";

const place = (account) => `playground ${account}`;

/** Keep it; a browser that has no room for it keeps nothing. */
export function keep(account, talk) {
  if (isSigningOut) return;
  try {
    sessionStorage.setItem(place(account), JSON.stringify(talk));
  } catch {
    sessionStorage.removeItem(place(account));
  }
}

/** What was kept, or nothing. */
export function kept(account) {
  try {
    return JSON.parse(sessionStorage.getItem(place(account)));
  } catch {
    return null;
  }
}
