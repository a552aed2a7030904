// In:  what the page wants to ask. Out: typed answers of the server, streams as async iterators.
// Left out: what is shown (state.ts, *.tsx).

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

export type ChatEvent = { text: string } | { finish: string } | { leftOut: number };

export type CompareEvent =
  | { type: "start"; conversation: string; left_out: number }
  | { type: "delta"; side: Side; text: string }
  | { type: "finish"; side: Side; finish_reason: string }
  | { type: "end"; comparison: string };

export type Verdict = Record<Side, Identity>;

/** The server may leave out the oldest turns when the model's context is full, and says how many messages it did. */
const TRUNCATION = { truncation: "auto" };

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
}

export async function info(): Promise<Info> {
  return (await (await call("GET", "/api/info")).json()) as Info;
}

export async function* chat(
  model: string,
  messages: Message[],
  options: Options,
  signal: AbortSignal,
): AsyncGenerator<ChatEvent> {
  const body = { model, messages, stream: true, ...TRUNCATION, ...options };
  for await (const data of events(await call("POST", "/v1/chat/completions", body, signal))) {
    if (data === "[DONE]") return;
    const { choices, left_out } = checked(data);
    const choice = choices[0];
    if (choice?.delta.role) yield { leftOut: left_out }; // once: the first piece of an answer names its role
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
  }
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

export async function forget(conversation: string): Promise<void> {
  await call("DELETE", `/api/conversations/${encodeURIComponent(conversation)}`);
}

async function call(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const request: RequestInit = { method, signal: signal ?? null };
  if (body !== undefined) {
    request.headers = { "content-type": "application/json" };
    request.body = JSON.stringify(body);
  }
  const response = await fetch(path, request);
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
async function* events(response: Response): AsyncGenerator<string> {
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
function checked(data: string) {
  const event = JSON.parse(data);
  if (event.error) throw new ApiError(event.error.message, event.error.code);
  return event;
}
