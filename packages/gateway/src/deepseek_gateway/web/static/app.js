// What every page does: the menu of a phone, copy buttons, questions before what cannot be undone.

const messages = JSON.parse(document.body.dataset.messages ?? "{}");

/** Whether this page is left for good: nothing is to be kept any more. */
export let isSigningOut = false;

/** A text in the page's language, with its values. */
export function text(key, values = {}) {
  return messages[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The token that requests of this page's scripts carry. */
export function formToken() {
  return document.querySelector('meta[name="form-token"]').content;
}

/** Copy a text, and say so on the button for a moment. */
export async function copy(value, button) {
  const label = button.textContent;
  const width = button.getBoundingClientRect().width;
  button.style.minWidth = `${width}px`; // the label changes, the layout does not
  try {
    await navigator.clipboard.writeText(value);
    button.textContent = text("copied");
  } catch {
    button.textContent = text("copy_failed");
  }
  setTimeout(() => { button.textContent = label; }, 1600);
}

/** Ask; true when the answer is yes. */
function confirmed(question) {
  const dialog = document.querySelector("dialog.confirm");
  dialog.querySelector("p").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// A form that was refused is gone on with at its first fault.
document.querySelector('[aria-invalid="true"]')?.focus();

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(document.getElementById(button.dataset.copy).textContent, button);
});

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.matches('[action="/ui/logout"]')) {
    isSigningOut = true; // the next one at this tab is somebody else
    sessionStorage.clear();
  }
  const question = event.submitter?.dataset.confirm ?? form.dataset.confirm;
  if (!question || form.dataset.sure) return;
  event.preventDefault();
  if (await confirmed(question)) {
    form.dataset.sure = "yes";
    form.requestSubmit(event.submitter);
  }
});

const menuButton = document.querySelector(".menu-button");
menuButton?.addEventListener("click", () => {
  const isOpen = document.getElementById("menu").classList.toggle("open");
  menuButton.setAttribute("aria-expanded", String(isOpen));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && menuButton?.getAttribute("aria-expanded") === "true") {
    menuButton.click();
    menuButton.focus();
  }
});
