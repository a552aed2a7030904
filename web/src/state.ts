// In:  what people do (send, edit, stop, vote, open, forget). Out: the conversation on the page and the draft, as signals.
// Left out: how answers come about (talk.ts), how it looks (*.tsx).

import { batch, computed, effect, signal } from "@preact/signals";
import * as api from "./api";
import { language } from "./i18n";
import * as list from "./list";
import { recall, remember } from "./memory";
import { problem, tell } from "./problem";
import { place, settle } from "./router";
import { change, mode, rater, serve, unserved } from "./settings";
import { Talk } from "./talk";
import { pick } from "./tree";
import type { Comparison, Node } from "./turns";

export const talk = signal(new Talk());
export const draft = signal(recall("draft", ""));
/** The message that is being edited in its place. */
export const editing = signal<Node | null>(null);
export const busy = computed(() => talk.value.busy.value);
/** Whether the conversation of the address is still on its way. */
export const opening = signal(false);

/** Conversations where something is being written go on when another one is looked at. */
const writing = signal<ReadonlySet<Talk>>(new Set());
export const busyIds = computed(() => new Set([...writing.value].map((one) => one.id.value)));

effect(() => remember("draft", draft.value));
effect(() => {
  const name = language.value === "zh" ? "丹炉" : "danlu";
  const title = talk.value.title.value;
  document.title = title ? `${title} · ${name}` : name;
});
effect(() => {
  const { room, rest } = place.value;
  if (room === null) void open(rest);
});

/** Ask the server what it serves and what was said before. */
export async function load(): Promise<void> {
  try {
    await api.me();
    serve(await api.info());
    await list.refresh();
  } catch (error) {
    unserved();
    tell(error);
  }
}

/** Show the conversation with this id, or an empty one. */
async function open(id: string): Promise<void> {
  const shown = talk.peek();
  if (id === (shown.id.peek() ?? "")) return;
  const live = [...writing.peek()].find((one) => one.id.peek() === id);
  batch(() => {
    editing.value = null;
    problem.value = null;
    talk.value = live ?? new Talk();
  });
  if (!id || live) return;
  opening.value = true;
  try {
    const whole = await api.conversation(id);
    if (place.peek().rest !== id) return; // somebody went on to another one meanwhile
    const opened = (talk.value = Talk.from(whole));
    for (const one of whole.writing ?? []) void hold(opened, () => opened.resume(one));
  } catch (error) {
    tell(error);
    if (place.peek().rest === id) settle("#/");
  } finally {
    opening.value = false;
  }
}

export function startOver(): void {
  location.hash = "#/";
  if (talk.value.id.value === null && talk.value.nodes.value.length) talk.value = new Talk();
}

/** Say something at the end of the conversation. */
export async function send(text: string): Promise<void> {
  const prompt = text.trim();
  const here = talk.value;
  if (!prompt || here.busy.value) return;
  draft.value = "";
  problem.value = null;
  try {
    // Going on without a vote keeps the first answer.
    await (here.undecided.value ? here.adopt(here.undecided.value) : here.adopted);
  } catch (error) {
    tell(error);
    draft.value = prompt;
    return;
  }
  const last = here.way.value.at(-1) ?? null;
  const open = last?.role === "user" ? last : null; // a question that still waits
  if (open?.text.value === prompt) await write(here, open);
  else await ask(here, open ? here.node(open.parent) : last, prompt);
}

/** Another version of a message, answered; the old one and all that follows it stay beside it. */
export async function edit(node: Node, text: string): Promise<void> {
  const prompt = text.trim();
  const here = talk.value;
  if (!prompt || here.busy.value) return;
  editing.value = null;
  await ask(here, here.node(node.parent), prompt);
}

/** Another answer to the same message. */
export async function again(asked: Node): Promise<void> {
  const here = talk.value;
  if (!here.busy.value) await write(here, asked, "chat");
}

/** Show another version of a message. */
export function show(node: Node): void {
  const here = talk.value;
  editing.value = null;
  here.picked.value = pick(here.picked.value, node);
}

/** What the model is told before every answer: of the conversation on the page, or of every new one. */
export async function instruct(text: string): Promise<void> {
  const { id, system } = talk.value;
  if (!id.value) return change({ system: text });
  system.value = text.trim();
  await api.revise(id.value, { system: system.value }).catch(tell);
}

export function stop(): void {
  talk.value.stop();
}

async function ask(here: Talk, parent: Node | null, prompt: string): Promise<void> {
  const asked = here.newQuestion(parent, prompt);
  const taken = await write(here, asked);
  if (!taken && here === talk.value && !draft.value) draft.value = prompt; // so that nobody types it twice
}

async function write(here: Talk, asked: Node, how = mode.value): Promise<boolean> {
  problem.value = null;
  const named = effect(() => {
    if (here.id.value && here === talk.value && place.peek().room === null) settle(`#/c/${here.id.value}`);
  });
  try {
    return await hold(here, () => (how === "chat" ? here.answer(asked) : here.compare(asked)));
  } finally {
    named();
  }
}

/** Keep a conversation while something is written in it, whatever else is looked at. */
async function hold<T>(here: Talk, work: () => Promise<T>): Promise<T> {
  writing.value = new Set([...writing.value, here]);
  try {
    return await work();
  } finally {
    writing.value = new Set([...writing.value].filter((one) => one !== here));
    await list.refresh();
    here.title.value = list.conversations.value.find(({ id }) => id === here.id.value)?.title ?? here.title.value;
  }
}

/** Say whether an answer is good, and why; what the server does not take is taken back. */
export async function judge(node: Node, judged: api.Judged): Promise<boolean> {
  const before = node.judged.value;
  const { id } = talk.value;
  if (!id.value || !node.id.value) return false;
  node.judged.value = judged;
  try {
    node.judged.value = await api.judge(id.value, node.id.value, judged, rater);
    return true;
  } catch (error) {
    node.judged.value = before;
    tell(error);
    return false;
  }
}

export async function vote(comparison: Comparison, choice: api.Choice): Promise<void> {
  const here = talk.value;
  if (!comparison.id.value || comparison.choice.value) return;
  comparison.choice.value = choice;
  try {
    const verdict = await api.vote(comparison.id.value, choice, rater);
    batch(() => {
      comparison.verdict.value = verdict;
      comparison.counted.value = true;
      if (choice === "both_bad" && !draft.value) draft.value = here.asked(comparison)?.text.value ?? "";
    });
    await here.adopt(comparison);
  } catch (error) {
    if (!comparison.counted.value) comparison.choice.value = null;
    tell(error);
  }
}

/** Forget a conversation here and on the server, its votes too. */
export async function forget(id: string): Promise<void> {
  const gone = [talk.value, ...writing.value].filter((one) => one.id.value === id);
  for (const one of gone) one.stop(true);
  try {
    await api.forget(id);
    for (const one of gone) one.forgetComparisons();
    list.conversations.value = list.conversations.value.filter((one) => one.id !== id);
    if (talk.value.id.value === id) startOver();
  } catch (error) {
    tell(error);
  }
}

/** Forget every conversation of whoever is asking; returns whether all are gone. */
export async function forgetAll(): Promise<boolean> {
  for (const one of new Set([talk.value, ...writing.value])) one.stop(true);
  startOver();
  try {
    for await (const { id } of list.all()) await api.forget(id);
    return true;
  } catch (error) {
    tell(error);
    return false;
  } finally {
    await list.refresh();
  }
}
