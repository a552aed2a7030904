// In:  a question, who may answer it, what a person thinks of the answers. Out: one ranking after another, as signals.
// Left out: how orders change (order.ts), how it looks (rank.tsx).

import { batch, computed, signal } from "@preact/signals";
import { type Identity, append } from "../api";
import { refresh } from "../list";
import { recall, remember } from "../memory";
import { Pen } from "../pen";
import { models, options, rater, settings, starters } from "../settings";
import { type Draft, progressOf } from "../turns";
import * as api from "./api";
import { sentence } from "./load";
import { type Tiers, ranks, untouched } from "./order";
import { w } from "./words";

export const chosen = signal<string[]>(recall("rank.models", []));
export const howMany = signal(recall("rank.answers", 4));
export const prompt = signal("");
export const shown = signal<Draft[]>([]);
export const tiers = signal<Tiers>([]);
export const reason = signal("");
export const comparison = signal<string | null>(null);
export const verdict = signal<Identity[] | null>(null);
/** A rank for each answer, as it was handed in; empty where all are bad. */
export const handedIn = signal<number[]>([]);
export const problem = signal<string | null>(null);
export const busy = computed(() => writing.value !== null);

interface Asked {
  id: string;
  of: string;
  asked?: string;
}
/** All rankings of a question are in one conversation, which the server names after it: asked again, it fills no list. */
let conversation = recall<Asked | null>("rank.conversation", null);
const newDraft = (): Draft => ({ text: signal(""), progress: signal("writing") });
const writing = signal<AbortController | null>(null);

/** The models asked, of those that are served; without a choice, the one that the chat talks to. */
export function asked(): string[] {
  const served = models.value.map((model) => model.id);
  const found = chosen.value.filter((name) => served.includes(name));
  return found.length ? found : served.includes(settings.value.model) ? [settings.value.model] : served.slice(0, 1);
}

export function choose(names: string[], answers: number): void {
  chosen.value = names;
  howMany.value = Math.max(answers, names.length, 2);
  remember("rank.models", chosen.value);
  remember("rank.answers", howMany.value);
}

/** Have the question answered. */
export async function write(): Promise<void> {
  const control = new AbortController();
  const pen = new Pen();
  batch(() => {
    writing.value = control;
    shown.value = Array.from({ length: howMany.value }, () => newDraft());
    tiers.value = untouched(howMany.value);
    comparison.value = verdict.value = problem.value = null;
    reason.value = "";
  });
  try {
    for await (const event of await begin(control.signal)) {
      if (event.type === "start") keep(event.conversation);
      else if (event.type === "delta") pen.write(shown.value[event.place]!.text, event.text);
      else if (event.type === "finish") shown.value[event.place]!.progress.value = progressOf(event.finish_reason);
      else if (event.type === "end") comparison.value = event.comparison;
    }
  } catch (error) {
    if (!control.signal.aborted) problem.value = sentence(error);
  } finally {
    pen.flush();
    if (!comparison.value) shown.value = []; // what is not whole cannot be judged
    writing.value = null;
    void refresh();
  }
}

/** Ask in the conversation of the question; where it has none yet, or it was deleted, in a new one. */
async function begin(aborted: AbortSignal): Promise<AsyncGenerator<api.RankEvent>> {
  const ask = (inside?: string) => api.rank(asked(), howMany.value, prompt.value, options(), rater, inside, aborted);
  const known = conversation?.of === prompt.value ? conversation.id : undefined;
  try {
    return await ask(known);
  } catch (error) {
    if (!api.isMissing(error) || !known) throw error;
    return ask();
  }
}

function keep(id: string): void {
  if (conversation?.id === id) return;
  conversation = { id, of: prompt.value };
  remember("rank.conversation", conversation);
}

/** Put the question and what was found best into its conversation, as a comparison does: who opens it finds them there. */
async function adopt(place: Asked, content: string, one?: Identity): Promise<void> {
  try {
    const parent = (place.asked ??= await append(place.id, { parent: null, role: "user", content: place.of }));
    if (conversation === place) remember("rank.conversation", place);
    if (!one) return; // all are bad
    const { model, model_hash, seed, ...sampling } = one;
    await append(place.id, { parent, role: "assistant", content, model, model_hash, seed, sampling });
  } catch (error) {
    problem.value = w("notAdopted", { why: sentence(error) });
  }
}

export function stop(): void {
  writing.value?.abort();
}

/** Hand in the order, or that all are bad. Meanwhile the page may go on to another question. */
export async function handIn(allBad: boolean): Promise<void> {
  const found = allBad ? [] : ranks(tiers.value);
  const [judged, place, best] = [comparison.value!, conversation, found.indexOf(0)];
  const content = shown.value[best]?.text.value ?? "";
  try {
    const who = await api.vote(judged, found, reason.value.trim(), rater);
    if (comparison.value === judged) {
      batch(() => {
        verdict.value = who;
        handedIn.value = found;
        problem.value = null;
      });
    }
    if (place) await adopt(place, content, who[best]);
  } catch (error) {
    problem.value = sentence(error);
  }
}

/** Start over with one of the things to try that was not asked just now. */
export function next(): void {
  const others = starters.value.filter((one) => one !== prompt.value);
  batch(() => {
    prompt.value = others[Math.floor(Math.random() * others.length)] ?? "";
    shown.value = [];
    comparison.value = verdict.value = problem.value = null;
  });
}
