"""The recipe ``tang`` on three seeds: does the whole life of a model, and PPO in particular, keep its promises?

In:  nothing but time: each seed is a full run .
Out: ``results/tang-*.json`` and the table; the runs stay in ``runs/bench-tang-SEED``.
Left out: peers; no other project has this chain.

    python bench/tang.py [SEED ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from danlu.console import Console
from danlu.pipeline import execute, read_recipe
from danlu.report import figures, write_report
from table import row, save


def run_seed(seed: int) -> dict[str, Any]:
    """One whole run, or what is left to do of it."""
    run = execute(read_recipe("tang", [f"seed={seed}"]), Path("runs") / f"bench-tang-{seed}", Console())
    write_report(run)
    return figures(run)


def rows(results: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims about ``tang``; met only if met on every seed."""
    each = list(results.values())
    note = f"seeds {', '.join(map(str, results))}; {each[0]['prompts']} held-out prompts"
    found = []
    for promises in zip(*(result["targets"] for result in each), strict=True):
        what, target, values = promises[0]["what"], promises[0]["target"], [promise["value"] for promise in promises]
        found.append(row(f"tang: {what}", values, "", target, all(promise["met"] for promise in promises), note=note))
    for life in ("base", "sft", "ppo", "compress"):
        for key in ("form_rate", "rhyme_rate", "rhyme_by_chance", "distinct_2"):
            found.append(
                row(f"tang: {key.replace('_', ' ')}, {life}", [r[key][life] for r in each], "", "reported", True)
            )
    return found


def main() -> None:
    """Run the seeds and write the results."""
    seeds = [int(word) for word in sys.argv[1:]] or [0, 1, 2]
    results = {seed: run_seed(seed) for seed in seeds}
    print(save("tang", rows(results)))


if __name__ == "__main__":
    main()
