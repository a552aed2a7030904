// In:  what people do (send, stop, vote, forget). Out: signals that the components show.
// Left out: how it looks (*.tsx), how it travels (api.ts).

import { batch, computed, effect, type Signal, signal } from "@preact/signals";
import * as api from "./api";
import { language, t } from "./i18n";
import { recall, remember } from "./memory";
import { mine, note, strike } from "./mine";
import { type Answer, type Comparison, type Draft, type Turn, keep, newAnswer, newComparison, remembered, words } from "./turns";

export interface Settings {
  model: string;
  against: string;
  temperature: number;
  top_p: number;
  max_tokens: number;
  system: string;
}

export const mode = signal<"chat" | "compare">(recall("mode", "chat"));
export const models = signal<api.ModelInfo[]>([]);
/** Things to try, of the run that is served; none for a model of nobody's run. */
export const starters = signal<string[]>([]);
export const settings = signal<Settings>({
  model: "", against: "", temperature: 0.8, top_p: 0.95, max_tokens: 0, system: "",
  ...recall<Partial<Settings>>("settings", {}),
});
const before = remembered();
export const turns = signal<Turn[]>(before.turns);
export const draft = signal(recall("draft", ""));
export const problem = signal<string | null>(null);
/** What became of the wish to delete every conversation. */
export const forgotten = signal<"all" | "some" | null>(null);
export const busy = computed(() => running.value !== null);
/** Whether two answers wait for a vote. */
export const undecided = computed(() => {
  const reply = turns.value.at(-1)?.reply;
  return reply?.kind === "comparison" && reply.id.value !== null && !reply.counted.value;
});

const running = signal<AbortController | null>(null);
const conversation = signal<string | null>(before.conversation);
const rater = recall<string>("rater", "") || crypto.randomUUID();
remember("rater", rater);
if (before.conversation) note(before.conversation);
effect(() => remember("settings", settings.value));
effect(() => remember("mode", mode.value));
effect(() => remember("draft", draft.value));
effect(() => {
  if (!busy.value) keep(turns.value, conversation.value);
});

export function change(part: Partial<Settings>): void {
  settings.value = { ...settings.value, ...part };
}

/** Ask the server what it serves; a remembered model that is gone gives way to the first one. */
export async function load(): Promise<void> {
  try {
    const served = await api.info();
    models.value = served.models;
    starters.value = served.starters;
    const names = models.value.map((model) => model.id);
    const { model, against } = settings.value;
    change({
      model: names.includes(model) ? model : (names[0] ?? ""),
      against: names.includes(against) ? against : "",
    });
  } catch (error) {
    problem.value = sentence(error);
  }
}

export async function send(text: string): Promise<void> {
  const prompt = text.trim();
  if (!prompt || busy.value) return;
  const { messages, leftOut } = dialogue(prompt);
  const reply = mode.value === "chat" ? newAnswer() : newComparison();
  reply.leftOut.value = leftOut;
  batch(() => {
    draft.value = "";
    problem.value = null;
    forgotten.value = null;
    turns.value = [...turns.value, { key: (turns.value.at(-1)?.key ?? 0) + 1, prompt, reply }];
  });
  await run(prompt, reply, messages);
}

/** Answer the last message anew. */
export async function again(): Promise<void> {
  const last = turns.value.at(-1);
  if (!last || busy.value) return;
  turns.value = turns.value.slice(0, -1);
  await send(last.prompt);
}

export function stop(): void {
  running.value?.abort();
}

export async function vote(comparison: Comparison, choice: api.Choice): Promise<void> {
  if (!comparison.id.value || comparison.choice.value) return;
  comparison.choice.value = choice;
  try {
    const verdict = await api.vote(comparison.id.value, choice, rater);
    batch(() => {
      comparison.verdict.value = verdict;
      comparison.counted.value = true;
      if (choice === "both_bad" && !draft.value) draft.value = promptOf(comparison);
    });
  } catch (error) {
    comparison.choice.value = null;
    problem.value = sentence(error);
  }
}

export function startOver(): void {
  stop();
  batch(() => {
    turns.value = [];
    conversation.value = null;
    problem.value = null;
  });
}

/** Forget the conversation here and on the server, its votes too. */
export async function forget(): Promise<void> {
  const id = conversation.value;
  try {
    if (id) {
      await api.forget(id);
      strike(id);
    }
    startOver();
  } catch (error) {
    problem.value = sentence(error);
  }
}

/** Forget every conversation of this browser, here and on the server, their votes too. */
export async function forgetAll(): Promise<void> {
  const ids = new Set([...mine(), ...(conversation.value ? [conversation.value] : [])]);
  startOver();
  forgotten.value = null;
  try {
    let here = true;
    for (const id of ids) here = (await forgetOne(id)) && here;
    forgotten.value = here ? "all" : "some";
  } catch (error) {
    problem.value = sentence(error);
  }
}

