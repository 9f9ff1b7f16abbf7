// Reviewing by keyboard: a vote is one key. The place is kept by the server, so a reload loses nothing.
"use strict";

let shownAt = performance.now();
let lastItem = null; // voted on latest, while this page is open
let isBusy = false;
let waitsForEnter = false; // after practice, until the feedback was read

const part = (selector) => document.querySelector(selector);
const review = () => part("#review");

function tell(...content) {
  part("#status")?.replaceChildren(...content);
}

function line(text, kind) {
  const made = document.createElement(kind ?? "span");
  made.textContent = text;
  return made;
}

async function attempt(action) {
  if (isBusy) return;
  isBusy = true;
  review().classList.add("busy");
  try {
    await action();
  } catch (error) {
    tell(line(error.message, "b"));
  } finally {
    isBusy = false;
    review().classList.remove("busy");
  }
}

async function proceed() {
  await showAgain();
  waitsForEnter = false;
  shownAt = performance.now();
  window.scrollTo(0, 0);
  part("[data-reveal]")?.toggleAttribute("hidden", lastItem === null);
}

function vote(side) {
  const { item, practice } = review().dataset;
  if (!item || waitsForEnter) return false;
  return attempt(async () => {
    const confidence = Number(part("#confidence").value) || null;
    await write(`${review().dataset.base}/vote`, {
      item_id: item, side, confidence, reason: part("#reason").value,
      duration_s: Math.round(performance.now() - shownAt) / 1000,
    });
    lastItem = side === "skip" ? null : item;
    if (practice !== undefined && side !== "skip") {
      const told = await write(`${review().dataset.base}/reveal`, { item_id: item });
      feedback(told, side);
      return;
    }
    await proceed();
    tell(line(side === "skip" ? "Skipped; it comes again at the end." : `Saved: ${side.replace("_", " ")}.`));
  });
}

function feedback(told, side) {
  waitsForEnter = true;
  for (const button of document.querySelectorAll("#ballot [data-side]")) button.disabled = true;
  const next = line("Go on ", "button");
  next.append(line("Enter", "kbd"));
  next.type = "button";
  next.addEventListener("click", () => attempt(proceed));
  const verdict = told.agrees ? "As expected. " : `You said ${side.replace("_", " ")}; expected was ${told.expected}. `;
  tell(line(verdict, "b"), line(told.why ? `${told.why} ` : ""), next);
  next.focus();
}

const undo = () => attempt(async () => {
  const { item_id: item } = await write(`${review().dataset.base}/undo`, {});
  lastItem = null;
  await proceed();
  tell(line(item ? "Taken back: vote again." : "There is no vote to take back."));
});

const NAMES = { left: "the left one", right: "the right one", tie: "a tie" };

const reveal = () => lastItem && attempt(async () => {
  const told = await write(`${review().dataset.base}/reveal`, { item_id: lastItem });
  if (told.withheld || told.practice) {
    tell(line("About this one you are told when the queue is done."));
    return;
  }
  const sure = told.p_left === null ? "" : ` (${Math.round(100 * Math.max(told.p_left, 1 - told.p_left))}%)`;
  tell(
    line(`On the last one the principles named ${NAMES[told.label] ?? "no side"}${sure}; `),
    line(`you said ${NAMES[told.vote] ?? "neither"}. Left was the ${told.left_is}, right the ${told.right_is}.`),
  );
});

function cycle() {
  const field = part("#confidence");
  if (field) field.selectedIndex = (field.selectedIndex + 1) % field.options.length;
}

function sure(level) {
  const field = part("#confidence");
  if (field) field.value = String(level);
}

window.reviewKeys = {
  7: () => sure(1),
  8: () => sure(2),
  9: () => sure(3),
  1: () => vote("left"),
  2: () => vote("right"),
  3: () => vote("tie"),
  4: () => vote("both_bad"),
  5: () => vote("cannot_judge"),
  s: () => vote("skip"),
  u: undo,
  v: reveal,
  c: cycle,
  r: () => part("#reason")?.focus(),
  Enter: () => (waitsForEnter ? attempt(proceed) : false),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("#ballot button");
  if (!button) return;
  if (button.dataset.side) vote(button.dataset.side);
  else if (button.matches("[data-undo]")) undo();
  else if (button.matches("[data-reveal]")) reveal();
});
document.addEventListener("submit", (event) => {
  if (event.target.id === "ballot") event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  // Enter in the reason's field leaves it, so that the next key is a vote.
  if (event.target.id === "reason" && event.key === "Enter") event.target.blur();
});
