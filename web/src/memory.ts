// In:  small values worth keeping over a reload. Out: the same values, or a default where the browser keeps nothing.

export function recall<T>(key: string, otherwise: T): T {
  try {
    const kept = localStorage.getItem(`danlu.${key}`);
    return kept === null ? otherwise : JSON.parse(kept);
  } catch {
    return otherwise; // storage is switched off, or somebody edited it
  }
}

export function remember(key: string, value: unknown): void {
  try {
    localStorage.setItem(`danlu.${key}`, JSON.stringify(value));
  } catch {
    // storage is switched off or full: the page works, it just forgets
  }
}
