// Cutting growing Markdown into finished blocks: run by node's own test runner (see test_browser_blocks.py).

import assert from "node:assert/strict";
import { test } from "node:test";
import { cut, md } from "../../web/src/blocks.ts";

const DOCUMENT = `# Rain

Water goes up,
and comes back.

1. The sun warms the sea.

   It does so every day.
2. Mist rises.

- a
- b

> quoted
> twice

| a | b |
| --- | --- |
| 1 | 2 |

\`\`\`python
def f():

    return "# no heading"
\`\`\`

Text with a #tag
#tag at a line's start

Setext
======

***

The sum $a_1 + b$ costs $5 or $6:
$$
\\sum_{i=1}^n i
= \\frac{n(n+1)}{2}
$$
\\[ e^{i\\pi} = -1 \\]

$$ never closed
- and on

夜静霜初落，天高月自明。
何人吹玉笛，一曲动秋声。`;

const EMPTY = { settled: [], open: "" };

/** Feed the text in pieces that end where \`ends\` says; every state on the way. */
function states(ends) {
  const seen = [EMPTY];
  for (const end of ends) seen.push(cut(seen.at(-1), DOCUMENT.slice(0, end)));
  return seen;
}

const everyCharacter = Array.from({ length: DOCUMENT.length }, (_, i) => i + 1);

test("nothing is lost and finished blocks never change", () => {
  const seen = states(everyCharacter);
  for (let i = 1; i < seen.length; i++) {
    assert.equal(seen[i].settled.join("") + seen[i].open, DOCUMENT.slice(0, i));
    assert.deepEqual(seen[i].settled.slice(0, seen[i - 1].settled.length), seen[i - 1].settled);
  }
  assert.ok(seen.at(-1).settled.length > 6);
});

test("blocks rendered one by one give the whole document's HTML, however it came in", () => {
  for (const step of [1, 2, 3, 7, 50, 1000]) {
    const ends = everyCharacter.filter((end) => end % step === 0 || end === DOCUMENT.length);
    const { settled, open } = states(ends).at(-1);
    assert.equal([...settled, open].map((block) => md.render(block)).join(""), md.render(DOCUMENT));
  }
});

test("raw HTML stays text and images stay links' text", () => {
  const html = md.render("<b>x</b> ![pixel](http://elsewhere.test/p) [x](javascript:alert(1))");
  assert.doesNotMatch(html, /<b>|<img|href="javascript/);
});

function formulas(source) {
  return [...md.render(source).matchAll(/<span class="formula (\w+)">([^<]*)<\/span>/g)].map(([, how, tex]) => [how, tex]);
}

test("formulas are found by every delimiter, and prices are not formulas", () => {
  assert.deepEqual(formulas("$a$ and \\(b\\) and $$c$$ and \\[d\\] too"), [
    ["running", "a"], ["running", "b"], ["display", "c"], ["display", "d"],
  ]);
  assert.deepEqual(formulas("$$\nx\n= y\n$$"), [["display", "x\n= y"]]);
  assert.deepEqual(formulas("- one:\n  \\[\n  x\n  \\]\n- two"), [["display", "x"]]);
  assert.deepEqual(formulas("$f(\\$5)$"), [["running", "f(\\$5)"]]);
  for (const plain of ["$5 or $6", "US$ 5 and A$ 6", "a $ b $", "`$a$`", "\\$a$", "$$", "$$$$", "```\n$$\na\n$$\n```"]) {
    assert.deepEqual(formulas(plain), [], plain);
  }
});

test("a formula without an end swallows no more than its paragraph", () => {
  assert.match(md.render("$$\na + b\n\n# heading"), /<h1>heading<\/h1>/);
  assert.deepEqual(formulas("$$\na\n\n$$"), []);
});

test("a formula's source is text, whatever it says", () => {
  assert.doesNotMatch(md.render("$<img src=x onerror=alert(1)>$ $$<script>$$\n\n$$\n<b>\n$$"), /<img|<script|<b>/);
});
