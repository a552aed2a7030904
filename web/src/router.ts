// In:  the address behind "#". Out: the room to show, as a signal, and what follows the room's name.
// Left out: the rooms themselves; all but the conversation are loaded when somebody goes there.

import { signal } from "@preact/signals";
import { lazy } from "preact/compat";

/** The rooms beside the conversation, each in a chunk of its own. */
export const ROOMS = {
  runs: lazy(() => import("./ops/runs")),
  rank: lazy(() => import("./ops/rank")),
  operator: lazy(() => import("./ops/operator")),
};

export type Room = keyof typeof ROOMS;

/** `#/runs/tang` is room "runs", rest "tang"; `#/c/ID` is a conversation (room null); anything else a new one. */
export interface Place {
  room: Room | null;
  rest: string;
}

export const place = signal<Place>(read());
addEventListener("hashchange", () => (place.value = read()));

/** Go to a place without a new entry in the history: for addresses that become known late. */
export function settle(hash: string): void {
  history.replaceState(null, "", hash);
  place.value = read();
}

function read(): Place {
  const [name = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  if (name in ROOMS) return { room: name as Room, rest: decoded(rest.join("/")) };
  return { room: null, rest: name === "c" ? decoded(rest.join("/")) : "" };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return ""; // "%" and no hexadecimal digits: somebody typed the address
  }
}
