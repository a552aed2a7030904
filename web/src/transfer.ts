// In:  conversations of the server; a file that somebody chose. Out: files to download; conversations on the server.
// Left out: the buttons (tuning.tsx, main.tsx).

import * as api from "./api";
import { all } from "./list";
import type { Talk } from "./talk";
import type { Node } from "./turns";

/** What a JSON file holds; a name and a number, so that a later page knows what it reads. */
interface Archive {
  format: "danlu-conversations";
  version: 1;
  conversations: api.StoredConversation[];
}

export type Form = "markdown" | "json" | "training";

/** Offer the conversation on the page as a file: what is shown of it, or as JSON every version of every message. */
export async function download(talk: Talk, form: Form): Promise<void> {
  const name = fileName(talk.title.value);
  if (form === "markdown") save(`${name}.md`, "text/markdown", markdown(talk.title.value, talk.way.value));
  else if (form === "training") save(`${name}.jsonl`, "application/jsonl", training(talk.system.value, talk.way.value));
  else if (talk.id.value) save(`${name}.json`, "application/json", archive([await api.conversation(talk.id.value)]));
}

export async function downloadAll(): Promise<void> {
  const whole: api.StoredConversation[] = [];
  for await (const { id } of all()) whole.push(await api.conversation(id));
  save("danlu.json", "application/json", archive(whole));
}

/** Put the conversations of a file on the server, as new ones; returns how many, null if the file is none of ours. */
export async function upload(file: File): Promise<number | null> {
  const found = read(await file.text());
  if (!found) return null;
  for (const one of found) await restore(one);
  return found.length;
}

function markdown(title: string, way: readonly Node[]): string {
  const said = way.map(({ role, text }) => `## ${role === "user" ? "User" : "Assistant"}\n\n${text.value.trim()}\n`);
  return [`# ${title}\n`, ...said].join("\n");
}

/** One line in the form that `danlu` trains on, OpenAI's `messages`; it ends with an answer. */
function training(system: string, way: readonly Node[]): string {
  const end = way.findLastIndex(({ role, text }) => role === "assistant" && text.value.trim());
  const messages = way.slice(0, end + 1).map(({ role, text }) => ({ role, content: text.value }));
  if (system) messages.unshift({ role: "system" as Node["role"], content: system });
  return messages.length ? `${JSON.stringify({ messages })}\n` : "";
}

function archive(found: api.StoredConversation[]): string {
  const conversations = found.map(({ writing: _, ...kept }) => kept); // what is still being written is not yet said
  const whole: Archive = { format: "danlu-conversations", version: 1, conversations };
  return `${JSON.stringify(whole, null, 2)}\n`;
}

function read(text: string): api.StoredConversation[] | null {
  try {
    const { format, version, conversations } = JSON.parse(text) as Archive;
    return format === "danlu-conversations" && version === 1 && conversations.every(sound) ? conversations : null;
  } catch {
    return null; // not JSON, or of another shape
  }
}

/** Whether every message follows one that stands before it. */
function sound({ messages }: api.StoredConversation): boolean {
  const known = new Set<string | null>([null]);
  return messages.every(({ id, parent, role, content }) => {
    const fits = known.has(parent) && typeof content === "string" && (role === "user" || role === "assistant");
    known.add(id);
    return fits;
  });
}

async function restore({ title, system, messages }: api.StoredConversation): Promise<void> {
  const { id } = await api.startConversation(title, system);
  const now = new Map<string, string>(); // ids here by ids in the file
  for (const { id: old, parent, created: _, ...message } of messages) {
    now.set(old, await api.append(id, { ...message, parent: parent === null ? null : now.get(parent)! }));
  }
}

/** A title without what file systems dislike. */
function fileName(title: string): string {
  return title.replace(/[\\/:*?"<>|\p{Cc}]+/gu, " ").trim().slice(0, 60) || "danlu";
}

function save(name: string, type: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the browser reads it after the click
}
