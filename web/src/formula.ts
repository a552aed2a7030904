// In:  TeX, an empty element. Out: the formula in that element, MathML for screen readers beside it.
// Loaded with KaTeX's style sheet when the first formula is shown. Left out: where formulas stand (math.ts, dress.ts).

import katex, { type KatexOptions } from "katex";
import "katex/dist/katex.css";

const OPTIONS: KatexOptions = {
  throwOnError: true, // what KaTeX shows instead has a style attribute, which the content policy forbids
  strict: "ignore", // Chinese in a formula is fine
  trust: false, // no links, no pictures, no attributes
  maxSize: 20,
  maxExpand: 500,
  // The only two whose MathML carries a style attribute, spelled by their neighbours.
  macros: { "\\pmb": "\\boldsymbol{#1}", "\\fcolorbox": "\\textcolor{#1}{\\boxed{\\colorbox{#2}{#3}}}" },
};

/** Draw `tex` into `place`; false, and nothing is drawn, where it is no formula. */
export function draw(tex: string, place: HTMLElement, display: boolean): boolean {
  try {
    // A copy of the macros: \gdef in one formula must not change the next.
    katex.render(tex, place, { ...OPTIONS, macros: { ...OPTIONS.macros }, displayMode: display });
    return true;
  } catch {
    place.textContent = tex;
    return false;
  }
}
