// In:  tiers of answers, the best first; those of one tier tie. Out: other tiers, ranks. An answer is called by its place.
// Left out: how people say it (rank.tsx).

export type Tiers = readonly (readonly number[])[];

/** Nobody has said anything yet: all tie. */
export function untouched(answers: number): Tiers {
  return [Array.from({ length: answers }, (_, place) => place)];
}

/** One step up (-1) or down (1): out of a tie first, then past the next tier. */
export function step(tiers: Tiers, place: number, by: -1 | 1): Tiers {
  const at = tierOf(tiers, place);
  const rest = without(tiers, place);
  const alone = tiers[at]!.length === 1;
  if (alone && (by < 0 ? at === 0 : at === tiers.length - 1)) return tiers;
  // Out of a tie it comes to stand right above or below it; alone, its tier is gone and the next has its number.
  const to = by < 0 ? (alone ? at - 1 : at) : at + 1;
  return rest.toSpliced(to, 0, [place]);
}

/** To the `rank`-th tier, counted from 0: a tie with whoever is there, or a new tier at the end. */
export function put(tiers: Tiers, place: number, rank: number): Tiers {
  if (tierOf(tiers, place) === rank) return tiers;
  const alone = tiers[tierOf(tiers, place)]!.length === 1;
  const rest = without(tiers, place);
  // With its own tier gone those below have moved up by one; the person means the numbers that are on the screen.
  const to = alone && rank > tierOf(tiers, place) ? rank - 1 : rank;
  if (to >= rest.length) return [...rest, [place]];
  return rest.map((tier, index) => (index === to ? sorted([...tier, place]) : tier));
}

/** A tier of its own right before (0) or after (1) another answer's. */
export function beside(tiers: Tiers, place: number, other: number, side: 0 | 1): Tiers {
  if (place === other) return tiers;
  const rest = without(tiers, place);
  return rest.toSpliced(tierOf(rest, other) + side, 0, [place]);
}

/** A rank for each place, 0 the best. */
export function ranks(tiers: Tiers): number[] {
  const found: number[] = [];
  tiers.forEach((tier, rank) => tier.forEach((place) => (found[place] = rank)));
  return found;
}

export function tierOf(tiers: Tiers, place: number): number {
  return tiers.findIndex((tier) => tier.includes(place));
}

function without(tiers: Tiers, place: number): Tiers {
  return tiers.map((tier) => tier.filter((one) => one !== place)).filter((tier) => tier.length > 0);
}

function sorted(tier: number[]): number[] {
  return tier.sort((a, b) => a - b);
}
