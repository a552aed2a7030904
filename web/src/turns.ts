// In:  what was said. Out: turns whose changing parts are signals, and their plain form for a reload of the page.
// Left out: how turns come about (state.ts), how they look (chat.tsx, compare.tsx).

import { type Signal, signal } from "@preact/signals";
import type { Choice, Side, Verdict } from "./api";

/** How far an answer is; `cut` is an answer that met its length limit. */
export type Progress = "writing" | "done" | "cut" | "stopped" | "failed";

export interface Draft {
  text: Signal<string>;
  progress: Signal<Progress>;
}

export interface Answer extends Draft {
  kind: "answer";
  leftOut: Signal<boolean>; // whether the model did not read all turns before it
}

export interface Comparison {
  kind: "comparison";
  left: Draft;
  right: Draft;
  id: Signal<string | null>; // known once both answers are whole and stored
  choice: Signal<Choice | null>;
  counted: Signal<boolean>; // whether the server has the vote
  verdict: Signal<Verdict | null>;
  leftOut: Signal<boolean>; // whether the models did not read all turns before it
}

export interface Turn {
  key: number;
  prompt: string;
  reply: Answer | Comparison;
}

/** The same without signals, as JSON keeps it. */
type Plain<T> = T extends Signal<infer V> ? V : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

export function newAnswer(from?: Plain<Answer>): Answer {
  return { kind: "answer", ...newDraft(from), leftOut: signal(from?.leftOut ?? false) };
}

export function newComparison(from?: Plain<Comparison>): Comparison {
  return {
    kind: "comparison",
    left: newDraft(from?.left),
    right: newDraft(from?.right),
    id: signal(from?.id ?? null),
    choice: signal(from?.choice ?? null),
    counted: signal(from?.counted ?? false),
    verdict: signal(from?.verdict ?? null),
    leftOut: signal(from?.leftOut ?? false),
  };
}

function newDraft(from?: Plain<Draft>): Draft {
  return { text: signal(from?.text ?? ""), progress: signal<Progress>(from?.progress ?? "writing") };
}

/** The side a comparison goes on with; null when neither is kept. */
export function kept(comparison: Comparison): Side | null {
  const choice = comparison.choice.value;
  if (choice === "both_bad" || !comparison.id.value) return null;
  return choice === "right" ? "right" : "left";
}

/** The words that the conversation goes on from; empty when the turn counts for nothing. */
export function words(reply: Turn["reply"]): string {
  if (reply.kind === "answer") return reply.progress.value === "failed" ? "" : reply.text.value;
  const side = kept(reply);
  return side ? reply[side].text.value : "";
}

/** Keep turns for a reload of this tab. Other tabs and tomorrow do not see them. */
export function keep(turns: Turn[], conversation: string | null): void {
  try {
    sessionStorage.setItem("danlu.turns", JSON.stringify({ turns, conversation })); // a signal's JSON is its value's
  } catch {
    // storage is switched off or full: a reload starts anew
  }
}

export function remembered(): { turns: Turn[]; conversation: string | null } {
  try {
    const { turns, conversation } = JSON.parse(sessionStorage.getItem("danlu.turns")!) as {
      turns: Plain<Turn>[];
      conversation: string | null;
    };
    return { turns: turns.map(revive), conversation };
  } catch {
    return { turns: [], conversation: null }; // nothing kept, or not ours
  }
}

function revive({ key, prompt, reply }: Plain<Turn>): Turn {
  return { key, prompt, reply: reply.kind === "answer" ? newAnswer(reply) : newComparison(reply) };
}
