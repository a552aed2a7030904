// In:  source code, the language's name if the answer gave one. Out: the same code in coloured spans, as HTML.
// Loaded when the first code block is shown. Left out: the colours (style.css), where code stands (dress.ts).

import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import markdown from "highlight.js/lib/languages/markdown";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

const LANGUAGES = {
  bash, c, cpp, css, diff, go, java, javascript, json, markdown, python, rust, sql, typescript, xml, yaml,
};
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

// A long block costs a frame or more; to guess its language costs one pass for each language.
const LONGEST = 50_000;
const LONGEST_GUESSED = 5_000;

/** HTML of `code`, or null where it stays as it is: too long, or in a language that is not known here. */
export function highlight(code: string, language: string | null): string | null {
  if (code.length > LONGEST) return null;
  if (language) return hljs.getLanguage(language) ? hljs.highlight(code, { language, ignoreIllegals: true }).value : null;
  return code.length > LONGEST_GUESSED ? null : hljs.highlightAuto(code).value;
}