/** Returns false for one that this server does not have: another run's may, so its id is kept. */
async function forgetOne(id: string): Promise<boolean> {
  try {
    await api.forget(id);
  } catch (error) {
    if (error instanceof api.ApiError && error.code === "not_found") return false;
    throw error;
  }
  strike(id);
  return true;
}

// The server takes 256 messages and 2 MB. What is older than this fits no context that we serve.
const MOST_TURNS = 100;
const MOST_CHARACTERS = 300_000;

/** The dialogue to answer: instructions, every turn that has an answer, the new message; and whether some had to go. */
function dialogue(prompt: string): { messages: api.Message[]; leftOut: boolean } {
  const answered = turns.value
    .map((turn) => ({ prompt: turn.prompt, text: words(turn.reply) }))
    .filter(({ text }) => text.trim());
  let characters = 0;
  const tooMuch = answered.findLastIndex((turn, at) => {
    characters += turn.prompt.length + turn.text.length;
    return answered.length - at > MOST_TURNS || characters > MOST_CHARACTERS;
  });
  const system = settings.value.system.trim();
  const messages: api.Message[] = system ? [{ role: "system", content: system }] : [];
  for (const turn of answered.slice(tooMuch + 1)) {
    messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content: turn.text });
  }
  return { messages: [...messages, { role: "user", content: prompt }], leftOut: tooMuch >= 0 };
}

async function run(prompt: string, reply: Answer | Comparison, messages: api.Message[]): Promise<void> {
  const abort = new AbortController();
  running.value = abort;
  const drafts = reply.kind === "answer" ? [reply] : [reply.left, reply.right];
  const pen = new Pen();
  try {
    if (reply.kind === "answer") await write(reply, messages, pen, abort.signal);
    else await writeBoth(reply, messages, pen, abort.signal);
    pen.flush();
  } catch (error) {
    pen.flush();
    const stopped = abort.signal.aborted;
    for (const one of drafts) if (one.progress.value === "writing") one.progress.value = stopped ? "stopped" : "failed";
    if (!stopped) problem.value = sentence(error);
    if (!stopped && drafts.every((one) => !one.text.value)) giveBack(prompt);
  } finally {
    if (running.value === abort) running.value = null;
  }
}

/** A message that got no answer at all goes back into the box, so that nobody types it twice. */
function giveBack(prompt: string): void {
  turns.value = turns.value.slice(0, -1);
  if (!draft.value) draft.value = prompt;
}

async function write(answer: Answer, messages: api.Message[], pen: Pen, signal: AbortSignal): Promise<void> {
  for await (const event of api.chat(settings.value.model, messages, options(), signal)) {
    if ("text" in event) pen.write(answer.text, event.text);
    else if ("leftOut" in event) answer.leftOut.value ||= event.leftOut > 0;
    else finish(answer, event.finish, pen);
  }
}

async function writeBoth(both: Comparison, messages: api.Message[], pen: Pen, signal: AbortSignal): Promise<void> {
  const { model, against } = settings.value;
  const names = against && against !== model ? [model, against] : [model];
  for await (const event of api.compare(names, messages, options(), conversation.value, rater, signal)) {
    if (event.type === "start") {
      conversation.value = event.conversation;
      note(event.conversation);
      both.leftOut.value ||= event.left_out > 0;
    } else if (event.type === "delta") pen.write(both[event.side].text, event.text);
    else if (event.type === "finish") finish(both[event.side], event.finish_reason, pen);
    else both.id.value = event.comparison;
  }
}

function finish(one: Draft, reason: string, pen: Pen): void {
  pen.flush();
  one.progress.value = reason === "length" ? "cut" : "done";
}

function options(): api.Options {
  const { temperature, top_p, max_tokens } = settings.value;
  return { temperature, top_p, ...(max_tokens ? { max_tokens } : {}) };
}

/** Gathers pieces and shows them at most once per frame, however fast they come. */
class Pen {
  private waiting = new Map<Signal<string>, string>();
  private frame = 0;

  write(text: Signal<string>, piece: string): void {
    this.waiting.set(text, (this.waiting.get(text) ?? "") + piece);
    if (!this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    batch(() => {
      for (const [text, piece] of this.waiting) text.value += piece;
    });
    this.waiting.clear();
  }
}

function promptOf(comparison: Comparison): string {
  return turns.value.find((turn) => turn.reply === comparison)?.prompt ?? "";
}

function sentence(error: unknown): string {
  if (error instanceof api.ApiError) return error.message;
  if (error instanceof TypeError) return t("unreachable"); // fetch's way to say "no connection"
  return String(error);
}

effect(() => {
  document.title = language.value === "zh" ? "丹炉" : "danlu";
});
