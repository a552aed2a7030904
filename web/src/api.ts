// In:  what the page wants to ask. Out: typed answers of the server, streams as async iterators.
// Left out: what is shown (state.ts, *.tsx).

import { csrf, locked } from "./account";

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface ModelInfo {
  id: string;
  hash: string;
  parameters: number;
  context: number;
}

export interface Options {
  temperature: number;
  top_p: number;
  max_tokens?: number;
}

export type Side = "left" | "right";
export type Choice = Side | "tie" | "both_bad";

export interface Identity {
  model: string;
  model_hash: string;
  temperature: number;
  top_p: number;
  seed: number;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

/** What a model wrote of messages that it can no longer read. */
export interface Note {
  text: string;
  messages: number;
}

/** How an answer came about, as far as it is known. */
export interface Facts {
  model?: string;
  model_hash?: string;
  finish_reason?: string;
  sampling?: Record<string, unknown>;
  seed?: number;
  usage?: Usage;
  seconds?: number;
  left_out?: number; // messages that the model neither read nor had a note on
  note?: Note;
}

export type Thumb = "up" | "down";

/** What somebody said of an answer by itself. */
export interface Judged {
  thumb: Thumb;
  reason: string;
}

/** A message of a conversation's tree: the one it follows is its parent. */
export interface Stored extends Facts, Partial<Judged> {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  content: string;
  created: string;
}

export interface Summary {
  id: string;
  title: string;
  created: string;
  updated: string;
  messages: number;
}

export interface StoredConversation extends Omit<Summary, "messages"> {
  system: string;
  messages: Stored[];
  writing?: UnderWay[];
}

/** An answer that is being written, and the message that it answers. */
export interface UnderWay {
  answer: string;
  parent: string;
}

/** What to answer: new words below `parent`, or, without `content`, the message `parent` once more. */
export interface Question {
  conversation: string | null;
  parent: string | null;
  content?: string;
}

export type ChatEvent =
  | { type: "start"; conversation: string; user: string | null; answer: string; model?: string; left_out?: number; note?: Note }
  | { type: "delta"; text: string }
  | ({ type: "finish"; message: string | null } & Facts);

export type CompareEvent =
  | { type: "start"; conversation: string; left_out: number }
  | { type: "delta"; side: Side; text: string }
  | { type: "finish"; side: Side; finish_reason: string }
  | { type: "end"; comparison: string };

export type Verdict = Record<Side, Identity>;

/** The server may leave out the oldest turns when the model's context is full, and says how many messages it did. */
const TRUNCATION = { truncation: "auto" };

// A connection that broke is made anew this often, after half a second, one, one and a half ...
const TRIES = 6;
const PAUSE = 500; // milliseconds

/** What the server says went wrong, in its own words. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly code: string | null,
  ) {
    super(message);
  }
}

/** What is served, and things to try with it. */
export interface Info {
  models: ModelInfo[];
  starters: string[];
  summarise: boolean;
}

export async function info(): Promise<Info> {
  return (await (await call("GET", "/api/info")).json()) as Info;
}

export function chat(
  model: string,
  question: Question,
  system: string,
  options: Options,
  summarise: boolean,
  signal: AbortSignal,
): AsyncGenerator<ChatEvent> {
  const body = { model, ...question, system, ...TRUNCATION, summarise, ...options };
  return lasting(() => call("POST", "/api/chat", body, signal), signal);
}

/** An answer that is being written, or was just now, from its first word on. */
export function follow(answer: string, signal: AbortSignal): AsyncGenerator<ChatEvent> {
  return lasting(() => again(answer, signal), signal);
}

/** Let an answer end where it is. */
export async function stop(answer: string): Promise<void> {
  await call("POST", `/api/chat/${encodeURIComponent(answer)}/stop`, {});
}

/** An answer's events; after a break of the connection they begin again with "start" and the first word. */
async function* lasting(ask: () => Promise<Response>, signal: AbortSignal): AsyncGenerator<ChatEvent> {
  let answer: string | null = null;
  for (let tries = 1; ; tries++) {
    try {
      for await (const data of events(await (answer === null ? ask() : again(answer, signal)))) {
        const event: ChatEvent = checked(data);
        if (event.type === "start") answer = event.answer;
        else tries = 1;
        yield event;
        if (event.type === "finish") return;
      }
    } catch (error) {
      if (!(error instanceof TypeError) || answer === null || tries > TRIES) throw error;
    }
    if (tries > TRIES) throw new TypeError("the stream ends and ends");
    await new Promise((wake) => setTimeout(wake, PAUSE * tries));
  }
}

function again(answer: string, signal: AbortSignal): Promise<Response> {
  return call("GET", `/api/chat/${encodeURIComponent(answer)}`, undefined, signal);
}

export async function* compare(
  models: string[],
  messages: Message[],
  options: Options,
  conversation: string | null,
  rater: string,
  signal: AbortSignal,
): AsyncGenerator<CompareEvent> {
  const body = { models, messages, conversation, rater, ...TRUNCATION, ...options };
  for await (const data of events(await call("POST", "/api/compare", body, signal))) yield checked(data);
}

/** Store a vote; tells who wrote what. */
export async function vote(comparison: string, choice: Choice, rater: string): Promise<Verdict> {
  const answer = await (await call("POST", "/api/vote", { comparison, choice, rater })).json();
  return answer.verdict;
}

/** A page of the conversations that were changed before a time, the last one first. */
export async function conversations(
  search: string,
  before: string,
  signal?: AbortSignal,
): Promise<{ conversations: Summary[]; more: boolean }> {
  const query = new URLSearchParams(Object.entries({ search, before }).filter(([, value]) => value));
  return (await call("GET", `/api/conversations?${query}`, undefined, signal)).json();
}

export async function conversation(id: string): Promise<StoredConversation> {
  return (await call("GET", where(id))).json();
}

export async function startConversation(title?: string, system?: string): Promise<StoredConversation> {
  return (await call("POST", "/api/conversations", { title, system })).json();
}

export async function revise(id: string, part: { title?: string; system?: string }): Promise<void> {
  await call("PATCH", where(id), part);
}

/** Delete a conversation, its words and its votes. */
export async function forget(id: string): Promise<void> {
  await call("DELETE", where(id));
}

export async function append(
  id: string,
  message: Pick<Stored, "parent" | "role" | "content"> & Facts,
): Promise<string> {
  return (await (await call("POST", `${where(id)}/messages`, message)).json()).id;
}

/** Say whether an answer by itself is good; said again with a reason, it is the same thumb. */
export async function judge(id: string, message: string, judged: Judged, rater: string): Promise<Judged> {
  return (await call("PUT", `${where(id)}/messages/${encodeURIComponent(message)}/thumb`, { ...judged, rater })).json();
}

function where(id: string): string {
  return `/api/conversations/${encodeURIComponent(id)}`;
}

/** Whoever the server takes this browser for; what it answers lets later requests prove that they are this page's. */
export async function me(): Promise<void> {
  csrf.value = (await (await call("GET", "/api/me")).json()).csrf;
}

/** As a user with a password, or with a key; the server sets a cookie that no script can read. */
export async function logIn(who: { user: string; password: string } | { key: string }): Promise<void> {
  await call("POST", "/api/login", who);
}

export async function logOut(): Promise<void> {
  await call("POST", "/api/logout", {});
}

export async function call(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = csrf.value ? { "x-csrf-token": csrf.value } : {};
  const request: RequestInit = { method, headers, signal: signal ?? null };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  const response = await fetch(path, request);
  if (response.status === 401) locked.value = true;
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response: Response): Promise<ApiError> {
  try {
    const { error } = await response.json();
    return new ApiError(error.message, error.code);
  } catch {
    return new ApiError(`${response.status} ${response.statusText}`, null);
  }
}

/** The data of each server-sent event. Bytes may be cut anywhere, in the middle of a character too. */
export async function* events(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const whole = waiting.split("\n\n");
    waiting = whole.pop()!;
    for (const event of whole) if (event.startsWith("data: ")) yield event.slice(6);
  }
}

/** An event's JSON; one that tells of a fault, after the answer had begun, becomes an exception. */
export function checked(data: string) {
  const event = JSON.parse(data);
  if (event.error) throw new ApiError(event.error.message, event.error.code);
  return event;
}
