// In:  what the server keeps, or what was just said. Out: messages and comparisons whose changing parts are signals.
// Left out: how they come about (talk.ts), how they look (message.tsx, compare.tsx).

import { type Signal, signal } from "@preact/signals";
import type { Choice, Facts, Judged, Side, Stored, Verdict } from "./api";

/** How far an answer is; `cut` met its length limit, `filtered` was ended by the safety filter. */
export type Progress = "writing" | "done" | "cut" | "filtered" | "stopped" | "failed";

const PROGRESS: Record<string, Progress> = { length: "cut", content_filter: "filtered", stopped: "stopped", failed: "failed" };

/** What somebody writes, word by word. */
export interface Draft {
  text: Signal<string>;
  progress: Signal<Progress>;
}

export interface Told extends Facts {
  wait?: number; // seconds until the first words
}

/** A message; `key` is its own for as long as the page lives, `id` the server's, once that has stored it. */
export interface Node extends Draft {
  key: string;
  id: Signal<string | null>;
  parent: string | null; // a key
  role: "user" | "assistant";
  told: Signal<Told>;
  judged: Signal<Judged | null>;
}

export interface Comparison {
  left: Draft;
  right: Draft;
  id: Signal<string | null>; // known once both answers are whole and stored
  choice: Signal<Choice | null>;
  counted: Signal<boolean>; // whether the server has the vote
  verdict: Signal<Verdict | null>;
  leftOut: Signal<number>;
  answer: Signal<string | null>; // key of the message that it went on with
}

/** The same without signals, as JSON keeps it: a signal's JSON is its value's. */
type Plain<T> = T extends Signal<infer V> ? V : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

export function progressOf(finishReason: string | undefined): Progress {
  return PROGRESS[finishReason ?? ""] ?? "done";
}

export function stored(message: Stored): Node {
  const { id, parent, role, content, created: _, thumb, reason = "", ...facts } = message;
  return {
    key: id, id: signal(id), parent, role, text: signal(content), progress: signal(progressOf(facts.finish_reason)),
    told: signal(facts), judged: signal(thumb ? { thumb, reason } : null),
  };
}

export function newNode(parent: Node | null, role: Node["role"], text = ""): Node {
  return {
    key: crypto.randomUUID(), id: signal(null), parent: parent?.key ?? null, role, text: signal(text),
    progress: signal<Progress>(role === "user" ? "done" : "writing"), told: signal({}), judged: signal(null),
  };
}

export function newComparison(from?: Plain<Comparison>): Comparison {
  return {
    left: newDraft(from?.left),
    right: newDraft(from?.right),
    id: signal(from?.id ?? null),
    choice: signal(from?.choice ?? null),
    counted: signal(from?.counted ?? false),
    verdict: signal(from?.verdict ?? null),
    leftOut: signal(from?.leftOut ?? 0),
    answer: signal(from?.answer ?? null),
  };
}

function newDraft(from?: Plain<Draft>): Draft {
  return { text: signal(from?.text ?? ""), progress: signal<Progress>(from?.progress ?? "writing") };
}

/** The side a comparison goes on with; null when neither is kept. */
export function kept({ choice, id }: Comparison): Side | null {
  if (choice.value === "both_bad" || !id.value) return null;
  return choice.value === "right" ? "right" : "left";
}

/** Keep a conversation's comparisons for a reload of this tab: the server keeps only what became of them. */
export function keep(conversation: string, comparisons: ReadonlyMap<string, Comparison>): void {
  try {
    sessionStorage.setItem(`danlu.compared.${conversation}`, JSON.stringify([...comparisons]));
  } catch {
    // storage is switched off or full: after a reload the chosen answers are there, the others are not
  }
}

export function remembered(conversation: string): Map<string, Comparison> {
  try {
    const pairs: [string, Plain<Comparison>][] = JSON.parse(sessionStorage.getItem(`danlu.compared.${conversation}`)!);
    return new Map(pairs.map(([key, plain]) => [key, newComparison(plain)]));
  } catch {
    return new Map(); // nothing kept, or not ours
  }
}

export function dropped(conversation: string): void {
  sessionStorage.removeItem(`danlu.compared.${conversation}`);
}
