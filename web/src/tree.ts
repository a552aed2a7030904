// In:  messages that know the one they follow, and which of several versions somebody wants to see.
// Out: the way through the tree that is shown; versions of a message. Pure.
// Left out: what a message holds (turns.ts), who changes it (talk.ts).

export interface Linked {
  key: string;
  parent: string | null;
}

/** By a message's key ("" for the start): the key of the follower that is shown. Without a word, the newest is. */
export type Picked = Record<string, string>;

/** From the start to the last message that is shown. `nodes` are in the order in which they came. */
export function path<N extends Linked>(nodes: readonly N[], picked: Picked): N[] {
  const followers = Map.groupBy(nodes, (node) => node.parent);
  const way: N[] = [];
  for (let at: string | null = null; ; ) {
    const next: N[] = followers.get(at) ?? [];
    const node: N | undefined = next.find(({ key }) => key === picked[at ?? ""]) ?? next.at(-1);
    if (!node) return way;
    way.push(node);
    at = node.key;
  }
}

/** Every version of a message, itself included: those that follow the same one. */
export function versions<N extends Linked>(nodes: readonly N[], node: N): N[] {
  return nodes.filter((other) => other.parent === node.parent);
}

/** `picked`, with `node` shown. */
export function pick(picked: Picked, node: Linked): Picked {
  return { ...picked, [node.parent ?? ""]: node.key };
}
