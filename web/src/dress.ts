// In:  an element with an answer's sanitised HTML. Out: the same with coloured code, drawn formulas, copy buttons.
// Left out: how code is read (code.ts) and formulas are drawn (formula.ts); both are loaded when first needed.

import { t } from "./i18n";
import { clean } from "./markdown";

type Code = typeof import("./code");
type Formula = typeof import("./formula");

let code: Code | null = null;
let formula: Formula | null = null;

// Code that still grows is coloured anew with every frame: more than this would cost the frame.
const LONGEST_GROWING = 5_000;

/**
 * Dress a block. At once where the libraries are there already, so that a block that grows does not flicker.
 *
 * Safe to call again, and on a block whose HTML was replaced while a library was on its way: what is dressed is marked.
 */
export function dress(block: HTMLElement, growing: boolean): void {
  for (const pre of block.querySelectorAll<HTMLElement>("pre")) frame(pre);
  if (block.querySelector("pre > code:not(.hljs)")) {
    if (code) paint(block, code, growing);
    else void import("./code").then((loaded) => paint(block, (code = loaded), growing), unloaded);
  }
  if (block.querySelector(".formula:not(.drawn)")) {
    if (formula) draw(block, formula);
    else void import("./formula").then((loaded) => draw(block, (formula = loaded)), unloaded);
  }
}

function paint(block: HTMLElement, { highlight }: Code, growing: boolean): void {
  for (const place of block.querySelectorAll<HTMLElement>("pre > code:not(.hljs)")) {
    if (growing && place.textContent!.length > LONGEST_GROWING) continue;
    place.classList.add("hljs");
    const html = highlight(place.textContent!, language(place));
    if (html !== null) place.innerHTML = clean(html);
  }
}

function draw(block: HTMLElement, { draw }: Formula): void {
  for (const place of block.querySelectorAll<HTMLElement>(".formula:not(.drawn)")) {
    place.classList.add("drawn");
    const done = draw(place.textContent!, place, place.classList.contains("display"));
    if (!done) place.classList.add("undrawable");
  }
}

/** A bar above the code: its language, and a button that copies it. */
function frame(pre: HTMLElement): void {
  if (pre.parentElement?.classList.contains("code")) return;
  const around = document.createElement("div");
  around.className = "code";
  const bar = document.createElement("div");
  bar.className = "bar";
  const name = document.createElement("span");
  name.textContent = language(pre.querySelector("code")) ?? "";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet copy";
  button.textContent = t("copyCode");
  button.onclick = () => void copy(pre, button);
  bar.append(name, button);
  pre.replaceWith(around);
  pre.tabIndex = 0; // what scrolls sideways must be reachable by keyboard
  around.append(bar, pre);
}

/** Name the buttons of a block in the language of the page. */
export function label(block: HTMLElement): void {
  for (const button of block.querySelectorAll(".code .copy")) button.textContent = t("copyCode");
}

async function copy(pre: HTMLElement, button: HTMLElement): Promise<void> {
  await navigator.clipboard.writeText(pre.textContent!);
  button.textContent = t("copied");
  setTimeout(() => (button.textContent = t("copyCode")), 1500);
}

function language(place: HTMLElement | null): string | null {
  return /(?:^| )language-(\S+)/.exec(place?.className ?? "")?.[1]?.toLowerCase() ?? null;
}

/** A library that cannot be fetched leaves the words as they are; nobody needs to be told. */
function unloaded(): void {}
