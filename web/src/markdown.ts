// In:  Markdown. Out: HTML that is safe to show.
// Left out: raw HTML (shown as text) and images (a picture's address could carry words out of the conversation).

import DOMPurify from "dompurify";
import { md } from "./blocks";

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/**
 * Whole text to HTML that is safe to show: every tag that Markdown does not make is gone or text.
 *
 * Where the browser knows Trusted Types it is one, the only kind that the page's content policy lets into `innerHTML`;
 * it is typed as the string that it stands for.
 */
export function render(text: string): string {
  const clean = DOMPurify.sanitize(md.render(text), { USE_PROFILES: { html: true }, RETURN_TRUSTED_TYPE: true });
  return clean as unknown as string;
}
