// In:  markdown-it. Out: markdown-it that knows formulas: $a$, $$a$$, \(a\), \[a\].
// Left out: how they look (formula.ts): here a formula is its own source in a marked element.
//
// As in pandoc, "$" opens only before something, closes only after something, and never before a digit: prices stay
// prices. A formula across lines ends at an empty line, so a lone "$$" swallows nothing.

import type { MarkdownIt, StateBlock, StateInline } from "markdown-it";

/** Longer formulas stay text; it also bounds the search for an end that is not there. */
const LONGEST = 10_000;

const CLOSES: Record<string, string> = { $$: "$$", "\\[": "\\]", "\\(": "\\)" };

export function formulas(md: MarkdownIt): void {
  md.inline.ruler.before("escape", "formula", inline);
  md.block.ruler.before("fence", "formula", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
  md.renderer.rules.formula = (tokens, at) => {
    const { content, info } = tokens[at]!;
    return `<span class="formula ${info}">${md.utils.escapeHtml(content)}</span>`;
  };
  md.renderer.rules.formula_block = (tokens, at) =>
    `<p><span class="formula display">${md.utils.escapeHtml(tokens[at]!.content)}</span></p>\n`;
}

function inline(state: StateInline, silent: boolean): boolean {
  const found = opened(state.src, state.pos, state.posMax);
  if (!found) return false;
  const { open, close, end } = found;
  if (!silent) {
    const token = state.push("formula", "", 0);
    token.content = state.src.slice(state.pos + open.length, end);
    token.info = open === "$" || open === "\\(" ? "running" : "display";
  }
  state.pos = end + close.length;
  return true;
}

/** The formula that starts at `at`, if one does. */
function opened(text: string, at: number, limit: number): { open: string; close: string; end: number } | null {
  const two = text.slice(at, at + 2);
  const close = CLOSES[two];
  if (close) {
    const end = unescaped(text, close, at + 2, limit);
    return end > at + 2 ? { open: two, close, end } : null;
  }
  if (text[at] !== "$" || /\s/.test(text[at + 1] ?? " ")) return null;
  const end = unescaped(text, "$", at + 1, limit);
  if (end < 0 || /\s/.test(text[end - 1]!) || /\d/.test(text[end + 1] ?? "")) return null;
  return { open: "$", close: "$", end };
}

/** Where `mark` stands next without a backslash of its own before it; -1 if nowhere. */
function unescaped(text: string, mark: string, from: number, limit: number): number {
  const last = Math.min(limit, from + LONGEST) - mark.length;
  if (!text.includes(mark, from)) return -1; // quick, where many are opened and none is closed
  for (let at = from; at <= last; at++) {
    if (text.startsWith(mark, at)) return at;
    if (text[at] === "\\") at++;
  }
  return -1;
}

/**
 * A formula that starts a line and ends one. Without its end before an empty line it is a paragraph of its own, so
 * that what stands before it is settled either way (see blocks.ts).
 */
function block(state: StateBlock, from: number, last: number, silent: boolean): boolean {
  const line = (at: number) => state.src.slice(state.bMarks[at]! + state.tShift[at]!, state.eMarks[at]!).trimEnd();
  const open = line(from).slice(0, 2);
  const close = CLOSES[open];
  if (!close || open === "\\(" || state.sCount[from]! - state.blkIndent >= 4) return false;
  const lines = [line(from).slice(2)];
  const first = unescaped(lines[0]!, close, 0, lines[0]!.length);
  if (first >= 0 && first + close.length < lines[0]!.length) return false; // words follow: it stands in a sentence
  if (silent) return true;
  let next = from + 1;
  while (!lines.at(-1)!.endsWith(close) && next < last && line(next) && state.sCount[next]! >= state.blkIndent) {
    lines.push(line(next++));
  }
  const source = lines.join("\n");
  if (source.endsWith(close) && source.slice(0, -2).trim()) formula(state, source.slice(0, -2).trim(), [from, next]);
  else paragraph(state, open + source, [from, next]);
  state.line = next;
  return true;
}

function formula(state: StateBlock, content: string, map: [number, number]): void {
  const token = state.push("formula_block", "", 0);
  token.content = content;
  token.map = map;
}

function paragraph(state: StateBlock, content: string, map: [number, number]): void {
  state.push("paragraph_open", "p", 1).map = map;
  const words = state.push("inline", "", 0);
  words.content = content;
  words.map = map;
  words.children = [];
  state.push("paragraph_close", "p", -1);
}
