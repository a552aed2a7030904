// In:  what the rooms of runs, ranking and votes ask. Out: typed answers of the server.
// Left out: how requests travel (../api.ts), what is shown (*.tsx).

import { ApiError, type Identity, type Message, type Options, call, checked, events } from "../api";

export type RunState = "running" | "done" | "stopped";
export type StageState = "done" | "running" | "interrupted" | "outdated" | "waiting";

export interface RunSummary {
  name: string;
  recipe: string;
  state: RunState;
  done: number;
  of: number;
  seconds: number;
  changed: string | null;
}

export interface Stage {
  name: string;
  life: string;
  state: StageState;
  why: string | null;
  started: string | null;
  finished: string | null;
  seconds: number | null;
  figures: Record<string, number | string>;
  curves: boolean;
}

export interface Run extends RunSummary {
  stages: Stage[];
  funnel: { step: string; documents: number; characters: number }[];
  dropped: Record<string, number>;
  unread: Record<string, number>;
  answers: { prompt: string; answers: Record<string, string> }[];
}

/** A line of a stage's metrics.jsonl. */
export type Row = { step: number } & Record<string, number | string | null>;

export interface Instalment {
  rows: Row[];
  after: string;
  more: boolean;
  anew: boolean;
}

export interface Rating {
  model: string;
  model_hash: string;
  judgements: number;
  wins: number;
  ties: number;
  losses: number;
  points: number | null;
  low: number | null;
  high: number | null;
  at_equal_length: number | null;
  share: number | null;
  decided: boolean;
}

export interface Ratings {
  votes: number;
  enough: number;
  anchor: string | null;
  length: { worth: number; low: number; high: number } | null;
  models: Rating[];
  left: { times: number; of: number; low: number; high: number };
  agreement: {
    comparisons: number;
    raters: number;
    same: number;
    same_interval: [number, number];
    alpha: number | null;
    alpha_interval: [number, number] | null;
  } | null;
  again: { comparisons: number; same: number; same_place: number } | null;
  conduct: { raters: number; duplicates: number; contradictions: number; most: Rater[] };
}

export interface Rater {
  rater: string;
  judgements: number;
  share: number;
  busiest: number;
  flooding: boolean;
}

export interface Condition {
  what: string;
  value: number | null;
  needed: string;
  met: boolean;
  note: string;
}

/** Who serves; the rest is there only with a standing. */
export interface Champion {
  standing: { champion: string; since: string; candidate: string; share: number } | null;
  trouble?: string; // why it is not followed
  round?: number;
  state?: string;
  votes_needed?: number | null;
  conditions?: Condition[];
}

export interface Vote {
  id: string;
  time: string;
  kind: "vote" | "thumb";
  rater: string;
  prompt: Message[];
  answers: { text: string; model: string; rank: number | null }[];
  thumb: "up" | "down" | null;
  reason: string;
}

export interface Votes {
  votes: Vote[];
  total: number;
  next: string | null;
}

export interface Flagged {
  id: string;
  time: string;
  stage: "prompt" | "answer";
  action: string;
  category: string;
  scanner: string;
  score: number;
  text: string;
}

export interface ApiKey {
  id: string;
  owner: string;
  label: string;
  scopes: string[];
  created: string;
  revoked: string | null;
}

export type RankEvent =
  | { type: "start"; conversation: string; left_out?: number }
  | { type: "delta"; place: number; text: string }
  | { type: "finish"; place: number; finish_reason: string }
  | { type: "end"; comparison: string };

export const runs = (): Promise<{ runs: RunSummary[] }> => get("/api/runs");
export const run = (name: string): Promise<Run> => get(`/api/runs/${encodeURIComponent(name)}`);

export function metrics(name: string, stage: string, after: string): Promise<Instalment> {
  return get(`/api/runs/${encodeURIComponent(name)}/metrics?${new URLSearchParams({ stage, after })}`);
}

/** Have a question answered several times; rejects before the first event if it is refused. */
export async function rank(
  models: string[],
  answers: number,
  prompt: string,
  options: Options,
  rater: string,
  conversation: string | undefined,
  signal: AbortSignal,
): Promise<AsyncGenerator<RankEvent>> {
  const messages = [{ role: "user", content: prompt }];
  const body = { models, answers, messages, conversation, rater, ...options };
  return read(await call("POST", "/api/rank", body, signal));
}

async function* read(response: Response): AsyncGenerator<RankEvent> {
  for await (const data of events(response)) yield checked(data);
}

/** Store a ranking; tells who wrote what, place by place. */
export async function vote(comparison: string, ranks: number[], reason: string, rater: string): Promise<Identity[]> {
  const answer = await call("POST", "/api/vote", { comparison, ranks, reason, rater });
  return (await answer.json()).verdict;
}

export const ratings = (): Promise<Ratings> => get("/api/operator/ratings");
export const champion = (): Promise<Champion> => get("/api/operator/champion");
export const votes = (before: string): Promise<Votes> =>
  get(`/api/operator/votes?${new URLSearchParams({ limit: "20", before })}`);
export const SHEET = "/api/operator/votes.csv";

export const flagged = (): Promise<{ events: Flagged[]; categories: Record<string, string> }> =>
  get("/api/operator/moderation?status=open");

export async function decide(id: string, decision: "approve" | "redact" | "label", label: string): Promise<void> {
  await call("POST", `/api/operator/moderation/${encodeURIComponent(id)}`, { decision, label });
}

export const keys = (): Promise<{ keys: ApiKey[] }> => get("/api/operator/keys");

/** Make a key; it is told this once and never again. */
export async function addKey(owner: string, label: string, scopes: string[]): Promise<string> {
  return (await (await call("POST", "/api/operator/keys", { owner, label, scopes })).json()).key;
}

export async function revokeKey(id: string): Promise<void> {
  await call("DELETE", `/api/operator/keys/${encodeURIComponent(id)}`);
}

/** Whether the server has no such thing at all: a part that it was started without. */
export function isMissing(error: unknown): boolean {
  return error instanceof ApiError && error.code === "not_found";
}

async function get<T>(path: string): Promise<T> {
  return (await call("GET", path)).json();
}
