// In:  ids of conversations that the server keeps words of. Out: this browser's list of them, which outlives the tab.
// An id is the only way to have the words deleted, so it stays here until they are.

import { recall, remember } from "./memory";

export function mine(): string[] {
  return recall<string[]>("conversations", []); // read anew each time: other tabs write to it too
}

export function note(id: string): void {
  if (!mine().includes(id)) remember("conversations", [...mine(), id]);
}

export function strike(id: string): void {
  remember("conversations", mine().filter((one) => one !== id));
}
