// Keys, live pages and forms. Everything works without it, but for writing and for what moves by itself.
"use strict";

const typing = (event) => event.target.closest("input, textarea, select, [contenteditable]");
const plain = (event) => !event.ctrlKey && !event.metaKey && !event.altKey;
const help = document.getElementById("help");
let going = 0; // when g was pressed

// -- rows ------------------------------------------------------------------------------------------------------------

const rows = () => [...document.querySelectorAll("[data-row]")];
const at = () => document.querySelector("[data-row].at");

function move(step) {
  const all = rows();
  if (!all.length) return;
  const now = all.indexOf(at());
  const next = all[Math.min(all.length - 1, Math.max(0, now < 0 ? (step > 0 ? 0 : all.length - 1) : now + step))];
  at()?.classList.remove("at");
  next.classList.add("at");
  next.scrollIntoView({ block: "nearest" });
  (next.matches("a") ? next : next.querySelector("a"))?.focus({ preventScroll: true });
}

document.addEventListener("focusin", (event) => {
  const row = event.target.closest?.("[data-row]");
  if (row && row !== at()) {
    at()?.classList.remove("at");
    row.classList.add("at");
  }
});

// -- keys ------------------------------------------------------------------------------------------------------------

const follow = (selector) => {
  const link = document.querySelector(selector);
  if (link) location.assign(link.href);
  return Boolean(link);
};

const ACTIONS = {
  j: () => move(1),
  k: () => move(-1),
  n: () => follow('a[rel="next"]'),
  p: () => follow('a[rel="prev"]'),
  g: () => { going = Date.now(); },
  "/": () => document.querySelector("[data-search]")?.focus(),
  "?": () => help.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (!plain(event) || event.defaultPrevented) return;
  if (typing(event)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (help?.open) return;
  if (going && Date.now() - going < 1500) {
    going = 0;
    if (/^[a-z]$/.test(event.key) && follow(`[data-go="${event.key}"]`)) event.preventDefault();
    return;
  }
  const action = window.reviewKeys?.[event.key] ?? ACTIONS[event.key];
  if (action && action(event) !== false) event.preventDefault();
});

document.getElementById("keys")?.addEventListener("click", () => help.showModal());

// -- forms -----------------------------------------------------------------------------------------------------------

for (const form of document.querySelectorAll("form.filters")) {
  form.addEventListener("change", (event) => {
    if (event.target.matches("select")) form.requestSubmit();
  });
  // An address worth sharing holds only what was chosen.
  form.addEventListener("submit", () => {
    for (const field of form.elements) {
      if (field.name && (!field.value || (field.name === "sort" && field.value === "made"))) field.disabled = true;
    }
  });
}
window.addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form.filters :disabled")) field.disabled = false;
});

// -- writes ----------------------------------------------------------------------------------------------------------

async function write(url, body) {
  const answer = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", "x-cai-view": "1" },
    body: JSON.stringify(body),
  });
  const said = (answer.headers.get("content-type") ?? "").includes("json") ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(said.error ?? `the server answered ${answer.status}`);
  return said;
}

// A form that writes: its fields become one JSON object, and the page is shown again with what came of it.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.write) return;
  event.preventDefault();
  const body = {};
  for (const field of form.elements) {
    if (!field.name || (field.type === "radio" && !field.checked)) continue;
    body[field.name] = field.type === "checkbox" ? field.checked : field.value;
    if (field.type === "number") body[field.name] = field.value === "" ? null : Number(field.value);
  }
  try {
    await write(form.dataset.write, body);
    await showAgain();
  } catch (error) {
    form.querySelector(".status").textContent = error.message;
  }
});

// -- the page again, as the server sees it now -------------------------------------------------------------------------

let main = document.getElementById("main");

async function showAgain() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const kept = rows().indexOf(at());
  const fresh = document.adoptNode(page.getElementById("main"));
  const opened = [...main.querySelectorAll("details")].map((piece) => piece.open);
  fresh.querySelectorAll("details").forEach((piece, i) => { piece.open = opened[i] ?? piece.open; });
  main.replaceWith(fresh);
  main = fresh;
  if (kept >= 0) rows()[kept]?.classList.add("at");
}

async function keepFresh() {
  const waits = main.dataset.live || (main.querySelector("[data-live-while]") ? "1" : "");
  if (!waits) return;
  await new Promise((done) => setTimeout(done, 1000 * Number(waits)));
  const isInUse = document.hidden || help?.open || typing({ target: document.activeElement });
  // While the server is away the page stays as it is, and the next look may find it again.
  if (!isInUse) await showAgain().catch(() => {});
  keepFresh();
}
keepFresh();
