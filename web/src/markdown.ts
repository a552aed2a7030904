// In:  Markdown. Out: HTML that is safe to show.
// Left out: raw HTML (shown as text) and images (a picture's address could carry words out of the conversation).

import DOMPurify, { type Config } from "dompurify";
import { md } from "./blocks";

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/** Whole text to HTML that is safe to show: every tag that Markdown does not make is gone or text. */
export function render(text: string): string {
  return clean(md.render(text));
}

/**
 * HTML without anything that could act.
 *
 * Where the browser knows Trusted Types it is one, the only kind that the page's content policy lets into `innerHTML`;
 * it is typed as the string that it stands for.
 */
export function clean(html: string): string {
  return DOMPurify.sanitize(html, OPTIONS) as unknown as string;
}

/** Only what Markdown and the highlighter make; no forms, no pictures, no ids that could shadow the page's own. */
const OPTIONS: Config = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start", "title"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};
