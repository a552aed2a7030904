// In:  Markdown as it grows. Out: blocks that are finished and never change again, so that their DOM can be kept.
// Left out: HTML (markdown.ts).

import MarkdownIt from "markdown-it";
import { formulas } from "./math.ts";

export const md = new MarkdownIt({ html: false, linkify: false, breaks: true }).disable("image").use(formulas);

// Columns are aligned by a class: the content policy allows no style attributes.
for (const cell of ["th_open", "td_open"]) {
  md.renderer.rules[cell] = (tokens, at, options, _, self) => {
    const token = tokens[at]!;
    const style = token.attrGet("style");
    if (style) token.attrs = [["class", String(style).replace("text-align:", "to-")]];
    return self.renderToken(tokens, at, options);
  };
}

/** Where to cut: `settled` are sources of blocks that later text cannot change, `open` is the rest. */
export interface Cut {
  settled: string[];
  open: string;
}

/**
 * Cut off the blocks that are finished.
 *
 * Only whole lines count, because a line that is still being written may turn into something else ("#" into "#tag"),
 * and the last block always stays open: the next line may belong to it.
 */
export function cut(before: Cut, text: string): Cut {
  const known = before.settled.reduce((sum, block) => sum + block.length, 0);
  const rest = text.slice(known);
  const whole = rest.slice(0, rest.lastIndexOf("\n") + 1);
  const starts = md
    .parse(whole, {})
    .filter((token) => token.level === 0 && token.nesting >= 0 && token.map)
    .map((token) => token.map![0]);
  const last = starts.length > 1 ? offset(whole, starts.at(-1)!) : 0;
  if (last === 0) return { settled: before.settled, open: rest };
  return { settled: [...before.settled, rest.slice(0, last)], open: rest.slice(last) };
}

function offset(text: string, line: number): number {
  let at = 0;
  for (let i = 0; i < line; i++) at = text.indexOf("\n", at) + 1;
  return at;
}
