// What is being written, for those who listen: sentence by sentence, not token by token.

import { useSignal, useSignalEffect } from "@preact/signals";
import { useRef } from "preact/hooks";
import { talk } from "./state";
import type { Node } from "./turns";

/** Up to the last end of a sentence, Chinese or English, or of a line. */
const SENTENCES = /^[\s\S]*(?:[。！？；\n]|[.!?](?=\s))/;

export function Announcer() {
  const words = useSignal("");
  const heard = useRef<{ node: Node | null; upTo: number }>({ node: null, upTo: 0 });
  useSignalEffect(() => {
    const node = talk.value.way.value.at(-1);
    if (node?.role !== "assistant") return;
    const writing = node.progress.value === "writing";
    if (heard.current.node !== node) {
      if (!writing) return; // an old answer that was opened: it can be read, it is no news
      heard.current = { node, upTo: 0 };
    }
    const rest = node.text.value.slice(heard.current.upTo);
    const news = writing ? (SENTENCES.exec(rest)?.[0] ?? "") : rest;
    if (!news.trim()) return;
    heard.current.upTo += news.length;
    words.value = news;
  });
  return <p class="unseen" aria-live="polite">{words.value}</p>;
}
